"""What a trained folder says of itself: the file `lt_jax.json`, written at export, read by generate and evaluate."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

from lt_jax.errors import UserError
from lt_jax.layout.encode import core
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens

NAME = "lt_jax.json"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Card:
    """How a model was trained to write, which is how it must be decoded.

    Attributes:
        scheme, special: of its training rows.
        chat: the chat template, see `data.prompts.Prompter`.
        system: system turn of questions that have none.
        prefix, suffix: text before and after every question.
    """

    scheme: Scheme
    special: SpecialTokens
    chat: str = "own"
    system: str = ""
    prefix: str = ""
    suffix: str = ""

    def to_json(self, tokenizer) -> str:
        """The text of `lt_jax.json`; the tokens are also written out, so that a wrong tokenizer is noticed."""
        inner = core(tokenizer)
        tokens = {str(i): inner.id_to_token(i) for i in _ids(self.special)}
        values = {
            "version": VERSION, "scheme": dataclasses.asdict(self.scheme), "special": self.special.to_dict(),
            "tokens": tokens, "chat": self.chat, "system": self.system, "prefix": self.prefix,
            "suffix": self.suffix,
        }  # fmt: skip
        return json.dumps(values, indent=2, ensure_ascii=False) + "\n"


def read_card(folder: str | Path, tokenizer) -> Card | None:
    """The card of a checkpoint folder; None if it has none, as a model that was not trained here.

    Raises:
        UserError: the file is broken, or `tokenizer` does not have its special tokens.
    """
    path = Path(folder) / NAME
    if not path.is_file():
        return None
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["version"] != VERSION:
            raise UserError(f"{path}: version {values['version']}; this library reads version {VERSION}")
        card = Card(Scheme(**values["scheme"]), SpecialTokens.from_dict(values["special"]), values["chat"],
                    values["system"], values["prefix"], values.get("suffix", ""))  # fmt: skip
        tokens = dict(values["tokens"])
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error}") from None
        raise UserError(f"{path}: not what an export writes ({type(error).__name__}: {error})") from None
    inner = core(tokenizer)
    for number, token in tokens.items():
        if inner.id_to_token(int(number)) != token:
            raise UserError(
                f"{folder}: the tokenizer has no token {token!r} with id {number}, which {NAME} names; "
                "it is not the tokenizer the model was trained with"
            )
    card.special.check(card.scheme)
    return card


def _ids(special: SpecialTokens) -> list[int]:
    named = [special.eos, special.pad, special.trigger, special.output, *special.gists]
    named += [*(special.memento or ()), *(special.memory or ())]
    return sorted({i for i in named if i is not None})
