r"""The arms of Sparse-RL at the smallest size that shows something.

    python launch/rl_demo.py --config=configs/rl_demo.py        (or: make rl-demo)

Why: to see what a KV budget does to reinforcement learning, and what each correction makes of it. A small model that
was trained for a short time writes out how a greatest common divisor is found, and solves some; it learns from its own
responses.

Hardware: two CPU cores; half a GB besides Python and JAX. Expected: eleven minutes. Right answers with every key kept,
and within the budget, in % of 500: the start 51 and 43, dense 54 and 51, naive 34 and 33 (it collapses), paper 48 and
43, replay 55 and 47; each within 5 either way. With 80 rollouts and three seeds the differences are larger:
docs/performance.md.
"""

from ml_collections import ConfigDict

from configs import base, sparse_rl_tiny

FAMILIES, STEPS = ("gcd",), (3, 4)


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.out = "runs/rl_demo"
    # Or "release", "adaptive" and "replay_kl"; a KV policy of its own may follow, as in "naive:snapkv".
    config.arms = ("dense", "naive", "paper", "replay")
    config.seeds = (0,)
    config.problems = 250  # that each result is measured on; there are some 290 different ones
    config.start = base.get_config()
    config.start.folder = "runs/rl_demo/start"
    config.start.data.update(families=FAMILIES, steps=(3, 6))
    config.start.train.update(steps=400, log_every=100, save_every=0)
    config.start.log.tensorboard = False
    config.run = sparse_rl_tiny.get_config()
    config.run.data.update(families=FAMILIES, steps=STEPS, held_out=0)
    config.run.rollout.update(max_new=330, temperature=1.0)
    config.run.train.update(steps=40, eval_every=0, save_every=10)
    # Of the arm "adaptive": the budgets to come, and the 5th percentile of agreement under which the next one is taken.
    # This model is sure of most of its tokens: the percentile is 0.998 at the start.
    config.adaptive = ConfigDict({"budgets": (128, 160, 224), "least_agreement": 0.997})
    config.dense_kl = 0.05  # of the arm "replay_kl": the weight of KL(dense || replay)
    return config
