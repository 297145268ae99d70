r"""Judging answers. Text is read by grammars only, never evaluated.

    same("\\frac{1}{2}", "0.5")               ->  True
    judge(problem, text)                      ->  (given, correct)

`same` goes from cheap to dear: equal text, plain numbers (exact), lists part by part, quantities, words, and only then
LaTeX by math-verify in a child process (`lt_jax.data.latex`). Thousands of plain numbers a second never get there.
"""

from __future__ import annotations

import re
import string
import time
from collections.abc import Iterable
from fractions import Fraction

from lt_jax.data import latex
from lt_jax.data.extract import extract, stated
from lt_jax.data.latex import LatexJudge
from lt_jax.data.latex_child import TOLERANCE
from lt_jax.data.notation import MAX_CHARS, clean, elements, number, quantity, unclear
from lt_jax.data.problem import Problem

_LETTER = re.compile(r"(?:option |choice )?\(?([A-Za-z])(?:\)|[.:)](?=\s|$)|$)\s*(.*)", re.DOTALL | re.I)
_WORDS = re.compile(r"[^\W\d_]+(?:[\s,'-]+[^\W\d_]+)*")
_DOTS = r"\ldots"
MAX_DEPTH = 8  # of lists in lists and units behind units
MAX_PARTS = 8  # that are matched in any order by the child; each may take it seconds
_latex = LatexJudge()


def check() -> None:
    """Raises UserError if LaTeX could not be compared; called before hours of work whose end needs it."""
    _latex.check()


def judge(problem: Problem, text: str) -> tuple[str | None, bool | None]:
    """The answer that `text` gives to `problem` (None if it gives none) and whether it is right; None: no verdict.

    Without a verdict (the comparison ran out of time, or the program that compares ended) it is not known whether the
    answer is right. It counts as wrong, and such answers are counted.
    """
    found = given(problem, text)
    if found is None:
        return None, False
    if problem.choices:
        return found, same_choice(found, problem.answer, problem.choices)
    return found, same(found, problem.answer)


def right(problem: Problem, answer: str) -> bool | None:
    """Whether a final answer, which is nothing but that, is right; None if nobody knows, or as of `judge`. Where
    `given` finds no answer in it, it is the answer as it stands."""
    if not problem.answer.strip():
        return None
    if not answer.strip():
        return False
    found = given(problem, answer) or answer
    return same_choice(found, problem.answer, problem.choices) if problem.choices else same(found, problem.answer)


def given(problem: Problem, text: str) -> str | None:
    """The answer that `text` gives to `problem`; None if it gives none.

    It is what `extract` finds, or else the whole text where the right answer is of that kind: an option of a multiple
    choice ("B", "(b) Paris"), or words.
    """
    return extract(text, _parts(problem)) or _bare(problem, text)


def _parts(problem: Problem) -> int:
    """How many things the right answer lists; 1 for a point, an interval or a single thing."""
    found = None if problem.choices else elements(clean(stated(problem.answer)))
    return len(found[1]) if found is not None and found[0] in ("", "{") and number(clean(problem.answer)) is None else 1


def _bare(problem: Problem, text: str) -> str | None:
    text = text.rpartition("</think>")[2].strip()
    if len(text) > MAX_CHARS or "\n" in text:
        return None
    if problem.choices:
        return text if choice(text, problem.choices) is not None else None
    words = _WORDS.fullmatch(clean(stated(problem.answer))) is not None and _WORDS.fullmatch(clean(text)) is not None
    return text if words and len(text.split()) <= len(problem.answer.split()) + 1 else None


def same(given: str, answer: str) -> bool | None:
    r"""Whether two answers mean the same; None if the comparison found no end in time.

    - Both are brought to one notation first (`notation.clean`); a reference in a sentence ("The answer is 84.") is
      what it states.
    - Numbers are compared exactly, but for a decimal number beside one that has no finite decimals (1/3, a root, pi),
      which may differ by 1e-6, relative: 0.333333 is 1/3, 0.3333 is not, 0.999999 is not 1.
    - 5% is 5 and is 0.05, as math-verify has it. Other units must be the same where both have one; they are not
      converted (5 km is neither 5 m nor 5000 m).
    - Lists and sets are compared part by part in any order, points and intervals in theirs; "1,2" is "(1,2)", as
      math-verify has it. Dots count: "2" is not "2, \ldots". So does the number of parts.
    - Words are compared without regard to case and blanks.

    Args:
        given: what was answered.
        answer: what is right.
    """
    given, answer = given.strip(), answer.strip()
    if given == answer or max(len(given), len(answer)) > MAX_CHARS:
        return given == answer != ""
    return _same(clean(stated(given)), clean(stated(answer)), time.monotonic() + latex.SECONDS)


def _same(given: str, answer: str, until: float, depth: int = 0) -> bool | None:
    if not given or not answer:
        return False
    if depth > MAX_DEPTH:
        return _latex.same(given, answer, until)
    if _folded(given) == _folded(answer):
        return True
    values = number(given), number(answer)
    if None not in values and _close(values, given, answer):
        return True
    lists = elements(given), elements(answer)
    if None not in lists and any(value is None for value in values):
        return _same_parts(*lists, until, depth)
    if values[0] is not None and values[1] is not None:
        return None not in lists and bool(_same_parts(*lists, until, depth))  # "100,200,300" may be one number or three
    if _DOTS in given + answer or unclear(given) or unclear(answer):
        return False
    (value, unit), (right, right_unit) = _united(quantity(given), quantity(answer))
    if (value, right) != (given, answer):
        if None not in (unit, right_unit) and unit != right_unit:
            return False
        share = _per_cent(value, unit)
        return (share is not None and share == _per_cent(right, right_unit)) or _same(value, right, until, depth + 1)
    if _WORDS.fullmatch(answer) and len(answer) > 1:  # one letter may be a variable
        return False
    return _latex.same(given, answer, until)


def _folded(text: str) -> str:
    """Text as it is compared: without blanks of no matter, dashes alike, and words without their case."""
    text = re.sub(r"\s+", " ", text).replace("–", "-")
    return text.casefold() if re.search(r"[^\W\d_]{2}", text) and "\\" not in text else text


def _close(values: tuple[Fraction, Fraction], *texts: str) -> bool:
    a, b = values
    if a == b:
        return True
    decimal = ["." in text for text in texts]
    exact = b if decimal[0] else a
    if decimal[0] == decimal[1] or _finite(exact):
        return False
    return abs(a - b) <= Fraction(str(TOLERANCE)) * max(abs(a), abs(b))


def _finite(value: Fraction) -> bool:
    """Whether it can be written with finitely many decimals: its denominator divides a power of ten."""
    return pow(10, value.denominator.bit_length(), value.denominator) == 0


def _united(given: tuple, answer: tuple) -> tuple[tuple, tuple]:
    """Two quantities, where one may have its unit right behind the number: "5m" beside "5 m"."""
    for one, other in ((given, answer), (answer, given)):
        if one[1] is not None and other[1] is None and other[0].endswith(one[1]):
            bare = other[0].removesuffix(one[1])
            other = (bare, one[1]) if bare[-1:].isdigit() else other
            return (one, other) if one is given else (other, one)
    return given, answer


def _per_cent(value: str, unit: str | None) -> Fraction | None:
    """The number that a quantity is, a percentage as a share: 0.05 for 5%."""
    found = number(value)
    return found / 100 if found is not None and unit == "%" else found


def _same_parts(given: tuple, answer: tuple, until: float, depth: int) -> bool | None:
    """Whether two lists (opening bracket, parts, closing bracket) are the same; see `same`."""
    (left, a, right), (other_left, b, other_right) = given, answer
    brackets = {left + right, other_left + other_right}
    if len(a) != len(b) or (len(brackets) == 2 and brackets not in ({"", "()"}, {"", "{}"}, {"", "[]"})):
        return False
    if brackets == {"", "[]"} and len(a) == 2:  # an interval is no pair
        return False
    ordered = brackets - {"", "{}"} or _DOTS in (*a, *b) or all(_WORDS.fullmatch(part) and len(part) > 1 for part in b)
    if not ordered:
        a, b = _unmatched(a, b)
    if ordered or len(a) > MAX_PARTS:
        return _all(_same(x, y, until, depth + 1) for x, y in zip(a, b, strict=True))
    unknown, rest = False, list(b)
    for x in a:
        for y in rest:
            verdict = _same(x, y, until, depth + 1)
            unknown |= verdict is None
            if verdict:
                rest.remove(y)
                break
        else:
            return None if unknown else False
    return True


def _unmatched(a: tuple[str, ...], b: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """What is left of both after equal texts and equal numbers were taken out in pairs."""
    key = lambda part: part if number(part) is None else number(part)
    rest, left = list(b), []
    keys = [key(part) for part in b]
    for part in a:
        if key(part) in keys:
            at = keys.index(key(part))
            del keys[at], rest[at]
        else:
            left.append(part)
    return left, rest


def _all(verdicts: Iterable[bool | None]) -> bool | None:
    """False if one is False, else None if one is None."""
    unknown = False
    for verdict in verdicts:
        if verdict is False:
            return False
        unknown |= verdict is None
    return None if unknown else True


def same_choice(given: str, answer: str, choices: tuple[str, ...]) -> bool:
    """Whether two answers to a multiple choice name the same option; each may be its letter, its text, or both."""
    picked = choice(given, choices)
    return picked is not None and picked == choice(answer, choices)


def choice(text: str, choices: tuple[str, ...]) -> int | None:
    """Which option `text` names, 0 for A: "B", "(b)", "B. Paris", "Paris" or a number equal to one option's; else None.

    Text that is an option wins over text that is a letter. A letter followed by another option's text names neither.
    """
    text = clean(stated(text))
    named = _option(text, choices)
    if named is not None:
        return named
    match = _LETTER.fullmatch(text)
    index = string.ascii_uppercase.find(match[1].upper()) if match else -1
    if not 0 <= index < len(choices):
        return None
    rest = clean(match[2])
    return index if not rest or _option(rest, choices) in (index, None) else None


def _option(text: str, choices: tuple[str, ...]) -> int | None:
    fold = lambda x: re.sub(r"\s+", " ", clean(x)).casefold()
    for index, option in enumerate(choices):
        if fold(text) == fold(option):
            return index
    value = number(text)
    equal = [i for i, option in enumerate(choices) if value is not None and number(clean(option)) == value]
    return equal[0] if equal else None
