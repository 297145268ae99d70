r"""LightThinker on a Qwen model, with all parameters trained, as in the paper (arXiv 2502.15589, sections 4.1 and C.3).

Why: this teaches a model that reasons at length to write down the gist of every thought and to drop the thought itself.

    python launch/train.py --config=configs/lightthinker_qwen.py --config.model.path=DIR --config.data.path=traces.jsonl

DIR is the folder of any Qwen2, Qwen2.5, Qwen3, Llama 3 or DeepSeek-R1-Distill checkpoint. Its own chat template and
end-of-turn token are used; a base model without a template needs --config.data.chat=qwen, llama or plain. traces.jsonl
holds Bespoke-Stratos `conversations`, chat `messages`, OpenMementos or LightThinker's own records.

These are the paper's settings: 9 gist tokens, learning rate 2e-5 with 5 % warmup and a cosine, rows of 4,096 tokens.
The paper pads 80 samples a step; here samples are packed, so that a step has 32 full rows instead. A sample that is too
long is split between thoughts and not cut off. The paper trains for 6 epochs: --config.train.steps=0
--config.train.epochs=6.

Hardware: 7B parameters in bfloat16 with float32 AdamW need about 120 GB over all devices, such as a v5p-8 or 8 x 80 GB.
Raise train.accumulate where a microbatch does not fit. On a CPU use configs/lora_qwen.py and a small model instead.
Expected result, from the paper: with its 17k traces, 6 epochs and a 7B model, accuracy within a few points of the same
model trained without compression, and a peak that is lower by 70 %.
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
