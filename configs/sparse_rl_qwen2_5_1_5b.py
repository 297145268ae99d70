r"""Sparse-RL on Qwen2.5-1.5B.

Why: the smallest Qwen of the paper, with its recipe (configs/sparse_rl_recipe.py).

    python launch/train.py --config=configs/sparse_rl_qwen2_5_1_5b.py --config.model.path=DIR \
        --config.data.path=problems.jsonl

Hardware: eight TPU v5e chips, or one GPU of 80 GB with --config.rollout.rows=512.
Memory: by footprint (benchmarks/tpu_rl_memory.py, which asks the TPU compiler), on each of eight v5e chips, which have
15.75 GiB: 12.1 GiB at most, during an update. Weights, moments and the reference take 2.6 of it, the sampler's weights
2.9, the cache of 128 of the 1,024 responses 2.3, where it would be 17.7 without the budget, and the update 4.3.
Expected: the paper's summary says accuracy within 3 % of dense GRPO or better, with 35 to 53 % fewer keys held. It was
not run here, where there is no accelerator: the first line of a run says what it will take on yours.
"""

from ml_collections import ConfigDict

from configs import sparse_rl_recipe


def get_config() -> ConfigDict:
    config = sparse_rl_recipe.get_config()
    config.folder = "runs/sparse_rl_qwen2_5_1_5b"
    return config
