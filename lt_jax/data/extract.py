r"""Finding the answer that a text gives, in time linear in its length.

extract("... so \\boxed{\\frac{1}{2}}.")  ->  "\\frac{1}{2}"
extract("The answer is 5 apples.")        ->  "5 apples"
extract("10")                             ->  "10"
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from lt_jax.data.notation import MAX_CHARS, WRAPPERS, clean, elements, number, quantity

NEAR = 70  # characters between two boxes of one answer, as math-verify has it
CLOSE = 10  # characters that need no separator among them

_BOX = re.compile(r"\\(?:boxed|fbox)(?![A-Za-z])\s*(\{)?")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_UNBRACED = re.compile(r"[+-]?[\d.][\d.,/]*|[A-Z](?=[.$)\s]|$)")
_COMMAND = re.compile(r"[+-]?\\[a-zA-Z]+")
_TAG = re.compile(r"<(/?)answer>", re.I)
_BETWEEN = re.compile(r"\b(?:and|or)\b|[,;\n]")
_TAKEN_BACK = re.compile(r"\b(?:no|not|wait|instead|rather|actually|wrong|correct(?:ion|ed)?|should|but)\b", re.I)
_SAID = re.compile(
    r"\banswers?\b(?: to\b[^\n.:]{0,80}?)?[ \t*_]{0,8}(?:[:=]|(?:is|are)\b[ \t*_]{0,8}:?)"
    r"|^[ \t]{0,8}(####)(?!#)", re.I | re.M,
)  # fmt: skip
_HEADING = re.compile(r"^[ \t#*_]{0,12}(?:the |my )?(?:final )?answer[ \t*_:]{0,8}\n", re.I | re.M)
_DISPLAY = (("$$", "$$"), (r"\[", r"\]"))
_END = re.compile(r"[.?;](?=[\s*_]|$)|,? (?:because|since)\b|</|<\|")
_HEDGE = re.compile(r"(?:therefore|thus|simply|just|indeed|then|clearly|as follows|given by)\b[ ,:]*", re.I)
_LABEL = re.compile(r"\(?[A-Z]\)?\. ")
_EMPTY = {
    "", "answer", "your answer", "final answer", "your final answer", "the answer", "the final answer", "and", "or",
    "tags", "your answer here", "answer here", "x.xx", r"\ldots", "?", "{}", r"\cdot", "_",
}  # fmt: skip


def extract(text: str, parts: int = 1) -> str | None:
    r"""The given answer: the last complete and real one; None if there is none.

    What follows the last `</think>` is read first, and only if it gives no answer, all. In each, in this order:

    1. the last `\boxed{...}` (or `\fbox`), or `<answer>...</answer>`, whichever ends later; inside the tags, again a
       box or a stated answer wins. Braces nest to any depth, escaped ones (`\{`) do not count. `\boxed 7` and
       `\boxed\frac12` take what TeX's readers mean. One that never closes (cut-off output) is passed over, and so is an
       empty one or a placeholder (`\boxed{}`, `\boxed{...}`, `\boxed{your answer}`).
    2. the last "The answer is ...", "Answer: ..." or "#### ..." line, up to the end of the sentence.
    3. the whole text, if it is nothing but mathematics or a number with a unit ("10", "$x=5$", "5 km").

    Args:
        text: what a model wrote, or a reference solution.
        parts: how many things the right answer lists ("3,5,7": 3). As many boxes are then read as one answer, where
            they stand together as math-verify wants it: fewer than 10 characters apart, or up to 70 with a separator
            (comma, "and", a new line), and no word that takes the one before back.
    """
    after = text.rpartition("</think>")[2]
    return _find(after, parts) or (_find(text, parts) if len(after) < len(text) else None)


def stated(text: str) -> str:
    """A reference answer without its sentence: "The answer is 84." is 84; other texts as they are."""
    return _marked(text, 1) or _said(text) or text


def _find(text: str, parts: int) -> str | None:
    return _marked(text, parts) or _said(text) or _bare(text)


def _marked(text: str, parts: int) -> str | None:
    last = next(_boxes(text), None)
    start, end = _tag(text)
    if end < 0 or (last is not None and last[1] > end):
        return None if last is None else _joined(text, parts)
    inside = text[start:end]
    return _joined(inside, parts) or _said(inside) or inside.strip()


def _tag(text: str) -> tuple[int, int]:
    """Where the last real `<answer>...</answer>` begins and ends inside; (-1, -1) without one."""
    found, opened = (-1, -1), None
    for match in _TAG.finditer(text):
        if not match[1]:
            opened = match.end()
        elif opened is not None:
            if _real(text[opened : match.start()]):
                found = opened, match.start()
            opened = None
    return found


def _boxes(text: str) -> Iterator[tuple[int, int, str]]:
    """The complete and real boxes, the last first: (start of the command, end, inside). Of nested ones the inner."""
    opened = {match.end() - 1 if match[1] else match.end(): match.start() for match in _BOX.finditer(text)}
    ends, stack = {}, []
    for match in _BRACE.finditer(text, min(opened, default=len(text))):
        if match[0] == "{":
            stack.append(match.start())
        elif match[0] == "}" and stack:
            ends[stack.pop()] = match.start()
    later = len(text)
    for place, start in reversed(opened.items()):
        if text[place : place + 1] == "{":
            span = (place + 1, ends[place]) if place in ends else None
        else:
            span = _argument(text, place, ends)
        if span is not None and span[1] <= later:
            later = start
            if _real(text[slice(*span)]):
                yield start, span[1], text[slice(*span)].strip()


def _argument(text: str, start: int, ends: dict[int, int]) -> tuple[int, int] | None:
    r"""The span of what a box without braces takes: a number, a letter of a choice, a command with its arguments."""
    if match := _UNBRACED.match(text, start):
        return start, match.start() + len(match[0].rstrip(".,"))
    if not (match := _COMMAND.match(text, start)):
        return None
    end = match.end()
    for _ in range(2):
        if text[end : end + 1] == "{":
            if end not in ends:
                return None
            end = ends[end] + 1
        elif text[end : end + 1].isdigit():
            end += 1
    return start, end


def _joined(text: str, parts: int) -> str | None:
    """The last box; or, for an answer of several parts, as many boxes as it has, where they stand together."""
    run, last, place = [], None, 0
    for start, end, inside in _boxes(text):
        if last is None:
            last = inside
            if parts == 1 or elements(clean(last)) is not None:
                return last
        else:
            between = text[end:place].removeprefix("}") if place - end <= NEAR else None
            if between is None or _TAKEN_BACK.search(between) or not (len(between) < CLOSE or _BETWEEN.search(between)):
                return last
        place = start
        if inside not in run:
            run.append(inside)
        if len(run) == parts:
            return ", ".join(reversed(run))
    return last


def _said(text: str) -> str | None:
    """What the last real "the answer is", "Answer:", "####" or heading "Answer" is followed by."""
    last_line = text.rstrip().rfind("\n") + 1
    marks = [(match.end(), match[1] is not None) for match in _SAID.finditer(text)]
    marks += [(match.end(), False) for match in _HEADING.finditer(text)]
    for end, hashes in sorted(marks, reverse=True):
        value = _value(text[end : end + 2 * MAX_CHARS])  # more than any answer that is judged
        if not _real(value) or value.lower().startswith(("not ", "incorrect", "wrong")):
            continue
        if hashes and end < last_line and not _mathematics(value):
            continue  # a heading of the fourth level and no answer
        return value
    return None


def _value(rest: str) -> str:
    rest = rest.lstrip(" \t\r\n*_:")
    rest = rest[match.end() :] if (match := _HEDGE.match(rest)) else rest
    for opening, closing in _DISPLAY:
        if rest.startswith(opening) and (end := rest.find(closing, len(opening))) > 0:
            return rest[len(opening) : end].strip()
    line = rest.partition("\n")[0]
    cut = _END.search(line, match.end() if (match := _LABEL.match(line)) else 0)
    line = line[: cut.start()] if cut else line
    return line.strip(" \t\r*_").rstrip(".,;:")


def _bare(text: str) -> str | None:
    text = text.strip()
    if len(text) > MAX_CHARS // 10 or _BOX.search(text):  # a box here is one that was cut off or is empty
        return None
    return text if _real(text) and _mathematics(text) else None


def _mathematics(text: str) -> bool:
    """Whether a text is a number, with a unit perhaps, or an expression without words."""
    text = clean(text)
    if number(quantity(text)[0]) is not None:
        return True
    plain = re.sub(rf"\\{WRAPPERS} ?\{{[^{{}}]*\}}|\\[a-zA-Z]+", " ", text)
    return bool(re.search(r"\d|\\[a-zA-Z]", text)) and not re.search(r"[^\W\d_]{2}", plain)


def _real(text: str) -> bool:
    if len(text) > MAX_CHARS:
        return True
    text = clean(text).lower()
    return text.strip("[]<>() ") not in _EMPTY and any(c.isalnum() or c == "\\" for c in text)
