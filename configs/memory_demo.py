r"""Trajectories of LightThinker++ to look at, beside the same thoughts of methods without actions.

    python launch/memory_demo.py --config=configs/memory_demo.py        (or: make memory-demo)

Why: to see what the actions do to what is visible, in either semantics, before a model is trained. The problems are
those that come along, and what is written is a script: it commits every step, and looks at the first one again before
it answers. What it costs is counted from the rows that a model would be trained and decoded with.

Hardware: any; a few seconds. Expected: the peak of the scripts is 40 % of vanilla's, `rebuild` reads eight times
as many tokens again as `lifetimes`, and runs/memory_demo/report.html shows every turn.
"""

from ml_collections import ConfigDict


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.out = "runs/memory_demo"  # the folder of the trajectories (one JSONL file for each method) and of the report
    config.questions = 4
    config.steps = (8, 12)  # the fewest and the most steps of a problem
    config.families = ("gcd", "lcm", "products", "simple_equations")
    config.n_gist = 2  # of LightThinker, which is drawn beside them
    # Trajectories of models, JSONL files with commas between them: each is one method more, named by its file.
    config.logs = ""
    return config
