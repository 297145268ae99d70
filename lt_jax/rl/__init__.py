"""Sparse-RL: learning from rollouts that were sampled inside a KV budget.

    loop.py         config in, trained folder out       step.py             log-probs of a rollout, and its updates
    config.py       what a run is; the presets          mismatch.py         weights and rejection, from xi
    problems.py     what is asked, in which order       mismatch_config.py  their settings, in the words of verl and TRL
    rollout.py      responses from the engine           advantages.py       of responses, within their groups
    experience.py   rollouts as the data of a run       losses.py           GRPO, Dr.GRPO, DAPO, GSPO, RLOO; KL
    batch.py        completions as a batch              metrics.py          what is watched
    sharing.py      ... a prompt with its responses     memory.py           how much a run will take
    rewards.py      rewards, from worker processes      validation.py       held-out problems, greedily
    workers.py, reward_worker.py   those processes
"""

from lt_jax.rl.batch import batch_of
from lt_jax.rl.rewards import RewardConfig, RewardPool, Rewards

__all__ = ["RewardConfig", "RewardPool", "Rewards", "batch_of"]
