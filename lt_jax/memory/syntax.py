r"""Actions as tokens: what the model writes, what the environment replies, and how both are read.

    the model writes                            the environment replies
    thoughts <commit>summary</commit>           <memory>3</memory>              the number of the new entity
    thoughts <expand>2</expand>                 <memory>2:...</memory>          entity 2 in full
    thoughts <fold>2</fold>
    thoughts <call>search: red</call>           <memory>4:...</memory>          the observation, entity 4
    thoughts <final_answer>42</final_answer>
    anything else                               <memory>!why</memory>           what was wrong, what would be possible

Every mark is one token, so reading goes by ids alone, and the environment's marks can never be sampled. The marks are
the table `SpecialTokens.memory`: that of a released checkpoint can be put in its place (`special.default_table`).

What differs from the paper, whose syntax is not public: all of it, see B5 of the method's notes. Reading is strict:
a turn is text, then at most one action, which ends it. Whatever else stands there is a `Malformed` turn that says why;
nothing is guessed.

A teacher whose tokens are not ours writes the marks as text. `spelt` is the syntax of that: its ids are characters,
each mark is one more of them, and everything here reads and says the same.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import sys
from collections.abc import Callable, Sequence

from lt_jax.errors import UserError
from lt_jax.layout.encode import core, encoder
from lt_jax.layout.special import MEMORY, SpecialTokens
from lt_jax.memory.machine import OBSERVATION, Action, Call, Commit, Entity, Expand, FinalAnswer, Fold, Memory

Ids = tuple[int, ...]

ACTIONS = ("commit", "expand", "fold", "call", "final_answer")
REPLY = "memory"
FULL, WRONG = ":", "!"  # what follows the number of an entity that is shown in full; how a complaint begins
MOST_DIGITS = 6  # of the number of an entity


@dataclasses.dataclass(frozen=True)
class Malformed:
    """A turn that is no action.

    Attributes:
        why: one line for the model and for people.
    """

    why: str


@dataclasses.dataclass(frozen=True)
class Turn:
    """What was written up to an action, and that action.

    Attributes:
        text: before the action; all of the turn if that is malformed.
        action: a `Call` has no observation yet.
        marked: the action with its marks; empty if it is malformed.
    """

    text: Ids
    action: Action | Malformed
    marked: Ids = ()


@dataclasses.dataclass(frozen=True)
class Syntax:
    """A table of marks with the ids of a tokenizer.

    Attributes:
        opens, closes: {id: name} of the actions' marks.
        reply: ids of the environment's marks.
        texts: of all marks.
        tokenize: text -> ids, adding nothing. detokenize: ids -> text.
    """

    opens: dict[int, str]
    closes: dict[int, str]
    reply: tuple[int, int]
    texts: tuple[str, ...]
    tokenize: Callable[[str], Sequence[int]] = dataclasses.field(repr=False)
    detokenize: Callable[[Sequence[int]], str] = dataclasses.field(repr=False)

    @property
    def stops(self) -> Ids:
        """Ids that end a turn."""
        return tuple(self.closes)

    def pair(self, name: str) -> tuple[int, int]:
        """The marks of an action, or of the reply."""
        if name == REPLY:
            return self.reply
        key = lambda table: next(mark for mark, known in table.items() if known == name)
        return key(self.opens), key(self.closes)

    def marked(self, name: str, content: Sequence[int]) -> Ids:
        """A content between its marks."""
        first, last = self.pair(name)
        return (first, *content, last)

    def ids(self, text: str) -> Ids:
        """A text of the environment's or the user's as ids. A mark that is spelt in it does not become one: a space is
        put behind its first character."""
        for mark in self.texts:
            text = text.replace(mark, f"{mark[0]} {mark[1:]}")
        return tuple(int(each) for each in self.tokenize(text))

    def text(self, ids: Sequence[int]) -> str:
        return self.detokenize(list(ids))

    # What the environment says.

    def label(self, number: int) -> Ids:
        """The reply to a commit: the number of the entity."""
        return self.marked(REPLY, self.ids(str(number)))

    def full(self, number: int, raw: Ids) -> Ids:
        """The reply that shows an entity in full."""
        return self.marked(REPLY, (*self.ids(str(number)), *self.ids(FULL), *raw))

    def complaint(self, why: str) -> Ids:
        """The reply to what could not be done."""
        return self.marked(REPLY, (*self.ids(WRONG), *self.ids(why)))

    def summary(self, entity: Entity) -> Ids:
        """An archived entity as the context shows it; in `lifetimes` this is what is left of its tokens. The summary of
        an observation is its call with the marks and the number, as its step keeps it (`rows.taken_in`)."""
        if entity.kind == OBSERVATION:
            return entity.summary
        return self.marked("commit", entity.summary) + self.label(entity.number)

    def shown(self, entity: Entity) -> Ids:
        """An entity as a rebuilt context shows it. An observation in full keeps its call before it."""
        if not entity.active:
            return self.summary(entity)
        call = entity.summary[: -len(self.label(entity.number))] if entity.kind == OBSERVATION else ()
        return call + self.full(entity.number, entity.raw)

    def context(self, memory: Memory) -> Ids:
        """All that is visible behind the question, as a rebuilt context."""
        parts = (self.shown(part) if isinstance(part, Entity) else part for part in memory.visible())
        return tuple(token for part in parts for token in part)

    # What the model says.

    def read(self, ids: Sequence[int], ended: bool = True) -> Turn:
        """Reads a turn.

        Args:
            ids: what was written since the environment's last word, without an end-of-text token.
            ended: whether the turn ended by itself; if not it was cut off.
        """
        ids = tuple(int(each) for each in ids)
        wrong = lambda why: Turn(ids, Malformed(why))
        inside = [place for place, token in enumerate(ids) if token in self.opens or token in self.closes]
        if any(token in self.reply for token in ids):
            return wrong("the memory's own marks were written")
        if not inside:
            return wrong("no action was taken" if ended else "the step is too long without an action")
        first, last = inside[0], inside[-1]
        if ids[first] in self.closes:
            return wrong(f"{self.closes[ids[first]]} is closed but was not opened")
        name = self.opens[ids[first]]
        if len(inside) == 1:
            return wrong(f"{name} is not closed")
        if len(inside) > 2 or self.closes.get(ids[inside[1]]) != name:
            return wrong(f"{name} is not closed before another mark")
        if last != len(ids) - 1:
            return wrong(f"something was written behind {name}")
        action = self._action(name, ids[first + 1 : last])
        return wrong(action.why) if isinstance(action, Malformed) else Turn(ids[:first], action, ids[first:])

    def _action(self, name: str, content: Ids) -> Action | Malformed:
        if name in ("expand", "fold"):
            said = self.detokenize(list(content)).strip()
            if not (said.isascii() and said.isdigit() and len(said) <= MOST_DIGITS):
                return Malformed(f"{name} needs the number of an entity")
            return Expand(int(said)) if name == "expand" else Fold(int(said))
        if not content:
            return Malformed(f"{name} is empty")
        return {"commit": Commit, "final_answer": FinalAnswer}[name](content) if name != "call" else Call(content, ())


def syntax_of(special: SpecialTokens, tokenizer) -> Syntax:
    """The syntax over a model's special tokens.

    Args:
        tokenizer: a `tokenizers` or `transformers` fast tokenizer.

    Raises:
        UserError: the table has no marks of a memory.
    """
    if special.memory is None:
        raise UserError("the token table has no marks of a memory; the model was not trained for method 'memory'")
    inner = core(tokenizer)
    texts = tuple(inner.id_to_token(mark) for mark in special.memory)
    detokenize = lambda ids: inner.decode(list(ids), skip_special_tokens=False)
    return _syntax(special.memory, texts, encoder(tokenizer), detokenize)


def spelt(texts: Sequence[str] = MEMORY) -> Syntax:
    """The syntax over text itself: an id is a character's code point, and a mark that is spelt out is one id.

    `tokenize` and `detokenize` undo each other, whatever the text.

    Args:
        texts: the marks, in the order of `layout.special.MEMORY`.
    """
    marks = {text: sys.maxunicode + 1 + place for place, text in enumerate(texts)}
    spelling = {mark: text for text, mark in marks.items()}
    cut = re.compile(f"({'|'.join(map(re.escape, texts))})")

    def tokenize(text: str) -> list[int]:
        pieces = cut.split(text)  # every second one is a mark
        ids = ((marks[piece],) if place % 2 else map(ord, piece) for place, piece in enumerate(pieces))
        return list(itertools.chain.from_iterable(ids))

    detokenize = lambda ids: "".join(spelling.get(each) or chr(each) for each in ids)
    return _syntax(tuple(marks.values()), tuple(texts), tokenize, detokenize)


def _syntax(marks: Sequence[int], texts: tuple[str, ...], tokenize: Callable, detokenize: Callable) -> Syntax:
    pairs = [tuple(marks[2 * place : 2 * place + 2]) for place in range(len(ACTIONS) + 1)]
    opens = {pair[0]: name for name, pair in zip(ACTIONS, pairs[:-1], strict=True)}
    closes = {pair[1]: name for name, pair in zip(ACTIONS, pairs[:-1], strict=True)}
    return Syntax(opens, closes, pairs[-1], texts, tokenize, detokenize)
