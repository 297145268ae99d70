"""A checkpoint folder opened for decoding: weights, tokenizer, scheme, prompts in, text out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lt_jax.cache.policies import Eviction, published
from lt_jax.data.problem import Problem
from lt_jax.data.prompts import Prompter, prompter
from lt_jax.decode import DecodeConfig, Engine, Request
from lt_jax.decode.admit import check_request
from lt_jax.decode.control import Rules
from lt_jax.decode.pieces import group_size
from lt_jax.decode.setup import cache_bytes, check, rules_of
from lt_jax.errors import UserError
from lt_jax.evaluation.run import Contender
from lt_jax.layout.card import NAME, Card, read_card
from lt_jax.layout.encode import encoder
from lt_jax.layout.prompt import build_prompt
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.separators import separators
from lt_jax.layout.special import SpecialTokens
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.models import huggingface
from lt_jax.models.config import DecoderConfig
from lt_jax.models.hf_ends import read_ends

WARM_TOKENS = 2


@dataclasses.dataclass(frozen=True)
class Writer:
    """A model with all that is needed to ask it something.

    Attributes:
        params, model: weights and their config.
        scheme, special: how it writes.
        tokenizer: a `transformers` tokenizer.
        prompt: (question, system, history) -> chat prompt, see `data.prompts.Prompter`.
        origin: where the weights came from.
        stop: ids that end an answer besides `special.eos`, see `models.hf_ends`.
    """

    params: dict
    model: DecoderConfig
    scheme: Scheme
    special: SpecialTokens
    tokenizer: Any
    prompt: Prompter
    origin: str = ""
    stop: tuple[int, ...] = ()

    @property
    def tokenize(self) -> Callable[[str], list[int]]:
        return encoder(self.tokenizer)

    def ask(self, question: str, system: str = "") -> Row:
        """A question as the prompt of a request."""
        return build_prompt(self.scheme, self.special, self.prompt(question, system), self.tokenize)

    def text(self, ids: Sequence[int]) -> str:
        """Ids as text, special tokens left out."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """One text per id, special tokens written out; the bytes of one character stand with its last token."""
        out, waiting = [], []
        for token in ids:
            waiting.append(int(token))
            text = self.tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            whole = not text.endswith("\ufffd") or len(waiting) == 4
            out.append(text if whole else "")
            waiting = [] if whole else waiting
        return out

    def eviction(self, **settings) -> Eviction:
        """A KV budget from `policy`, `budget` and what else is to differ from the paper, see `policies.published`."""
        known = {field.name for field in dataclasses.fields(Eviction)}
        if missing := [name for name in ("policy", "budget") if name not in settings]:
            raise UserError(f"eviction: {missing[0]} is missing")
        if unknown := sorted(set(settings) - known):
            raise UserError(f"eviction: unknown setting {unknown[0]!r}; it is one of {', '.join(sorted(known))}")
        if settings["policy"] == "sepllm" and "separators" not in settings:
            settings["separators"] = separators(self.tokenizer)
        return published(**settings)

    def engine(self, config: DecodeConfig) -> Engine:
        stopping = self._stopping(config)
        return Engine(self.params, self.model, self.scheme, self.special, stopping, self.tokenize, self.text)

    def rules(self, config: DecodeConfig) -> Rules:
        """What an engine of this config would go by."""
        return rules_of(self.model, self.scheme, self.special, self._stopping(config), self.tokenize)

    def _stopping(self, config: DecodeConfig) -> DecodeConfig:
        return dataclasses.replace(config, stop=tuple(sorted({*config.stop, *self.stop})))

    def check(self, config: DecodeConfig, prompts: Sequence[Row], max_new: int) -> None:
        """Raises UserError if an engine of this config could not be made, or would refuse one of the prompts."""
        rules = self.rules(config)
        check(self.scheme, self.model, config, rules)
        for number, prompt in enumerate(prompts):
            check_request(Request(prompt, max_new), number, self.model, config, rules)


def open_folder(folder: str | Path, method: str | None = None, *, dtype: str = "float32", chat: str | None = None,
                system: str | None = None, prefix: str | None = None,
                weights: tuple[dict, DecoderConfig] | None = None) -> Writer:  # fmt: skip
    """Opens a Hugging Face folder, as this library exports it (with `lt_jax.json`) or any other.

    Args:
        method: how to decode: the method the folder was trained for (None), or "vanilla", which any model can.
        dtype: of weights and computation.
        chat, system, prefix: in place of the folder's own.
        weights: parameters and config, if they were read from this folder before, in `dtype`.

    Raises:
        UserError: the folder cannot be read, or was not trained for `method`.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give a checkpoint folder")
    huggingface.read_config(folder)  # its complaints come before the tokenizer's
    tokenizer = load_tokenizer(folder)
    card = read_card(folder, tokenizer)
    if card is None:
        card = _plain(folder, tokenizer, method)
    elif method == "vanilla" and card.scheme.method != "vanilla":
        card = dataclasses.replace(card, scheme=Scheme("vanilla"))
    elif method is not None and method != card.scheme.method:
        able = " or ".join(dict.fromkeys((card.scheme.method, "vanilla")))
        raise UserError(f"{folder}: trained for {card.scheme.method}; it can be decoded as {able}, not as {method}")
    params, model = weights or huggingface.load(folder, dtype, compute_dtype=dtype)
    own = lambda given, otherwise: otherwise if given is None else given
    ask = prompter(own(chat, card.chat), tokenizer, own(system, card.system), own(prefix, card.prefix))
    stop = tuple(i for i in read_ends(folder, tokenizer) if i != card.special.eos)
    return Writer(params, model, card.scheme, card.special, tokenizer, ask, str(folder), stop)


def _plain(folder, tokenizer, method: str | None) -> Card:
    """The card of a model that was not trained here."""
    if method not in (None, "vanilla"):
        raise UserError(
            f"{folder}: has no {NAME}, so its tokenizer has no special tokens for {method}; train it with "
            "launch/train.py, or describe a released checkpoint with launch/convert.py --table. (A KV budget needs no "
            "training: --method=rkv --budget=512 of launch/evaluate.py works with any model)"
        )
    ends = read_ends(folder, tokenizer)
    if not ends:
        raise UserError(
            f"{folder}: generation_config.json and config.json name no eos_token_id and the tokenizer no eos_token, so "
            "an answer would never end"
        )
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
    special = SpecialTokens(eos=eos, pad=eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    return Card(Scheme("vanilla"), special, "own" if tokenizer.chat_template else "plain")


def contender(name: str, writer: Writer, config: DecodeConfig, *, max_new: int, seed: int = 0) -> Contender:
    """A contender that answers with `writer`, decoding as `config` says.

    Args:
        max_new: most tokens sampled for a problem.
        seed: problem i is decoded with seed + i.
    """
    made: list[Engine] = []  # while it is used: several contenders need not hold their weights and caches at once
    reached = [0]  # slots of a row that its cache grew to

    def engine() -> Engine:
        if not made:
            made.append(writer.engine(config))
        return made[0]

    def complete(prompts):
        try:
            yield from engine().run(Request(prompt, max_new, seed + i, i) for i, prompt in enumerate(prompts))
        finally:
            reached[0] = made[0].cache.capacity if made else reached[0]
            made.clear()

    def warm(prompts):
        warm_up(engine(), prompts, min(WARM_TOKENS, max_new))

    row_bytes = lambda keys: round(cache_bytes(writer.model, config, writer.rules(config), keys or reached[0]))
    return Contender(
        name, writer.origin, writer.scheme, writer.special, complete, lambda problem: _ask(writer, problem),
        writer.text, writer.pieces, writer.tokenize, warm, row_bytes,
    )  # fmt: skip


def warm_up(engine: Engine, prompts: Sequence[Row], max_new: int = WARM_TOKENS) -> None:
    """Compiles everything that answering `prompts` may run: the block, and prefill for groups of any size.

    Prompts that are cut alike are fed together in groups of 1, 2, 4 ... rows; which groups come up depends on which
    rows become free together, so each is fed once here.
    """
    made = set()
    for prompt in prompts:
        cut = engine.cut(prompt)
        size, most = 1, min(engine.config.rows, group_size(cut))
        while size <= most:
            programs = {(size, each.padded, each.evict, place == len(cut) - 1) for place, each in enumerate(cut)}
            if not programs <= made:
                for _ in engine.run([Request(prompt, max_new)] * size):
                    pass
            made |= programs
            size *= 2


def _ask(writer: Writer, problem: Problem) -> Row:
    return writer.ask(question(problem), problem.system)


def question(problem: Problem) -> str:
    """What the model is asked: the question, with lettered options under it if it has choices."""
    if not problem.choices:
        return problem.question
    options = (f"{chr(ord('A') + i)}. {option}" for i, option in enumerate(problem.choices))
    return problem.question + "\n\n" + "\n".join(options)
