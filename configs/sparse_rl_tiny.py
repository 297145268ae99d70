r"""Sparse-RL on the small base model and problems that come along.

Why: the whole method at a size that two cores can do: rollouts under R-KV, the paper's correction, and validation with
and without the budget.

    python launch/train.py --config=configs/sparse_rl_tiny.py
"""

from ml_collections import ConfigDict

from configs import rl_defaults


def get_config() -> ConfigDict:
    config = rl_defaults.get_config()
    config.folder = "runs/sparse_rl_tiny"
    config.model.path = "lt_jax/assets/base"
    config.data.update(embedded=100_000, steps=(3, 4), families=("products",), held_out=64, prefix="")
    config.rollout.update(prompts=8, group=8, max_prompt=48, max_new=330, kv="rkv", budget=96, buffer=16)
    config.loss.kl_weight = 0.0
    config.train.update(steps=40, remat="none", accumulate=8, save_every=20, eval_every=20)
    config.optim.update(learning_rate=1e-4, weight_decay=0.0)
    config.log.tensorboard = False
    return config
