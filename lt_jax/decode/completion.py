"""What decoding returns for a request."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.errors import UserError
from lt_jax.lifetimes import Lifetimes


@dataclasses.dataclass(frozen=True)
class Completion:
    """A finished row. N response tokens, everything that was fed or sampled after the prompt; numpy.

    Attributes:
        id: of the request. sample: which of its `n` samples.
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
        is_gist: [N] bool, gist token (or anchor).
        closings: [K] int32, places in `tokens` of what closed each thought that was compressed.
        death, since, block: [P + N] int32, the lifetimes as they were, see `lifetimes.Lifetimes`.
        finish: "eos", "stop" (a stop id or a stop text), "length" (`max_new`), "capacity", "positions" (the model's, or
            the horizon), "cancelled", "refused" (see `why`) or "nan": the logits of the next token were not numbers
            (NaN, infinite, or all minus infinity), so there is no such token; the response may then be empty.
        seconds: from the start of its prefill to its end.
        gist_rule: of the scheme.
        prompt_held: most keys held while the prompt was read: all of them, unless an eviction cut it down; then the
            mean over layers.
        seed: what the row drew its tokens with.
        read, reused, read_again: tokens of the prompt, see `event.Usage`.
        why: why a request was refused.
        stop_text: the text of the request's `stop_text` that ended the row.
        top_ids, top_logps: [N, K] int32 and float32, the most probable tokens in place of each token, where the config
            asks for them; they are of the distribution sampled from. -1 where the token was forced.
        record: [Lr, Kr, T] int32, the deaths that an eviction gave, where they were recorded, NEVER from P + N on; Lr
            and Kr are 1 where layers or heads share their choice. A JAX array: it stays on the device until
            `evicted` or `lifetimes` is asked for. `death` has the scheme's own deaths only.
        position: [P + N] int32, RoPE positions, where they are not the tokens' indices in the row; None elsewhere.
        stands_for: what it stands for, if not for a request that the engine answered (`memory.rl`, a trajectory).
        unrecorded: keys may have been evicted without a record of when (`DecodeConfig.horizon` is 0).
    """

    id: object
    prompt: np.ndarray
    tokens: np.ndarray
    forced: np.ndarray
    written: np.ndarray
    logp: np.ndarray
    visible: np.ndarray
    held: np.ndarray
    is_gist: np.ndarray
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
    sample: int = 0
    seed: int = 0
    read: int = 0
    reused: int = 0
    read_again: int = 0
    why: str = ""
    stop_text: str = ""
    top_ids: np.ndarray | None = None
    top_logps: np.ndarray | None = None
    position: np.ndarray | None = None
    stands_for: object | None = None

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
    def positions(self) -> np.ndarray:
        """[P + N] int32, RoPE positions."""
        return np.arange(len(self.row), dtype=np.int32) if self.position is None else self.position

    @property
    def evicted(self) -> np.ndarray | None:
        """[Lr, Kr, P + N] int32, the recorded deaths, fetched from the device; None where none were recorded."""
        return None if self.record is None else np.asarray(self.record)[..., : len(self.row)]

    def check_recorded(self) -> None:
        """Raises UserError if keys may have been evicted without a record of when."""
        if self.unrecorded:
            raise UserError(f"request {self.id}: its evictions were not recorded; set DecodeConfig.horizon for that")

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


def refused(id: object, sample: int, why: str) -> Completion:
    """The completion of a request that cannot be answered."""
    none = lambda kind: np.zeros(0, kind)
    return Completion(
        id=id, prompt=none(np.int32), tokens=none(np.int32), forced=none(bool), written=none(bool),
        logp=none(np.float32), visible=none(np.int32), held=none(np.int32), is_gist=none(bool), closings=none(np.int32),
        death=none(np.int32), since=none(np.int32), block=none(np.int32), finish="refused", seconds=0.0, sample=sample,
        why=why,
    )  # fmt: skip
