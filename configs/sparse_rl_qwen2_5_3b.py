r"""Sparse-RL on Qwen2.5-3B.

Why: the model of the paper's launch scripts, with its recipe (configs/sparse_rl_recipe.py).

    python launch/train.py --config=configs/sparse_rl_qwen2_5_3b.py --config.model.path=DIR \
        --config.data.path=problems.jsonl

Hardware: four GPUs of 80 GB or four TPU v5p chips. The paper used four of 141 GB.
Memory: by arithmetic, for all devices together: weights, moments and the reference 43 GB, the cache of 1,024 responses
24 GB, where it would be 160 GB without the budget; and 6 GB of sampler's weights on every device.
Expected: the paper's summary says accuracy within 3 % of dense GRPO or better, with 35 to 53 % fewer keys held. It was
not run here, where there is no accelerator: the first line of a run says what it will take on yours.
"""

from ml_collections import ConfigDict

from configs import sparse_rl_recipe


def get_config() -> ConfigDict:
    config = sparse_rl_recipe.get_config()
    config.folder = "runs/sparse_rl_qwen2_5_3b"
    return config
