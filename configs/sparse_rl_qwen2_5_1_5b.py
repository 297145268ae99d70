r"""Sparse-RL on Qwen2.5-1.5B.

Why: the smallest Qwen of the paper, with its recipe (configs/sparse_rl_recipe.py).

    python launch/train.py --config=configs/sparse_rl_qwen2_5_1_5b.py --config.model.path=DIR \
        --config.data.path=problems.jsonl

Hardware: eight TPU v5e chips, or one GPU of 80 GB with --config.rollout.rows=512.
Memory: by arithmetic, for all devices together: weights, moments and the reference 22 GB, the cache of 1,024 responses
19 GB, where it would be 125 GB without the budget; and 3 GB of sampler's weights on every device. Of the rollout alone
the TPU compiler says 13.9 GiB for 512 responses on one v5e (results/tpu_memory.json).
Expected: the paper's summary says accuracy within 3 % of dense GRPO or better, with 35 to 53 % fewer keys held. It was
not run here, where there is no accelerator: the first line of a run says what it will take on yours.
"""

from ml_collections import ConfigDict

from configs import sparse_rl_recipe


def get_config() -> ConfigDict:
    config = sparse_rl_recipe.get_config()
    config.folder = "runs/sparse_rl_qwen2_5_1_5b"
    return config
