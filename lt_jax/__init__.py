"""lt_jax: reasoning long inside a small attention cache. A key has a lifetime; see `lt_jax.lifetimes`."""

__version__ = "0.1.0"
