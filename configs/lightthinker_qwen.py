r"""LightThinker on a Qwen model, all parameters: the settings of the paper (arXiv 2502.15589, section 4.1 and C.3).

Why: teaches a model that reasons at length to write down the gist of every thought and to drop the thought itself.

    python launch/train.py --config=configs/lightthinker_qwen.py --config.model.path=DIR --config.data.path=traces.jsonl

DIR is any Qwen2, Qwen2.5, Qwen3, Llama 3 or DeepSeek-R1-Distill checkpoint folder; traces.jsonl holds Bespoke-Stratos
`conversations`, chat `messages`, OpenMementos or LightThinker's own records. Of the paper: 9 gist tokens, learning rate
2e-5, cosine with 5 % warmup, rows of 4,096 tokens, 80 samples a step. Here samples are packed, so a step has 32 full
rows in place of 80 padded ones, and a sample that is too long is split between thoughts, not cut off.

Hardware: 7B parameters in bfloat16 with float32 AdamW need about 120 GB over all devices, such as a v5p-8 or 8 x 80 GB;
raise train.accumulate where a microbatch does not fit. On CPU take configs/lora_qwen.py and a small model.
Result to expect of the paper's 17k traces and 6 epochs on a 7B model: accuracy within a few points of the same model
trained without compression, peak down by 70 %.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.folder = "runs/lightthinker_qwen"
    config.model = ConfigDict({"path": "", "dtype": "bfloat16"})  # dtype of the computation
    config.lora = ConfigDict({"rank": 0, "alpha": 32.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})
    config.data = ConfigDict({
        "path": "",  # a file, a folder, or several
        "format": "",  # seen from the records if empty
        "held_out": 200,
        "data_dir": "",
        "chat": "qwen",  # qwen, llama, plain, or own: the tokenizer's template
        "system": "",
        "prefix": "",
        "segment": "",  # paragraph, sentence, ready; empty: as cut in the data, else by paragraphs
        "minimum": 0,  # tokens of a thought
        "maximum": 0,
    })  # fmt: skip
    config.batches = ConfigDict({
        "length": 4096,
        "batch": 32,
        "over_length": "split",
        "packing": "best_fit",
        "bins": 64,
        "seed": 0,
        "threads": 8,
        "prefetch": 4,
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
    config.tokens = ConfigDict({"table": "default", "family": "qwen", "trigger": "", "eos": "<|im_end|>", "pad": ""})
    config.train = ConfigDict({
        "steps": 1000,
        "accumulate": 1,
        "remat": "layer",
        "params_dtype": "float32",
        "loss_chunk": 0,
        "attention": "",
        "log_every": 10,
        "eval_every": 100,
        "save_every": 100,
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
    config.export_dtype = "bfloat16"
    return config
