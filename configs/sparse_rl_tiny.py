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
    config.data.update(embedded=100_000, steps=(15, 18), families=("gcd", "products"), held_out=64, prefix="")
    config.rollout.update(prompts=8, group=8, max_prompt=128, max_new=384, kv="rkv", budget=64, buffer=16)
    config.loss.kl_weight = 0.0
    config.train.update(steps=50, remat="none", save_every=25, eval_every=25)
    config.optim.update(learning_rate=2e-4, weight_decay=0.0)
    config.log.tensorboard = False
    return config
