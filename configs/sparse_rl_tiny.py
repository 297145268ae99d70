r"""Sparse-RL on the small base model and problems that come along.

Why: the whole method at a size that two cores can do. The model solves its problems when every key is kept; what it
learns here is to solve them within a budget of 96 + 16 keys, from rollouts that were sampled there. The learner sees
what the sampler saw (preset "replay"); with --config.preset=paper it sees everything, and is corrected for that.

    python launch/train.py --config=configs/sparse_rl_tiny.py

Hardware: two CPU cores; 0.4 GB besides Python and JAX. Expected: five minutes. The mean reward of responses rises from
0.44 to 0.67 (means of five rollouts). Of held-out problems, answered greedily, it solves 100 % with every key kept and
77 % within the budget.
"""

from ml_collections import ConfigDict

from configs import rl_defaults


def get_config() -> ConfigDict:
    config = rl_defaults.get_config()
    config.folder = "runs/sparse_rl_tiny"
    config.model.path = "lt_jax/assets/base"
    families = ("lcm", "products", "simple_equations", "gcd")
    config.data.update(embedded=100_000, steps=(4, 6), families=families, held_out=128, prefix="")
    # The model is so sure of itself that it must be heated for the responses of a group to differ.
    config.rollout.update(
        prompts=8, group=8, max_prompt=48, max_new=420, temperature=1.5, kv="rkv", budget=96, buffer=16
    )
    config.preset = "replay"
    config.loss.kl_weight = 0.0
    config.train.update(steps=40, remat="none", accumulate=8, save_every=20, eval_every=20)
    config.optim.update(learning_rate=1e-4, weight_decay=0.0)
    config.log.tensorboard = False
    return config
