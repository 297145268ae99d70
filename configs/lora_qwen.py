r"""LightThinker on a small Qwen model with LoRA, which fits on a laptop.

Why: only low-rank adapters and the embeddings of the new tokens are trained, so a 0.5B model needs neither gradients
nor optimizer state for its 500 M weights. The export is an ordinary checkpoint folder with the adapters merged in.

    python launch/train.py --config=configs/lora_qwen.py --config.model.path=DIR --config.data.path=traces.jsonl

Hardware: Qwen2.5-0.5B needs two CPU cores and less than 8 GB of memory, and about a minute for each step of 2 x 1,024
tokens. Result: the loss falls within 20 steps. Gists that can be relied on take thousands of steps, on an accelerator.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.folder = "runs/lora_qwen"
    config.lora.rank = 16
    config.batches.update(length=1024, batch=2)
    config.train.update(steps=200, log_every=1, save_every=20)
    config.optim.learning_rate = 2e-4
    config.export_dtype = "bfloat16"
    return config
