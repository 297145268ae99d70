"""Learning from rollouts: `batch_of` turns what was decoded into what is learned from."""

from lt_jax.rl.batch import batch_of

__all__ = ["batch_of"]
