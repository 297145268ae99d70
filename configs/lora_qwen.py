r"""LightThinker on a small Qwen model with LoRA: what fits on a laptop.

Why: low-rank adapters and the rows of the new tokens are all that is trained, so a 0.5B model needs neither gradients
nor optimizer state for its 500 M weights; the export is a plain checkpoint folder with the adapters merged.

    python launch/train.py --config=configs/lora_qwen.py --config.model.path=DIR --config.data.path=traces.jsonl

Hardware: two CPU cores and under 8 GB of memory for Qwen2.5-0.5B; about a minute for each step of 2 x 1,024 tokens.
Result: the loss falls within 20 steps; gists worth trusting take thousands of steps, on an accelerator.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.folder = "runs/lora_qwen"
    config.model = ConfigDict({"path": "", "dtype": "float32"})  # dtype of the computation
    config.lora = ConfigDict({"rank": 16, "alpha": 32.0, "targets": ("q", "k", "v", "o", "gate", "up", "down")})
    config.data = ConfigDict({
        "path": "",  # a file, a folder, or several
        "format": "",  # seen from the records if empty
        "held_out": 0,
        "data_dir": "",
        "chat": "qwen",  # qwen, llama, plain, or own: the tokenizer's template
        "system": "",
        "prefix": "",
        "segment": "",  # paragraph, sentence, ready; empty: as cut in the data, else by paragraphs
        "minimum": 0,  # tokens of a thought
        "maximum": 0,
    })  # fmt: skip
    config.batches = ConfigDict({
        "length": 1024,
        "batch": 2,
        "over_length": "split",
        "packing": "best_fit",
        "bins": 16,
        "seed": 0,
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
    config.tokens = ConfigDict({"table": "default", "family": "qwen", "trigger": "", "eos": "<|im_end|>", "pad": ""})
    config.train = ConfigDict({
        "steps": 200,
        "accumulate": 1,
        "remat": "layer",
        "params_dtype": "float32",
        "loss_chunk": 0,
        "attention": "",
        "log_every": 1,
        "eval_every": 0,
        "save_every": 20,
        "keep": 2,
        "seed": 0,
    })  # fmt: skip
    config.optim = ConfigDict({
        "name": "adamw",
        "learning_rate": 2e-4,
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
