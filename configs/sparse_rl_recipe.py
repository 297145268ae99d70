r"""The recipe of Sparse-RL (arXiv 2601.10079) as its release runs it, for all of its models. Not to be run by itself.

Rollouts of 128 problems x 8 responses of at most 4,096 tokens at temperature 1, sampled under R-KV with 512 + 128
keys; four updates from each; Adam at 1e-6 with betas 0.9 and 0.98, weight decay 0.1 and clipping at 1; k3 to the start
model with weight 1e-4; 100 rollouts of MATH problems of levels 3 to 5. The correction is the paper's: a response with a
token of xi < 1e-4 is rejected, the others' tokens are weighed by min(xi, 1.5). --config.preset=release adds the band
and the normalisation of its code; "naive", "replay" and "adaptive" are the other arms.

Data: one problem a line, {"question": ..., "answer": ...}. The release's are 8,523 MATH problems (SimpleRL-Zoo, level 3
to 5); the answer may be LaTeX and is judged by math-verify on the last \boxed{}.
"""

from ml_collections import ConfigDict

from configs import rl_defaults


def get_config() -> ConfigDict:
    config = rl_defaults.get_config()
    config.model.dtype = "bfloat16"
    config.data.update(
        chat="qwen", prefix="", system="You are a helpful assistant.",
        # The doubled braces are in the release's data.
        suffix="\nPlease reason step by step, and put your final answer within \\boxed{{}}.",
    )  # fmt: skip
    config.rollout.update(
        prompts=128, group=8, max_prompt=1024, max_new=4096, block_steps=128, kv="rkv", budget=512, buffer=128, window=8
    )
    config.updates = 4
    config.train.update(params_dtype="bfloat16", remat="layer", accumulate=32)
    return config
