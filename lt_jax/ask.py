"""What the front door (`lt_jax.model`) is asked, and what it answers."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping, Sequence

import numpy as np

from lt_jax.cache.policies import published
from lt_jax.cache.policies.config import POLICIES
from lt_jax.data.dialogue import Turn, turns
from lt_jax.decode import Completion, Request, Sampling
from lt_jax.decode.counts import Cost
from lt_jax.errors import UserError

Message = Mapping[str, object]
BUDGET, BUFFER = 512, 128
LIMITS = (  # a setting that is a whole number, the least it may be, and whether it may be None
    ("max_new", 1, False), ("n", 1, False), ("rows", 1, False), ("capacity", 0, False), ("seed", None, True),
    ("max_thought", 1, True),
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class AskConfig:
    """How to answer. Calls whose settings differ only in what is marked with * share one compiled engine.

    Attributes:
        method: how to decode. None is as the model was trained; "vanilla", which keeps every key, works for any model.
        max_new: * the most tokens that are sampled for an answer.
        n: * how many answers each prompt gets. More than one need a temperature: greedy answers would be equal.
        temperature: * of sampling; 0 always takes the most probable token.
        top_k: * sample from this many of the most probable tokens; 0 from all.
        top_p: * sample from the most probable tokens that make up this share.
        seed: * of sampling; prompt number i has seed + i. With None, every prompt gets different random numbers.
        stop: * a text, or several, that ends an answer. The answer includes it, as with `stop_strings` of transformers.
        kv: a KV policy, one of `cache.policies.POLICIES`. The cache of a row then never holds more than budget + buffer
            keys.
        budget: with `kv`, how many keys each layer and KV head keeps; None is 512.
        buffer: with `kv`, how many tokens pass between two evictions; None is 128.
        records: keep when each key was evicted, so that `Model.score` can show the model what the sampler saw. This
            takes 4 bytes for every token, layer and KV head. (Without `kv` nothing is evicted, and every answer can be
            scored.)
        rows: the most answers that are written side by side.
        capacity: the most keys that the cache of a row may hold; 0 is as many as the model has positions. (Memory is
            taken only as rows come to need it.)
        max_thought: a thought of this many tokens is compressed by force. With None there is no limit.
    """

    method: str | None = None
    max_new: int = 1024
    n: int = 1
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int | None = None
    stop: str | Sequence[str] = ()
    kv: str | None = None
    budget: int | None = None
    buffer: int | None = None
    records: bool = False
    rows: int = 8
    capacity: int = 0
    max_thought: int | None = None

    def __post_init__(self):
        for name, least, none in LIMITS:
            value = getattr(self, name)
            whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
            if not (none and value is None) and (not whole or (least is not None and value < least)):
                allowed = f"a whole number{'' if least is None else f', {least} or more'}{', or None' if none else ''}"
                raise UserError(f"{name} is {value!r}; it must be {allowed}")
        if isinstance(self.stop, bytes) or not all(isinstance(text, str) and text for text in self._stop_texts()):
            raise UserError(f"stop is {self.stop!r}; it must be a text or a list of texts, none of them empty")
        sampling = self.sampling  # refuses what is no way to sample
        if self.n > 1 and not sampling.temperature:
            raise UserError(
                f"n is {self.n}, but at temperature 0 all answers to a prompt are the same; set a temperature above 0"
            )
        if self.kv is None:
            if given := [name for name in ("budget", "buffer") if getattr(self, name) is not None]:
                raise UserError(f"{given[0]} is given, but no kv policy, which it is the {given[0]} of (kv=\"rkv\")")
        elif self.kv not in POLICIES:
            raise UserError(f"kv is {self.kv!r}; it is one of {', '.join(POLICIES)}")
        elif self.capacity:
            raise UserError("capacity and kv are both given; under a kv policy a row holds budget + buffer keys")
        else:
            published(**self.eviction, separators=(0,))  # refuses what is no budget; the tokenizer has the separators

    @property
    def sampling(self) -> Sampling:
        return Sampling(self.temperature, self.top_k, self.top_p)

    def _stop_texts(self) -> tuple:
        return tuple(self.stop) if isinstance(self.stop, Sequence) and not isinstance(self.stop, str) else (self.stop,)

    @property
    def eviction(self) -> dict | None:
        """Settings of the KV budget, for `policies.published`; None without one."""
        if self.kv is None:
            return None
        own = lambda given, otherwise: otherwise if given is None else given
        return {"policy": self.kv, "budget": own(self.budget, BUDGET), "buffer": own(self.buffer, BUFFER)}

    def request(self, prompt, number: int) -> Request:
        """The request for one prompt."""
        seed = None if self.seed is None else self.seed + number
        return Request(prompt, self.max_new, seed, number, self.n, self.sampling, stop_text=self._stop_texts())


def asked(**settings) -> AskConfig:
    """`AskConfig` of settings by name; UserError, with the nearest name, for one that there is not."""
    known = [field.name for field in dataclasses.fields(AskConfig)]
    for name in settings:
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it is one of {', '.join(known)}"
            raise UserError(f"unknown setting {name!r}; {hint}")
    return AskConfig(**settings)


@dataclasses.dataclass(frozen=True)
class Answer:
    """An answer with what it cost.

    Attributes:
        text: what was written, without special tokens.
        finish: why the answer ended: "eos", "stop", "length", "capacity", "positions", "nan", "cancelled" or "refused",
            see `decode.Completion`.
        tokens: [N] int32, the tokens of the text and the token that ended it.
        logp: [N] float32, their log-probs.
        counts: tokens read and written, thoughts compressed, peak, dependency and seconds.
        why: why the prompt was refused, where it was.
        completion: everything that the engine knows of the answer, gist tokens included.
        asked: the settings of the call, the method by its name.
    """

    text: str
    finish: str
    tokens: np.ndarray
    logp: np.ndarray
    counts: Cost
    why: str
    completion: Completion = dataclasses.field(repr=False)
    asked: AskConfig = dataclasses.field(repr=False)

    def __str__(self) -> str:
        return self.text


def one_prompt(prompts) -> bool:
    """Whether `prompts` is one question or one conversation rather than a list of them.

    Raises:
        UserError: it is none of these.
    """
    if isinstance(prompts, str):
        return True
    if isinstance(prompts, Sequence) and all(isinstance(each, Mapping) for each in prompts):
        return len(prompts) > 0
    if isinstance(prompts, Sequence) and all(isinstance(each, str | Sequence) for each in prompts):
        return False
    raise UserError(
        "a prompt is a text, or a list of chat messages such as {\"role\": \"user\", \"content\": \"...\"}; several "
        "prompts are a list of those"
    )


def read_conversation(messages: Sequence[Message]) -> tuple[str, str, list[Turn], list[Turn]]:
    """Splits chat messages that wait for an answer: (question, system, turns before the question, turns after it).

    Raises:
        UserError: a message is broken, or the last one is an assistant's.
    """
    said = turns(messages, "messages", "the prompt")
    system = ""
    if said and said[0].role == "system":
        system = said.pop(0).text
    if any(turn.role == "system" for turn in said):
        raise UserError("a system message must be the first one")
    if not said or said[-1].role not in ("user", "tool"):
        raise UserError("the last message must be the user's (or a tool's): there is nothing to answer")
    last = max((i for i, turn in enumerate(said) if turn.role == "user"), default=None)
    if last is None:
        raise UserError("there is no message of the user's")
    return said[last].text, system, said[:last], said[last + 1 :]
