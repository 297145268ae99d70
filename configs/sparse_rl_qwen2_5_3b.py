r"""Sparse-RL on Qwen2.5-3B.

Why: the model of the paper's launch scripts, with its recipe (configs/sparse_rl_recipe.py).

    python launch/train.py --config=configs/sparse_rl_qwen2_5_3b.py --config.model.path=DIR \
        --config.data.path=problems.jsonl

Hardware: four GPUs of 80 GB or four TPU v5p chips. The paper used four of 141 GB.
Memory: by footprint (benchmarks/tpu_rl_memory.py, which asks the TPU compiler), on each of four v5p chips, which have
88 GiB: 34.3 GiB at most, during an update. Weights, moments and the reference take 10.2 of it, the sampler's weights
5.8, the cache of 256 of the 1,024 responses 6.0, where it would be 45.6 without the budget, and the update 12.4.
Expected: the paper's summary says accuracy within 3 % of dense GRPO or better, with 35 to 53 % fewer keys held. It was
not run here, where there is no accelerator: the first line of a run says what it will take on yours.
"""

from ml_collections import ConfigDict

from configs import sparse_rl_recipe


def get_config() -> ConfigDict:
    config = sparse_rl_recipe.get_config()
    config.folder = "runs/sparse_rl_qwen2_5_3b"
    return config
