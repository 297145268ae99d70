r"""The demo: does a model that reasons still reason when every thought is put away as soon as it is written?

Why: the smallest honest run of the whole library. A base model of 0.82 M parameters that writes worked solutions
(shipped, see configs/base.py) is trained on twice, for the same number of steps: on plain traces, and on LightThinker
rows whose thoughts die once they are written into nine gists. Then both solve problems that neither was trained on.

    make demo                          (or: python launch/demo.py --config=configs/demo.py)

Hardware: two CPU cores, nine minutes, of which three for each student. Result: vanilla 98.7 %, LightThinker 98.4 % with
31 % of the peak and 31 % of the dependency; of chains longer than any trained on 4 % and 53 % (results/demo_table.txt).
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.out = "runs/demo"
    config.steps = (5, 12)  # thoughts of a training problem
    # Each family in turn; the two that take longest to learn come twice.
    config.families = ("gcd", "lcm", "products", "gcd", "simple_equations", "lcm", "count_bits")
    config.batches = ConfigDict({"length": 2048, "batch": 1, "bins": 32, "over_length": "drop", "seed": 1})
    config.n_gist = 9
    config.trigger = "\n\n"  # the token that ends a thought anyway; None would add one
    config.train = ConfigDict({"steps": 1000, "log_every": 50, "seed": 1})
    config.train.optim = ConfigDict({
        "name": "muon", "learning_rate": 8e-3, "warmup": 0.1, "end_fraction": 0.02, "weight_decay": 0.01,
    })  # fmt: skip
    config.suites = ConfigDict({
        "main": {"embedded": 1000, "steps": (6, 12), "seed": 1},
        # Longer chains than any that the students or the base were trained on (which had up to 14 steps).
        "many_steps": {"embedded": 100, "steps": (15, 18), "seed": 2, "families": ("gcd", "products")},
    })  # fmt: skip
    config.decode = ConfigDict({"rows": 64, "capacity": 1152, "block_steps": 32, "max_new": 1000})
    config.max_thought = 96
    return config
