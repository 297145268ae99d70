"""How an engine decodes: what is fixed when it is made, and compiled in."""

from __future__ import annotations

import dataclasses

from lt_jax.cache.policies import Eviction
from lt_jax.decode.sample import Sampling
from lt_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """How an engine decodes; all of it is fixed when the engine is made, and compiled in.

    Attributes:
        rows: rows decoded side by side.
        capacity: most keys a row may hold at once: prompt, kept and current thought together. A row that would need
            more is finished as "capacity". With an `eviction` its budget + buffer counts instead, see `most_keys`.
        eviction: a KV budget: a row that is full is cut down to its budget and goes on. None evicts nobody, and neither
            does policy "full": it stands for no eviction with a capacity of that budget + buffer.
        horizon: with an eviction, indices of a row whose deaths are recorded (`Completion.evicted`); a row that reaches
            it is finished as "positions". 0 records nothing. Whatever it is, and with an eviction or without, a row is
            finished so at the model's last position (`DecoderConfig.max_positions`), as in vLLM.
        evictors: rows cut down in one pass; None is one in 8 of `rows`, see `evicting_rows`.
        block_steps: steps of a compiled block; rows are handed back and refilled, and tokens streamed, between blocks.
        sampling: see `Sampling`; of requests that do not bring their own.
        listed: most ids that a request may name in `stop`, and in `never`.
        top_logps: so many of the most probable tokens are handed back with their log-probs at every step.
        max_thought: most tokens of a thought before the one that closes it; then it is closed by force. None: no limit.
        stop: ids that end a row besides EOS.
        closers: rows whose thoughts are closed in one pass; None is one in 16 of `rows`, see `closing_rows`.
        patience: steps a row may wait for others to share that pass.
        implementation: of products and attention, "native" (the CPU kernels of `lt_jax.native`), "plain" (XLA) or
            "pallas" (XLA, and the TPU kernel for the attention of steps; passes of several tokens, which it is not
            made for, are as in "plain"). None is the best for the platform; a name never falls back.
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
        """Rows whose thoughts are closed in one pass: `closers`, or what its None stands for."""
        return max(1, self.rows // 16) if self.closers is None else self.closers

    @property
    def evicting_rows(self) -> int:
        """Rows cut down in one pass: `evictors`, or what its None stands for."""
        return max(1, self.rows // 8) if self.evictors is None else self.evictors

    @property
    def most_keys(self) -> int:
        """Most keys that a layer of a row holds at once: the capacity, or what the eviction makes of it."""
        return self.capacity if self.eviction is None else self.eviction.most + self.eviction.buffer

    @property
    def evicts(self) -> Eviction | None:
        """The eviction, if it ever evicts a key: policy "full" does not."""
        return None if self.eviction is None or self.eviction.policy == "full" else self.eviction

    @property
    def recorded(self) -> int:
        """Indices of a row whose deaths are recorded."""
        return self.horizon if self.evicts is not None else 0
