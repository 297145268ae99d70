"""Sizes by name: small ones to train from nothing, and the published checkpoints' (from their config.json)."""

from __future__ import annotations

from lt_jax.models.config import DecoderConfig, Llama3Scaling

TINY = DecoderConfig(
    vocab_size=256, hidden=64, intermediate=128, layers=2, heads=4, kv_heads=2, head_dim=16, model_type="qwen2",
    qkv_bias=True, max_positions=4096,
)  # fmt: skip
SMALL = DecoderConfig(
    vocab_size=2048, hidden=256, intermediate=704, layers=6, heads=8, kv_heads=2, head_dim=32, model_type="qwen2",
    qkv_bias=True, max_positions=32768,
)  # fmt: skip


def _qwen2(hidden, intermediate, layers, heads, kv_heads, *, vocab=151_936, tied=True, theta=1e6, positions=32768):
    return DecoderConfig(
        vocab_size=vocab, hidden=hidden, intermediate=intermediate, layers=layers, heads=heads, kv_heads=kv_heads,
        head_dim=hidden // heads, rope_theta=theta, norm_eps=1e-6, qkv_bias=True, tie_embeddings=tied,
        max_positions=positions, model_type="qwen2",
    )  # fmt: skip


def _qwen3(hidden, intermediate, layers, heads, *, tied=True):
    return DecoderConfig(
        vocab_size=151_936, hidden=hidden, intermediate=intermediate, layers=layers, heads=heads, kv_heads=8,
        head_dim=128, rope_theta=1e6, norm_eps=1e-6, qk_norm=True, tie_embeddings=tied, max_positions=40960,
        model_type="qwen3",
    )  # fmt: skip


def _llama(hidden, intermediate, layers, heads, *, factor, tied):
    return DecoderConfig(
        vocab_size=128_256, hidden=hidden, intermediate=intermediate, layers=layers, heads=heads, kv_heads=8,
        head_dim=hidden // heads, rope_theta=5e5, rope_scaling=Llama3Scaling(factor, 1.0, 4.0, 8192), norm_eps=1e-5,
        tie_embeddings=tied, max_positions=131_072, model_type="llama",
    )  # fmt: skip


PRESETS = {
    "tiny": TINY,
    "small": SMALL,
    "qwen2.5-0.5b": _qwen2(896, 4864, 24, 14, 2),
    "qwen2.5-1.5b": _qwen2(1536, 8960, 28, 12, 2),
    "qwen2.5-3b": _qwen2(2048, 11008, 36, 16, 2),
    "qwen2.5-7b": _qwen2(3584, 18944, 28, 28, 4, vocab=152_064, tied=False),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32),
    "qwen3-8b": _qwen3(4096, 12288, 36, 32, tied=False),
    "llama-3.2-1b": _llama(2048, 8192, 16, 32, factor=32.0, tied=True),
    "llama-3.2-3b": _llama(3072, 8192, 28, 24, factor=32.0, tied=True),
    "llama-3.1-8b": _llama(4096, 14336, 32, 32, factor=8.0, tied=False),
    "r1-distill-qwen-1.5b": _qwen2(1536, 8960, 28, 12, 2, tied=False, theta=1e4, positions=131_072),
    "r1-distill-qwen-7b": _qwen2(3584, 18944, 28, 28, 4, vocab=152_064, tied=False, theta=1e4, positions=131_072),
    "r1-distill-llama-8b": _llama(4096, 14336, 32, 32, factor=8.0, tied=False),
}
