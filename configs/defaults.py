r"""Every setting of a supervised run (launch/train.py) with its default; the other training configs change some.

Not here is what a run fills in from the rest: the gist rule, the new tokens' rows for adapters, the end of the data.

Not meant to be run by itself: it names no model and no data.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.folder = "runs/train"
    config.model = ConfigDict({
        "path": "",
        "dtype": "float32",  # of the computation
        "scratch": False,  # random weights in place of the folder's
    })  # fmt: skip
    config.lora = ConfigDict({"rank": 0, "alpha": 32.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})
    config.data = ConfigDict({
        # A file or a folder; several as a tuple here, and with commas between them on the command line.
        "path": FieldReference("", field_type=object),
        "format": "",  # seen from the records if empty
        "held_out": 0,
        "data_dir": "",
        "chat": "own",  # the tokenizer's template; or qwen, llama (as the release has them), plain (none)
        "system": "",
        "prefix": "",
        "turns": "last",  # of a chat, the last assistant turn is trained, or all; flags in the data go before this
        "segment": "",  # paragraph, sentence, chunk (of `maximum` tokens), ready; empty: as in the data, else paragraph
        "minimum": 0,  # least tokens of a thought; shorter ones are joined
        "maximum": 0,  # most, longer ones are cut; 0: no limit
        "embedded": 0,  # or this many embedded problems in place of files
        "steps": (6, 12),  # least and most of their thoughts
        "families": (),  # of them, in turn; empty: all
    })  # fmt: skip
    config.batches = ConfigDict({
        "length": 1024,
        "batch": 8,
        "over_length": "split",
        "packing": "best_fit",
        "bins": 16,
        "seed": 0,
        "shuffle": True,
        "threads": 2,
        "prefetch": 2,
    })  # fmt: skip
    config.scheme = ConfigDict({
        "method": "lightthinker",  # or vanilla, anllm (n_gist 1, see_current True), memento (both 0, False)
        "level": "thought",
        "step": 1,
        "n_gist": 9,
        "see_current": False,
        "gist_rule": "causal",
        "exclude_continue": False,
        "prompt": "",
        "prompt_step": 0,
        "prefill_compress": True,
        "save_template": True,
        "instruction": "",
    })  # fmt: skip
    config.tokens = ConfigDict({
        "table": "default",  # or reference: the ids of the released checkpoints, of family qwen or llama
        "family": "qwen",
        "trigger": "",  # a token to end thoughts with; empty: a new one
        "eos": "",  # empty: the tokenizer's own
        "pad": "",
    })  # fmt: skip
    config.train = ConfigDict({
        "steps": 1000,
        "epochs": 0.0,  # or passes over the data, with steps=0
        "accumulate": 1,
        "remat": "layer",
        "params_dtype": "float32",  # a step's weights; trained ones and their moments are stored in float32 always
        "loss_chunk": 0,
        "attention": "",
        "log_every": 10,
        "eval_every": 0,
        "save_every": 0,
        "keep": 2,
        "seed": 0,
    })  # fmt: skip
    config.optim = ConfigDict({
        "name": "adamw",
        "learning_rate": 2e-5,
        "warmup": 0.05,
        "end_fraction": 0.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip": 1.0,
        "adam_rate": 1.0,
    })  # fmt: skip
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})
    config.log = ConfigDict({"tensorboard": True, "wandb": ""})
    config.distributed = ConfigDict({"processes": 1, "coordinator": "", "process": 0})
    config.compile_cache = "~/.cache/lt_jax/jax"
    config.export_dtype = ""  # train.params_dtype if empty
    return config
