"""The cache of keys and values, and attention over it."""

from lt_jax.cache.attend import attend
from lt_jax.cache.kv_cache import KVCache, append, close, compact, drop, empty, visible

__all__ = ["KVCache", "append", "attend", "close", "compact", "drop", "empty", "visible"]
