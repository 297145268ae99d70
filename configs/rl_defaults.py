r"""Every setting of a run of reinforcement learning (launch/train.py), with its default. The configs whose names begin
with sparse_rl change some of them.

This config is not meant to be run by itself, because it names no model and no problems.
"""

from ml_collections import ConfigDict, FieldReference

from configs import defaults


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.task = "rl"  # what launch/train.py does with this config
    config.folder = "runs/rl"  # of the run: checkpoints, metrics, and the trained model in `final`
    config.model = ConfigDict({
        "path": "",  # the checkpoint folder that training starts from
        "dtype": "float32",  # in which the model computes; on accelerators set "bfloat16"
        "method": "",  # how it writes; if empty, as it was trained. "vanilla" keeps every thought
    })  # fmt: skip
    # Adapters; rank 0 trains all parameters instead.
    config.lora = ConfigDict({"rank": 0, "alpha": 32.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})
    config.data = ConfigDict({
        # A file or folder of problems with answers. Several are a tuple here and separated by commas elsewhere.
        "path": FieldReference("", field_type=object),
        "format": "",  # of the records, see lt_jax/data/traces.py; if empty, it is recognised by their fields
        "held_out": 0,  # problems that are not trained on but kept for validation
        "embedded": 0,  # learn from this many of the library's own problems in place of files
        "steps": (6, 12),  # the fewest and the most steps of such a problem
        "families": (),  # the kinds of such problems; empty takes all kinds
        # The chat template ("own", "qwen", "llama", "plain") and the texts around a question; "-" is what the model's
        # folder says.
        "chat": "-", "system": "-", "prefix": "-", "suffix": "-",
    })  # fmt: skip
    config.rollout = ConfigDict({
        "prompts": 8,  # problems of a rollout
        "group": 8,  # responses to each of them
        "max_prompt": 256,  # tokens; problems with longer prompts are left out and counted
        "max_new": 512,  # the most tokens of a response
        "temperature": 1.0,  # of sampling and of all log-probs
        "rows": 0,  # responses that are sampled side by side; 0 is all of them
        "block_steps": 32,  # decoding steps between two looks at what is finished
        "kv": "",  # a KV policy (rkv, snapkv, h2o, ...) whose budget the sampler keeps; if empty, every key is kept
        "budget": 512,  # keys that each layer and KV head keeps
        "buffer": 128,  # tokens between two evictions
        "window": 0,  # newest keys that are always kept; 0 is as the paper of the policy says
        "share": "",  # "heads": the heads of a layer keep the same keys; "layers": all layers do, as in the release
        "budgets": (),  # larger budgets for preset "adaptive"; if empty, 1.5, 2, 3 and 4 times the first
        "least_agreement": 0.0,  # 5th percentile of agreement under which the budget grows; 0 is the preset's
        "max_thought": 0,  # a thought of this many tokens is compressed by force; 0 sets no limit
        "resample": 0,  # DAPO's dynamic sampling: how many times groups without signal are replaced by others
        "overlong": 0,  # DAPO's punishment of length begins this many tokens before max_new; 0 is off
    })  # fmt: skip
    config.reward = ConfigDict({
        # Kinds with their weights: math, choice, format, reasoning_gym, or a function of your own, "module:function".
        "kinds": (("math", 1.0),),
        "listed": (),  # those of your functions that take lists
        "seconds": 10.0,  # for one call
        "workers": 0,  # processes; 0 is one for each core
    })  # fmt: skip
    # Which arm of Sparse-RL: "naive", "paper", "release", "replay" (the learner sees what the sampler saw) or
    # "adaptive" (the budget grows where the two disagree).
    config.preset = "paper"
    # What differs from the preset, see lt_jax/rl/mismatch_config.py; empty is as the preset says, and "none" is off.
    # Thresholds are texts, such as "1.5", "0.5_5.0" or "2,1".
    config.mismatch = ConfigDict({"rollout_is": "", "rollout_is_threshold": "", "rollout_rs": "",
                                  "rollout_rs_threshold": ""})  # fmt: skip
    for name in ("rollout_is_batch_normalize", "veto", "band", "tail"):
        config.mismatch[name] = FieldReference("", field_type=object)
    config.dense_kl = 0.0  # with replay: the weight of KL(dense || replay), which keeps the model good without a budget
    config.advantage = ""  # "grpo", "dr_grpo" or "rloo"; if empty, that of the loss's own paper
    config.count_rejected = True  # rejected responses are part of the mean of their group
    config.loss = ConfigDict({
        "kind": "grpo",  # or "dr_grpo", "dapo", "gspo", "rloo"
        "clip": (),  # how far the ratio may go below and above 1; empty is the paper's of that loss
        "kl": "k3",  # the estimate of the KL to the reference, or "k1"
        "kl_weight": 1e-4,  # 0 needs no reference
        "entropy_weight": 0.0,
        "length": 0,  # of dr_grpo: the constant that responses are divided by; 0 for all others
        "count_rejected": True,  # rejected responses are part of what the loss is divided by
    })  # fmt: skip
    config.updates = 1  # of the optimizer from each rollout, each from a part of its groups
    config.train = defaults.get_config().train
    del config.train["epochs"]
    config.train.update(steps=100, log_every=1, save_every=10)  # steps are rollouts
    config.optim = defaults.get_config().optim
    config.optim.update(learning_rate=1e-6, warmup=0.0, end_fraction=1.0, b2=0.98, weight_decay=0.1)
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})  # devices along each axis of the mesh
    config.log = ConfigDict({"tensorboard": True, "wandb": ""})  # wandb: name of a Weights & Biases project
    config.compile_cache = "~/.cache/lt_jax/jax"  # folder that keeps compiled programs; if empty, none are kept
    config.export_dtype = ""  # of the exported weights; if empty, train.params_dtype
    return config
