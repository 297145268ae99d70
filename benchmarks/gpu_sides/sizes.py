"""The work of `benchmarks/gpu.py` in numbers, and how many bytes and operations it takes. Needs no package."""

from __future__ import annotations

import dataclasses


@dataclasses.dataclass(frozen=True)
class Shape:
    """A decoder of the Qwen2 kind with tied embeddings."""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def weights(self) -> int:
        """Numbers that a token is multiplied with; the embedding counts once, as the head."""
        wide = (self.heads + 2 * self.kv_heads) * self.head_dim
        layer = self.hidden * wide + wide + self.heads * self.head_dim * self.hidden
        layer += 3 * self.hidden * self.intermediate + 2 * self.hidden
        return self.layers * layer + self.vocab * self.hidden + self.hidden

    @property
    def key_bytes(self) -> int:
        """Bytes of a key and its value in bfloat16, of all layers and kv heads."""
        return self.layers * self.kv_heads * self.head_dim * 2 * 2

    def step_bytes(self, rows: int, keys: float) -> float:
        """Bytes that a decode step of `rows` with so many keys each must read: bfloat16 weights and cache."""
        return 2 * self.weights + rows * keys * self.key_bytes

    def step_flops(self, rows: int, keys: float) -> float:
        """Operations of that step."""
        return rows * (2 * self.weights + 4 * keys * self.layers * self.heads * self.head_dim)

    def train_flops(self, tokens: int) -> float:
        """Operations of a training step by its weights alone, attention and what is computed again not counted."""
        return 6 * self.weights * tokens

    def train_bytes(self) -> float:
        """Bytes that AdamW in float32 moves: weights, two moments and the gradient read, three written, and the
        bfloat16 copy made; with the gradient's own writing 34 for each weight. Activations not counted."""
        return 34 * self.weights


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Sizes of all sections.

    Attributes:
        model: the decoder that decodes and is trained.
        prompt, new: tokens of a request; peer_new: generated ones where a peer decodes.
        rows: of the decode section; many: of the budgets section.
        attention: (rows, tokens) of each work. heads, kv_heads, head_dim: its shape.
        budget, buffer: of R-KV. thought: tokens of a thought in decoding. record: tokens of the recorded row.
        train: rows and tokens of a training step, and what is computed again. long: tokens of "a row of 4,096".
        short, window: generated tokens of a call that does not count, and those beyond it that do.
        memory_keys, memory: tokens of a row, and bytes of all rows' caches, in `memory20`.
        product, copied: side of the matrix product, and bytes of the copy, that the limits are measured with.
        layers: of the model that `numerics` decodes with.
    """

    model: Shape
    attention: tuple[tuple[int, int], ...]
    heads: int
    kv_heads: int
    head_dim: int
    prompt: int
    new: int
    peer_new: int
    rows: tuple[int, ...]
    many: int
    budget: int
    buffer: int
    budget_new: int
    thought: int
    record: int
    train: tuple[tuple[int, int, str], ...]
    long: int
    short: int
    window: int
    memory_keys: int
    memory: float
    product: int
    copied: int
    layers: int


QWEN15 = Shape(vocab=151_936, hidden=1536, intermediate=8960, layers=28, heads=12, kv_heads=2)
FULL = Sizes(
    model=QWEN15, attention=((4, 4096), (1, 16384)), heads=28, kv_heads=4, head_dim=128,
    prompt=64, new=256, peer_new=64, rows=(1, 64, 256, 8), many=64,
    budget=512, buffer=128, budget_new=1024, thought=40, record=16384,
    train=((4, 4096, "layer"), (1, 4096, "none")), long=4096, short=45, window=240, memory_keys=8000, memory=20e9,
    product=8192, copied=2**30, layers=2,
)  # fmt: skip
TINY = Sizes(
    model=Shape(vocab=512, hidden=32, intermediate=64, layers=1, heads=2, kv_heads=1),
    attention=((2, 128), (1, 256)), heads=2, kv_heads=1, head_dim=16, prompt=16, new=8, peer_new=4,
    rows=(1, 2), many=2, budget=24, buffer=12, budget_new=24, thought=6, record=256,
    train=((2, 64, "layer"), (1, 64, "none")), long=48, short=4, window=12, memory_keys=96, memory=50e3,
    product=256, copied=2**20, layers=1,
)  # fmt: skip
