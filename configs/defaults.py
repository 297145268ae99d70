r"""Every setting of a training run (launch/train.py), with its default. The other training configs change some of them.

Settings that a run works out from the others are not listed: how gist tokens see each other during training, which
embedding rows are trained beside adapters, and when the data ends.

This config is not meant to be run by itself, because it names no model and no data.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.folder = "runs/train"  # of the run: checkpoints, metrics, and the trained model in `final`
    config.model = ConfigDict({
        "path": "",  # the checkpoint folder that training starts from
        "dtype": "float32",  # in which the model computes; on accelerators set "bfloat16"
        "scratch": False,  # True starts from random weights; only sizes and tokenizer are taken from the folder
    })  # fmt: skip
    # Adapters; rank 0 trains all parameters instead. `targets` are the linear maps that get an adapter.
    config.lora = ConfigDict({"rank": 0, "alpha": 32.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})
    config.data = ConfigDict({
        # The file or folder of traces. Several are a tuple here and are separated by commas on the command line.
        "path": FieldReference("", field_type=object),
        "format": "",  # of the records, see lt_jax/data/traces.py; if empty, it is recognised by their fields
        "held_out": 0,  # samples that are not trained on but kept to measure eval_loss
        "data_dir": "",  # where the prepared data is kept; if empty, in the run folder
        # Which chat template is used: the tokenizer's ("own"), those of the LightThinker release ("qwen", "llama") or
        # none ("plain").
        "chat": "own",
        "system": "",  # system message where the data has none
        "prefix": "",  # text put before every question
        "suffix": "",  # text put after every question
        # Which assistant turns of a chat are trained: the "last" one or "all". A flag in the data takes precedence.
        "turns": "last",
        # How responses are cut into thoughts: "paragraph", "sentence", "chunk" (of `maximum` tokens) or "ready" (as the
        # data has them). If empty, as the data has them where it does, else by paragraphs.
        "segment": "",
        "minimum": 0,  # tokens that a thought must have; shorter ones are joined with their neighbours
        "maximum": 0,  # tokens that a thought may have; longer ones are cut. 0 sets no limit
        "embedded": 0,  # train on this many of the library's own problems in place of files
        "steps": (6, 12),  # the fewest and the most thoughts of such a problem
        "families": (),  # the kinds of such problems, which take turns; empty takes all kinds
    })  # fmt: skip
    config.batches = ConfigDict({
        "length": 1024,  # tokens of a row
        "batch": 8,  # rows of a step, over all devices and processes
        "over_length": "split",  # samples longer than a row are split between thoughts ("split") or left out ("drop")
        "packing": "best_fit",  # how samples are put together into rows
        "bins": 16,  # rows that are filled at the same time; more of them leave less padding
        "seed": 0,  # of the order of the samples
        "shuffle": True,
        "threads": 2,  # that prepare samples
        "prefetch": 2,  # batches that are prepared in advance
    })  # fmt: skip
    # The compression method. lt_jax/layout/scheme.py explains every field.
    config.scheme = ConfigDict({
        # Or "vanilla" (no compression), "anllm" (with n_gist=1, see_current=True), or, with 0 and False, "memento" and
        # "memory" (LightThinker++, see configs/memory_tiny.py).
        "method": "lightthinker",
        "level": "thought",  # compress each "thought", or every `step` tokens ("token")
        "step": 1,
        "n_gist": 9,  # gist tokens of a thought
        "see_current": False,  # True: gist tokens see their own thought only, not the prompt and the earlier gists
        "gist_rule": "causal",  # how the gist tokens of one thought see each other
        "exclude_continue": False,  # True: an output token disappears when the next one is written
        "prompt": "",  # compress the prompt as well: in chunks of `prompt_step` tokens ("tokens") or by "sentences"
        "prompt_step": 0,
        "prefill_compress": True,  # a compressed prompt loses its chunks while it is read, not only at its end
        "save_template": True,  # the chat template's own tokens are never compressed
        "instruction": "",  # text that is put between a thought and its gist tokens
        # Of memory: "lifetimes" (keys end and are fed again) or "rebuild" (the context is written anew after every
        # action); if empty, "lifetimes".
        "semantics": "",
    })  # fmt: skip
    config.tokens = ConfigDict({
        "table": "default",  # "reference" takes the token ids of the released LightThinker checkpoints of `family`
        "family": "qwen",  # or "llama"
        "trigger": "",  # an existing token that ends thoughts, such as two newlines; if empty, a new token is added
        "eos": "",  # the token that ends an answer; if empty, the tokenizer's own
        "pad": "",  # the padding token; if empty, the tokenizer's own
    })  # fmt: skip
    config.train = ConfigDict({
        "steps": 1000,  # optimizer steps
        "epochs": 0.0,  # passes over the data, in place of steps (set steps=0)
        "accumulate": 1,  # microbatches that the batch of a step is cut into, to save memory
        "remat": "layer",  # what the backward pass computes again: "none", "dots" (all but matrix products), "layer"
        # In which a step computes with the weights. Trained weights and optimizer moments are always stored in float32.
        "params_dtype": "float32",
        "loss_chunk": 0,  # tokens whose logits are in memory at one time; 0 chooses by the size of the vocabulary
        "attention": "",  # a form of attention by name (see lt_jax/attention); if empty, the best for the platform
        "log_every": 10,  # steps between two lines of metrics
        "eval_every": 0,  # steps between two measurements of eval_loss; 0 measures at the end only
        "save_every": 0,  # steps between two checkpoints; 0 saves at the end only
        "keep": 2,  # newest checkpoints that are kept
        "seed": 0,  # of random weights and adapters
    })  # fmt: skip
    # Linear warmup, then a cosine; lt_jax/training/config.py explains every field.
    config.optim = ConfigDict({
        "name": "adamw",  # or "muon"
        "learning_rate": 2e-5,  # at its highest
        "warmup": 0.05,  # steps of warmup; a number below 1 is a share of all steps
        "end_fraction": 0.0,  # the learning rate of the last step as a share of the highest
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
        "clip": 1.0,  # the largest norm of a gradient; 0 does not clip
        "adam_rate": 1.0,  # with muon: the learning rate of what AdamW trains, as a share of Muon's
    })  # fmt: skip
    # Devices along each axis of the mesh; -1 takes all that are left.
    config.mesh = ConfigDict({"data": 1, "fsdp": -1, "tensor": 1, "context": 1})
    config.log = ConfigDict({"tensorboard": True, "wandb": ""})  # wandb: name of a Weights & Biases project
    # For several processes: how many there are, the address of the first one, and the number of this one. On a TPU pod
    # only the first needs to be given.
    config.distributed = ConfigDict({"processes": 1, "coordinator": "", "process": 0})
    config.compile_cache = "~/.cache/lt_jax/jax"  # folder that keeps compiled programs; if empty, none are kept
    config.export_dtype = ""  # of the exported weights; if empty, train.params_dtype
    return config
