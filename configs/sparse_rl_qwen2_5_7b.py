r"""Sparse-RL on Qwen2.5-7B.

Why: the largest model of the paper, with its recipe (configs/sparse_rl_recipe.py).

    python launch/train.py --config=configs/sparse_rl_qwen2_5_7b.py --config.model.path=DIR \
        --config.data.path=problems.jsonl

Hardware: eight GPUs of 80 GB or eight TPU v5p chips.
Memory: of the rollout, by footprint: the TPU compiler says 55.7 GiB for 1,024 responses on one v5p (benchmarks/
tpu_memory.py). The learner's programs of this size were not compiled here (benchmarks/tpu_rl_memory.py would); by
arithmetic, weights, moments and the reference take 107 GB, for all devices together.
Expected: the paper's summary says accuracy within 3 % of dense GRPO or better, with 35 to 53 % fewer keys held. It was
not run here, where there is no accelerator: the first line of a run says what it will take on yours.
"""

from ml_collections import ConfigDict

from configs import sparse_rl_recipe


def get_config() -> ConfigDict:
    config = sparse_rl_recipe.get_config()
    config.folder = "runs/sparse_rl_qwen2_5_7b"
    return config
