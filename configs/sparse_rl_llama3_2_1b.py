r"""Sparse-RL on Llama-3.2-1B-Instruct.

Why: the Llama of the paper, with its recipe (configs/sparse_rl_recipe.py) and the model's own chat template.

    python launch/train.py --config=configs/sparse_rl_llama3_2_1b.py --config.model.path=DIR \
        --config.data.path=problems.jsonl

Hardware: eight TPU v5e chips, or one GPU of 80 GB with --config.rollout.rows=512.
Memory: by arithmetic, for all devices together: weights, moments and the reference 17 GB, the cache of 1,024 responses
21 GB, where it would be 142 GB without the budget; and 2.5 GB of sampler's weights on every device.
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
