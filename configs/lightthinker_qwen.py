r"""LightThinker on a Qwen model, all parameters: the settings of the paper (arXiv 2502.15589, section 4.1 and C.3).

Why: teaches a model that reasons at length to write down the gist of every thought and to drop the thought itself.

    python launch/train.py --config=configs/lightthinker_qwen.py --config.model.path=DIR --config.data.path=traces.jsonl

DIR is any Qwen2, Qwen2.5, Qwen3, Llama 3 or DeepSeek-R1-Distill checkpoint folder, whose own chat template and end of
turn are taken (for a base model without a template: --config.data.chat=qwen, llama or plain); traces.jsonl holds
Bespoke-Stratos `conversations`, chat `messages`, OpenMementos or LightThinker's own records. Of the paper: 9 gist
tokens, learning rate 2e-5, cosine with 5 % warmup, rows of 4,096 tokens, 80 samples a step. Here samples are packed, so
a step has 32 full rows in place of 80 padded ones; a sample that is too long is split between thoughts, not cut off.
The paper's length of 6 epochs is --config.train.steps=0 --config.train.epochs=6.

Hardware: 7B parameters in bfloat16 with float32 AdamW need about 120 GB over all devices, such as a v5p-8 or 8 x 80 GB;
raise train.accumulate where a microbatch does not fit. On CPU take configs/lora_qwen.py and a small model.
Result to expect of the paper's 17k traces and 6 epochs on a 7B model: accuracy within a few points of the same model
trained without compression, peak down by 70 %.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.folder = "runs/lightthinker_qwen"
    config.model.dtype = "bfloat16"
    config.data.held_out = 200
    config.batches.update(length=4096, batch=32, bins=64, threads=8, prefetch=4)
    config.train.update(steps=1000, log_every=10, eval_every=100, save_every=100)
    config.optim.learning_rate = 2e-5
    config.export_dtype = "bfloat16"
    return config
