"""The settings of an engine that are fixed when it is made, because they are compiled into its programs."""

from __future__ import annotations

import dataclasses

from lt_jax.cache.policies import Eviction
from lt_jax.decode.sample import Sampling
from lt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How an engine decodes. Everything here is fixed when the engine is made, and is compiled into its programs.

    Attributes:
        rows: how many rows are decoded side by side.
        capacity: the most keys that the cache of a row may hold at once: prompt, kept tokens and current thought
            together. A row that needs more ends with finish "capacity". With an `eviction`, its budget + buffer is the
            limit instead, see `most_keys`.
        eviction: a KV budget: a row that is full is cut down to its budget and continues. With None, no key is ever
            evicted. The policy "full" evicts none either; it only sets the capacity to its budget + buffer.
        horizon: with an eviction, how many tokens of a row have the time of their eviction recorded (see
            `Completion.evicted`); 0 records nothing. A row that reaches this length ends with finish "positions". So
            does, with any settings, a row at the model's last position (`DecoderConfig.max_positions`), as in vLLM.
        evictors: how many full rows are cut down in one pass. None is an eighth of `rows`, see `evicting_rows`.
        block_steps: how many steps a compiled block runs. Between blocks, finished rows are handed back, free ones are
            given new requests, and tokens are streamed.
        sampling: the `Sampling` of requests that do not bring their own.
        listed: the most ids that a request may name in `stop`, and in `never`.
        top_logps: how many of the most probable tokens are returned with their log-probs at every step.
        max_thought: a thought of this many tokens is closed by force. With None there is no limit.
        stop: ids that end a row, besides the end-of-sequence token.
        closers: how many rows have their thoughts closed in one pass. None is a sixteenth of `rows`, see
            `closing_rows`.
        patience: how many steps a row may wait for others to share that pass.
        implementation: of matrix products and attention. "native" are the CPU kernels of `lt_jax.native`, and "plain"
            is XLA. "pallas" is XLA with the TPU kernel for the attention of single steps; passes of several tokens,
            which that kernel is not made for, are as in "plain". "triton" is XLA with the kernels for NVIDIA GPUs for
            all attention. None chooses the best for the platform. An implementation that is named is never replaced by
            another one.
        graphs: on an NVIDIA GPU, whether a decode block is one CUDA graph, see `cuda.graphs`. Nothing but speed depends
            on it; False for profilers, which do not look into graphs, or for a driver that has trouble with them.
    """

    rows: int = 1
    capacity: int = 4096
    block_steps: int = 32
    sampling: Sampling = Sampling()
    listed: int = 8
    top_logps: int = 0
    max_thought: int | None = None
    stop: tuple[int, ...] = ()
    closers: int | None = None
    eviction: Eviction | None = None
    horizon: int = 0
    evictors: int | None = None
    patience: int = 4
    implementation: str | None = None
    graphs: bool = True

    def __post_init__(self):
        for name in ("rows", "capacity", "block_steps"):
            if getattr(self, name) < 1:
                raise UserError(f"decode.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.max_thought is not None and self.max_thought < 1:
            raise UserError(f"max_thought is {self.max_thought}; it must be 1 or more, or None")
        object.__setattr__(self, "stop", tuple(self.stop))
        for name in ("closers", "evictors"):
            if (value := getattr(self, name)) is not None and not 1 <= value <= self.rows:
                raise UserError(f"DecodeConfig.{name} is {value}; it must be from 1 to rows ({self.rows})")
        for name in ("listed", "top_logps"):
            if getattr(self, name) < 0:
                raise UserError(f"DecodeConfig.{name} is {getattr(self, name)}; it must be 0 or more")
        if self.horizon < 0:
            raise UserError(f"DecodeConfig.horizon is {self.horizon}; it must be 0 (records nothing) or more")
        if self.horizon and self.eviction is None:
            raise UserError("DecodeConfig.horizon is set, but without an eviction nothing is recorded")

    @property
    def closing_rows(self) -> int:
        """How many rows have their thoughts closed in one pass: `closers`, or its default."""
        return max(1, self.rows // 16) if self.closers is None else self.closers

    @property
    def evicting_rows(self) -> int:
        """How many rows are cut down in one pass: `evictors`, or its default."""
        return max(1, self.rows // 8) if self.evictors is None else self.evictors

    @property
    def most_keys(self) -> int:
        """The most keys that a layer of a row holds at once: the capacity, or with an eviction its budget + buffer."""
        return self.capacity if self.eviction is None else self.eviction.most + self.eviction.buffer

    @property
    def evicts(self) -> Eviction | None:
        """The eviction, if it ever evicts a key. The policy "full" does not, and gives None."""
        return None if self.eviction is None or self.eviction.policy == "full" else self.eviction

    @property
    def recorded(self) -> int:
        """How many tokens of a row have the time of their eviction recorded."""
        return self.horizon if self.evicts is not None else 0
