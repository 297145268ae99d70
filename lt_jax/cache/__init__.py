"""The cache of keys and values, attention over it, and eviction under a budget."""

from lt_jax.cache.attend import attend
from lt_jax.cache.evict import empty_evicting, evict
from lt_jax.cache.kv_cache import KVCache, append, cleared, close, compact, drop, empty, visible, wiped

__all__ = [
    "KVCache", "append", "attend", "cleared", "close", "compact", "drop", "empty", "empty_evicting", "evict", "visible",
    "wiped",
]  # fmt: skip
