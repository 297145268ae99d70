r"""LightThinker++ at its smallest: the base model that comes with the library learns to manage its memory.

Why: nothing is needed but two cores, and everything can be looked at. The problems (lt_jax/memory/tasks.py) are long
sums in which a late step needs a detail of an early one. The model is taught by a scripted expert to commit each step
to a summary of three digits, to bring back the one step whose detail it needs, and to put it away again. It learns both
modes, each by its cue.

    python launch/train.py --config=configs/memory_tiny.py
    python launch/train.py --config=configs/memory_tiny.py --config.scheme.semantics=rebuild \
        --config.folder=runs/memory_tiny_rebuild

To train on trajectories of your own, --config.data.path=trajectories.jsonl --config.data.embedded=0.

Hardware: two CPU cores, 5 minutes. Expected: 99 % of the tokens of a trajectory right after 500 steps. What comes of it
is in docs/performance.md: with 800 steps, in `lifetimes` and the mode "throughput", 87 % of unseen problems are solved
(77 to 99.7 % from seed to seed) with a peak that is 29 % of vanilla's, which solves 66 %.
"""

from ml_collections import ConfigDict

from configs import defaults


def get_config() -> ConfigDict:
    config = defaults.get_config()
    config.folder = "runs/memory_tiny"
    config.model.path = "lt_jax/assets/base"
    config.data.update(embedded=10_000_000, steps=(4, 8), turns="all", chat="own")
    # Made up if there are no files: the modes take turns; `budget` is the context that the mode "budget" spends;
    # `edits` whether the expert expands and folds; `looks` the least and most look-backs of a problem.
    config.memory = ConfigDict({"modes": ("throughput", "budget"), "budget": 640, "edits": True, "looks": (1, 4)})
    config.batches.update(length=2560, batch=1, bins=32, over_length="drop", seed=1)
    config.scheme.update(method="memory", n_gist=0)
    config.train.update(steps=1000, log_every=50, seed=1)
    config.optim.update(name="muon", learning_rate=8e-3, warmup=0.1, end_fraction=0.02, weight_decay=0.01)
    return config
