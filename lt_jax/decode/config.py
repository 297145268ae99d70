"""What decoding is asked to do, and what it hands back."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.cache.policies import Eviction
from lt_jax.decode.sample import Sampling
from lt_jax.errors import UserError
from lt_jax.layout.row import Row
from lt_jax.lifetimes import Lifetimes


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
        buffer: steps of a compiled block; rows are handed back and refilled, and tokens streamed, between blocks.
        sampling: see `Sampling`.
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
    buffer: int = 32
    sampling: Sampling = Sampling()
    max_thought: int | None = None
    stop: tuple[int, ...] = ()
    closers: int | None = None
    eviction: Eviction | None = None
    horizon: int = 0
    evictors: int | None = None
    patience: int = 4
    implementation: str | None = None

    def __post_init__(self):
        for name in ("rows", "capacity", "buffer"):
            if getattr(self, name) < 1:
                raise UserError(f"decode.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.max_thought is not None and self.max_thought < 1:
            raise UserError(f"decode.max_thought is {self.max_thought}; it must be 1 or more, or None")
        object.__setattr__(self, "stop", tuple(self.stop))
        for name in ("closers", "evictors"):
            if (value := getattr(self, name)) is not None and not 1 <= value <= self.rows:
                raise UserError(f"decode.{name} is {value}; it must be from 1 to decode.rows ({self.rows})")
        if self.horizon < 0:
            raise UserError(f"decode.horizon is {self.horizon}; it must be 0 (records nothing) or more")
        if self.horizon and self.eviction is None:
            raise UserError("decode.horizon is set, but without decode.eviction nothing is recorded")

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


@dataclasses.dataclass(frozen=True)
class Request:
    """A prompt to go on from.

    Attributes:
        prompt: ids, or a `Row` of `layout.build_prompt` where the prompt itself is compressed.
        max_new: most tokens to generate; gists, instruction and output tokens are free.
        seed: of this row's own random numbers.
        id: handed back with the completion; None is the place among the requests.
    """

    prompt: Sequence[int] | Row
    max_new: int = 1024
    seed: int = 0
    id: object = None


@dataclasses.dataclass(frozen=True)
class Completion:
    """A finished row. N response tokens, everything that was fed or sampled after the prompt; numpy.

    Attributes:
        id: of the request.
        prompt: [P] int32, the prompt as fed.
        tokens: [N] int32, the last one (EOS, if it came) included.
        forced: [N] bool, fed and not sampled: gists, instruction, output tokens, and what ended a thought by force.
        written: [N] bool, what the text of the response is made of: the sampled tokens, and what ended a thought by
            force in place of one, but not what must follow that. Streaming shows the same.
        logp: [N] float32, log-prob of the sampled tokens, see `decode.sample`; 0 where forced.
        visible: [N] int32, keys the token saw, itself included.
        held: [N] int32, keys in the cache while it was fed. Closing a thought holds X + kept + thought + trigger +
            gists + output token (LightThinker 5.1, Peak). Under an eviction, where layers and heads keep keys of their
            own, both are float64: means over all layers and kv heads.
        gist: [N] bool, gist token (or anchor).
        closings: [K] int32, places in `tokens` of what closed each thought that was compressed.
        death, since, block: [P + N] int32, the lifetimes as they were, see `lifetimes.Lifetimes`.
        finish: "eos", "stop" (a stop id), "length" (`max_new`), "capacity", "positions" (the model's, or the horizon)
            or "nan": the logits of the next token were not numbers (NaN, infinite, or all minus infinity), so there is
            no such token; the response may then be empty.
        seconds: from the start of its prefill to its end.
        gist_rule: of the scheme.
        prompt_held: most keys held while the prompt was read: all of them, unless an eviction cut it down; then the
            mean over layers.
        record: [Lr, Kr, T] int32, the deaths that an eviction gave, where they were recorded, NEVER from P + N on; Lr
            and Kr are 1 where layers or heads share their choice. A JAX array: it stays on the device until somebody
            asks for `evicted` or `lifetimes`. `death` knows the scheme's own deaths alone.
        unrecorded: keys may have been evicted whose deaths nobody wrote down (`DecodeConfig.horizon` is 0).
    """

    id: object
    prompt: np.ndarray
    tokens: np.ndarray
    forced: np.ndarray
    written: np.ndarray
    logp: np.ndarray
    visible: np.ndarray
    held: np.ndarray
    gist: np.ndarray
    closings: np.ndarray
    death: np.ndarray
    since: np.ndarray
    block: np.ndarray
    finish: str
    seconds: float
    gist_rule: str = "causal"
    prompt_held: float = 0
    record: jax.Array | None = None
    unrecorded: bool = False

    @property
    def prompt_length(self) -> int:
        return len(self.prompt)

    @property
    def compressions(self) -> int:
        """Thoughts that were compressed."""
        return len(self.closings)

    @property
    def row(self) -> np.ndarray:
        """[P + N] int32, prompt and response."""
        return np.concatenate([self.prompt, self.tokens])

    @property
    def evicted(self) -> np.ndarray | None:
        """[Lr, Kr, P + N] int32, the recorded deaths, fetched from the device; None where none were recorded."""
        return None if self.record is None else np.asarray(self.record)[..., : len(self.row)]

    def check_recorded(self) -> None:
        """Raises UserError if keys may have been evicted and nobody recorded their deaths."""
        if self.unrecorded:
            raise UserError(f"request {self.id}: its evictions were not recorded; set decode.horizon to record them")

    def lifetimes(self) -> Lifetimes:
        """Of prompt and response as a batch of one: a masked forward under them sees what decoding saw.

        Deaths are [1, P + N], or [1, Lr, Kr, P + N] where evictions were recorded.

        Raises:
            UserError: as `check_recorded`.
        """
        self.check_recorded()
        block = None if self.gist_rule == "causal" else jnp.asarray(self.block)[None]
        death = self.death[None]
        if self.record is not None:
            death = np.minimum(self.evicted, self.death)[None]
        return Lifetimes(jnp.asarray(death), jnp.asarray(self.since)[None], block, self.gist_rule)
