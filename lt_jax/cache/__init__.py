"""The cache of keys and values, attention over it, and eviction under a budget."""

from lt_jax.cache.attend import attend
from lt_jax.cache.evict import empty_evicting, evict
from lt_jax.cache.kv_cache import (
    KVCache,
    append,
    cleared,
    close,
    compact,
    copied,
    drop,
    empty,
    grown,
    redated,
    truncated,
    visible,
)

__all__ = [
    "KVCache", "append", "attend", "cleared", "close", "compact", "copied", "drop", "empty", "empty_evicting", "evict",
    "grown", "redated", "truncated", "visible",
]  # fmt: skip
