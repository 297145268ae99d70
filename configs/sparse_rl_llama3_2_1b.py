r"""Sparse-RL on Llama-3.2-1B-Instruct.

Why: the Llama of the paper, with its recipe (configs/sparse_rl_recipe.py) and the model's own chat template.

    python launch/train.py --config=configs/sparse_rl_llama3_2_1b.py --config.model.path=DIR \
        --config.data.path=problems.jsonl

Hardware: eight TPU v5e chips, or one GPU of 80 GB with --config.rollout.rows=512.
Memory: by footprint (benchmarks/tpu_rl_memory.py, which asks the TPU compiler), on each of eight v5e chips, which have
15.75 GiB: 12.4 GiB at most, during a rollout. Weights, moments and the reference take 2.1 of it, the sampler's weights
2.3, the cache of 128 of the 1,024 responses 2.6, where it would be 20.3 without the budget, and the decode block 5.4.
Expected: the paper's summary says accuracy within 3 % of dense GRPO or better, with 35 to 53 % fewer keys held. It was
not run here, where there is no accelerator: the first line of a run says what it will take on yours.
"""

from ml_collections import ConfigDict

from configs import sparse_rl_recipe


def get_config() -> ConfigDict:
    config = sparse_rl_recipe.get_config()
    config.folder = "runs/sparse_rl_llama3_2_1b"
    config.data.chat = "own"
    return config
