"""Finding the answer in a model's text, and judging it. Text is read by grammars only, never evaluated.

    extract("... so \\boxed{\\frac{1}{2}}.")  ->  "\\frac{1}{2}"
    same("\\frac{1}{2}", "0.5")               ->  True
    judge(problem, text)                      ->  (given, correct)

`same` goes from cheap to dear: equal text, plain numbers (exact), words, and only then LaTeX by math-verify in a child
process (`lt_jax.data.latex`). Thousands of plain numbers a second never reach the child.
"""

from __future__ import annotations

import re
import string
from fractions import Fraction

from lt_jax.data.latex import LatexJudge
from lt_jax.data.problem import Problem

MAX_CHARS = 2000  # a longer "answer" is rambling; LaTeX readers are not linear in the length
_BOX = re.compile(r"\\(?:boxed|fbox)\s*\{")
_MARKED = re.compile(r"^[ \t*]*(?:#{4}|(?:final )?answer(?: is)?\s*:)[ \t*]*(\S.*?)[ \t*]*$", re.I | re.M)
_NUMBER = re.compile(r"[+-]?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+)?(?:/[1-9]\d*)?")
_LETTER = re.compile(r"\(?([A-Za-z])(?:\)|[.:)](?=\s|$)|$)\s*(.*)", re.DOTALL)
_WORDS = re.compile(r"[^\W\d_]+(?:[\s,'-]+[^\W\d_]+)*")
_WRAPPERS = ("text", "mathrm", "mathbf", "textbf", "mathit", "textit", "mbox")
_latex = LatexJudge()


def extract(text: str) -> str | None:
    r"""The given answer: the last `\boxed{...}` with balanced braces, else the last "Answer: ..." or "#### ..." line.

    Braces may nest to any depth; escaped ones (`\{`) do not count. A box that never closes (cut-off output) is passed
    over. None if there is no answer.
    """
    for match in reversed(list(_BOX.finditer(text))):
        inside = _balanced(text, match.end())
        if inside is not None:
            return inside.strip()
    marked = _MARKED.findall(text)
    return marked[-1].strip() if marked else None


def _balanced(text: str, start: int) -> str | None:
    """text[start:] up to the brace that closes the one before `start`, or None."""
    depth, i = 1, start
    while i < len(text):
        if text[i] == "\\":
            i += 2
            continue
        depth += {"{": 1, "}": -1}.get(text[i], 0)
        if depth == 0:
            return text[start:i]
        i += 1
    return None


def judge(problem: Problem, text: str) -> tuple[str | None, bool]:
    """The answer that `text` gives to `problem` (None if it gives none) and whether it is right."""
    given = extract(text)
    if given is None:
        return None, False
    if problem.choices:
        return given, same_choice(given, problem.answer, problem.choices)
    return given, same(given, problem.answer)


def same(given: str, answer: str) -> bool:
    """Whether two answers mean the same: as text, as numbers (exactly), as words, or as LaTeX expressions."""
    given, answer = clean(given), clean(answer)
    if given == answer:
        return bool(given)
    if max(len(given), len(answer)) > MAX_CHARS or not given or not answer:
        return False
    numbers = number(given), number(answer)
    if None not in numbers:
        return numbers[0] == numbers[1]
    if _WORDS.fullmatch(answer) and len(answer) > 1:  # one letter may be a variable
        return re.sub(r"\s+", " ", given).casefold() == re.sub(r"\s+", " ", answer).casefold()
    return _latex.same(given, answer)


def number(text: str) -> Fraction | None:
    """The exact value of a plain number ("1,234", "-0.50", "3/4"), None for anything else."""
    text = text.replace("−", "-")
    if len(text) > 400 or not any(c.isdigit() for c in text) or not text.isascii() or not _NUMBER.fullmatch(text):
        return None
    top, _, bottom = text.replace(",", "").partition("/")
    return Fraction(top) / Fraction(bottom or 1) if top.strip("+-") else None


def clean(text: str) -> str:
    r"""Without what does not matter: outer spaces, `$`, a full stop, `\text{...}`, thin spaces, a currency sign."""
    text = text.strip().strip("$").strip()
    text = text.replace("\\!", "").replace("\\,", "").replace("\\;", " ").replace("{,}", ",")
    text = text.removeprefix("\\$").rstrip(".").strip() if not text.endswith("...") else text
    for name in _WRAPPERS:
        head = f"\\{name}{{"
        if text.startswith(head) and _balanced(text, len(head)) == text[len(head) : -1]:
            return clean(text[len(head) : -1])
    return text


def same_choice(given: str, answer: str, choices: tuple[str, ...]) -> bool:
    """Whether two answers to a multiple choice name the same option; each may be its letter, its text, or both."""
    picked = choice(given, choices)
    return picked is not None and picked == choice(answer, choices)


def choice(text: str, choices: tuple[str, ...]) -> int | None:
    """Which option `text` names, 0 for A: "B", "(b)", "B. Paris", "Paris" or a number equal to one option's; else None.

    Text that is an option wins over text that is a letter. A letter followed by another option's text names neither.
    """
    text = clean(text)
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
