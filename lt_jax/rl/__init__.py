"""Learning from rollouts: `batch_of` turns what was decoded into what is learned from, `RewardPool` rewards it."""

from lt_jax.rl.batch import batch_of
from lt_jax.rl.rewards import RewardConfig, RewardPool, Rewards

__all__ = ["RewardConfig", "RewardPool", "Rewards", "batch_of"]
