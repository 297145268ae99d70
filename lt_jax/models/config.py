"""What a decoder is: sizes, RoPE, biases, norms, adapters. Frozen and hashable: it can be static under `jit`."""

from __future__ import annotations

import dataclasses

from lt_jax.errors import UserError

VOCAB_MULTIPLE = 128
LINEAR_MAPS = ("q", "k", "v", "o", "gate", "up", "down")
DTYPES = ("float32", "bfloat16", "float16")


@dataclasses.dataclass(frozen=True)
class Llama3Scaling:
    """RoPE scaling of Llama 3.1 on: long wavelengths are slowed by `factor`, short ones kept, between blended."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_positions: int


@dataclasses.dataclass(frozen=True)
class YarnScaling:
    """RoPE scaling of YaRN (Peng et al. 2023), as `transformers` computes it.

    Pairs that turn more than `beta_fast` times within `original_max_positions` keep their frequency, those that turn
    less than `beta_slow` times are slowed by `factor`, and those between are blended.

    Attributes:
        attention_factor: multiplies cos and sin; None takes what `factor`, `mscale` and `mscale_all_dim` give.
        mscale, mscale_all_dim: used together, or None.
        truncate: the blend begins and ends at whole pairs.
    """

    factor: float
    original_max_positions: int
    attention_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    mscale: float | None = None
    mscale_all_dim: float | None = None
    truncate: bool = True


@dataclasses.dataclass(frozen=True)
class LoraConfig:
    """Low-rank adapters (Hu et al. 2021): y = x W + (alpha / rank) x A B on every linear map named in `targets`.

    `rows` is `(first id, count)` of the vocabulary rows that are trained beside the adapters, for new tokens: the rest
    of the embedding stays frozen and costs no gradient and no optimizer state.
    """

    rank: int = 16
    alpha: float = 32.0
    targets: tuple[str, ...] = LINEAR_MAPS
    rows: tuple[int, int] | None = None

    def __post_init__(self):
        unknown = [t for t in self.targets if t not in LINEAR_MAPS]
        if unknown:
            raise UserError(f"lora.targets: unknown {unknown}; a target is one of {', '.join(LINEAR_MAPS)}")
        if self.rank < 1:
            raise UserError(f"lora.rank is {self.rank}; it must be 1 or more")
        object.__setattr__(self, "targets", tuple(self.targets))
        object.__setattr__(self, "rows", tuple(self.rows) if self.rows else None)


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """A decoder-only transformer of the Qwen2 / Qwen3 / Llama 3 kind.

    Attributes:
        vocab_size: real number of token ids; ids at or above it exist only as padding and get logit -inf.
        vocab_rows: rows of the embedding, a multiple of 128; None means `vocab_size` rounded up, see `vocab_padded`.
        hidden, intermediate, layers, heads, kv_heads, head_dim: sizes; `heads` is a multiple of `kv_heads`.
        rope_theta, rope_scaling: rotary base, and Llama 3 or YaRN scaling, or None.
        qkv_bias: q, k and v have biases (Qwen2). qk_norm: RMS norm of q and k per head (Qwen3).
        tie_embeddings: the head is the embedding transposed.
        max_positions: length the model was made for, or is scaled to. The forward pass does not depend on it; decoding
            ends a row there and refuses a prompt that leaves no room before it.
        dtype: compute dtype; norms, softmax and logits are float32 whatever it is.
        lora: adapters, or None.
        model_type: Hugging Face family, "qwen2", "qwen3" or "llama".
        extra: JSON text of the config.json this came from, kept for export.
    """

    vocab_size: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_rows: int | None = None
    rope_theta: float = 10000.0
    rope_scaling: Llama3Scaling | YarnScaling | None = None
    norm_eps: float = 1e-6
    qkv_bias: bool = False
    qk_norm: bool = False
    tie_embeddings: bool = True
    max_positions: int = 32768
    dtype: str = "float32"
    lora: LoraConfig | None = None
    model_type: str = "llama"
    extra: str = "{}"

    def __post_init__(self):
        for name in ("vocab_size", "hidden", "intermediate", "layers", "heads", "kv_heads", "head_dim"):
            if getattr(self, name) < 1:
                raise UserError(f"model config: {name} is {getattr(self, name)}; it must be 1 or more")
        if self.heads % self.kv_heads:
            raise UserError(f"model config: heads ({self.heads}) is not a multiple of kv_heads ({self.kv_heads})")
        if self.head_dim % 2:
            raise UserError(f"model config: head_dim is {self.head_dim}; RoPE needs an even one")
        if self.vocab_padded < self.vocab_size:
            raise UserError(f"model config: vocab_rows ({self.vocab_padded}) is below vocab_size ({self.vocab_size})")
        if self.dtype not in DTYPES:
            raise UserError(f"model config: dtype is {self.dtype!r}; it is one of {', '.join(DTYPES)}")
        if self.lora and self.lora.rows and sum(self.lora.rows) > self.vocab_size:
            raise UserError(f"LoraConfig.rows {self.lora.rows} reach past the vocabulary of {self.vocab_size}")

    @property
    def vocab_padded(self) -> int:
        """Rows of the embedding: `vocab_rows`, or what its None stands for."""
        return round_up(self.vocab_size) if self.vocab_rows is None else self.vocab_rows

    def replace(self, **changes) -> DecoderConfig:
        """A copy with `changes`."""
        return dataclasses.replace(self, **changes)


def round_up(n: int, multiple: int = VOCAB_MULTIPLE) -> int:
    """The least multiple of `multiple` that is not below n."""
    return -(-n // multiple) * multiple
