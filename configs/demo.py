r"""The demo: does a model still reason when every thought leaves its cache as soon as the thought is finished?

Why: this is the smallest honest run of the whole library. The base model that comes with it (0.82 M parameters, see
configs/base.py) already writes worked solutions. It is trained further twice, for the same number of steps: once on
plain traces, and once on LightThinker rows, in which a thought can no longer be seen once it is written into nine gist
tokens. Then both solve problems that neither was trained on.

    make demo                          (or: python launch/demo.py --config=configs/demo.py)

Hardware: two CPU cores need ten minutes, three and a half of them for each training. Result: vanilla solves 98.8 %,
LightThinker 92.4 % with 31 % of the peak and of the dependency and 25 % of the cache memory. Of problems with longer
chains than either was trained on they solve none and 50 % (results/demo_table.txt).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.out = "runs/demo"
    config.steps = (5, 12)  # the fewest and the most thoughts of a training problem
    # Each family in turn; the two that take longest to learn come twice.
    config.families = ("gcd", "lcm", "products", "gcd", "simple_equations", "lcm", "count_bits")
    config.batches = ConfigDict({"length": 2048, "batch": 1, "bins": 32, "over_length": "drop", "seed": 1})
    config.n_gist = 9
    config.trigger = "\n\n"  # the token that already ends a thought; None would add a new one
    config.train = ConfigDict({"steps": 1000, "log_every": 50, "seed": 1})
    config.train.optim = ConfigDict({
        "name": "muon", "learning_rate": 8e-3, "warmup": 0.1, "end_fraction": 0.02, "weight_decay": 0.01,
    })  # fmt: skip
    config.suites = ConfigDict({
        "main": {"embedded": 1000, "steps": (6, 12), "seed": 1},
        # Longer chains than any that was trained on: the base model has seen up to 14 steps.
        "many_steps": {"embedded": 100, "steps": (15, 18), "seed": 2, "families": ("gcd", "products")},
    })  # fmt: skip
    config.decode = ConfigDict({"rows": 64, "capacity": 1152, "block_steps": 32, "max_new": 1000})
    config.max_thought = 96
    return config
