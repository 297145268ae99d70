r"""LightThinker++ learns its actions from rewards, at the smallest size.

Why: a model that was taught to commit, expand and fold has only seen how a teacher does it. Here it learns from its own
trajectories which of them lead to right answers. A trajectory is one response: its advantage is that of its answer
within the group, every token that the model wrote is learned from, and the learner sees what the model saw in that
turn, in the semantics that it was trained with.

    python launch/train.py --config=configs/memory_rl_tiny.py --config.model.path=DIR

DIR is a model that was trained for method "memory". Problems of your own: --config.data.path=problems.jsonl
--config.data.embedded=0. Curves: python launch/curves.py --runs=runs/memory_rl_tiny --out=runs/curves.html

Hardware: two CPU cores. Expected: the run says how many turns were not possible, how often each action was taken, the
peak, and the tokens read again, besides the reward. How far it gets was not measured.
"""

from ml_collections import ConfigDict

from configs import rl_defaults


def get_config() -> ConfigDict:
    config = rl_defaults.get_config()
    config.folder = "runs/memory_rl_tiny"
    # The problems of memory_tiny.py, with the cue of the mode "throughput" before each question.
    config.data.update(embedded=1_000_000, steps=(4, 8), prefix="[early] ")
    # max_new: tokens that the model writes in a whole trajectory
    config.rollout.update(prompts=8, group=8, max_prompt=48, max_new=1024, temperature=1.0, block_steps=16)
    config.memory = ConfigDict({
        "turn": 160,  # the most tokens of a turn
        "turns": 32,  # the most turns
        "malformed": 3,  # so many turns that were not possible, one after the other, end a trajectory
        "row": 2048,  # tokens of a trajectory's training row, with all that the environment fed
        "wrong": 0.1,  # taken from the reward for each turn that was not possible
        "most_wrong": 0.5,  # and in all at most this
        "looks": (1, 4),  # the least and most look-backs of a problem
    })  # fmt: skip
    config.preset = "paper"  # rejects and weighs whole trajectories; sampler and learner agree but for rounding
    config.loss.kl_weight = 0.0
    config.train.update(steps=40, remat="none", accumulate=16, save_every=20)
    config.optim.update(learning_rate=1e-4, weight_decay=0.0)
    config.log.tensorboard = False
    return config
