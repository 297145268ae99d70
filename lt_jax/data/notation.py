r"""One notation for answers: what people and models write in plain LaTeX, numbers read exactly, units split off.

    clean("**x²**")               ->  "x^{2}"
    number("1 1/2")               ->  Fraction(3, 2)
    quantity("5 km")              ->  ("5", "km")
    elements(r"\{1, 2\}")         ->  (r"\{", ("1", "2"), r"\}")

Everything here is made of fixed patterns and scans. `clean` leaves a text of more than MAX_CHARS alone, so that the
others, which are given what it returns, work on short texts.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction

from lt_jax.data.units import SCALES, canonical

MAX_CHARS = 2000  # a longer "answer" is rambling; LaTeX readers are not linear in the length
MAX_WRAPPERS = 20  # one around the other
MAX_DIGITS = 400  # of a number, or in its power of ten
WRAPPERS = r"(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it|sf)|operatorname|mbox|hbox|boxed|fbox)"

_SIGNS = {
    "∞": r"\infty ", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ", "÷": "/", "⁄": "/", "∕": "/", "±": r"\pm ",
    "∓": r"\mp ", "≤": r"\le ", "≥": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "∪": r"\cup ", "∩": r"\cap ",
    "∈": r"\in ", "∅": r"\emptyset ", "°": r"^{\circ}", "−": "-", "﹣": "-", "－": "-", "′": "'", "’": "'",
    "…": r"\ldots ", "％": "%", "，": ",", "（": "(", "）": ")", "\u200b": "", "\ufeff": "", "\u2060": "",
}  # fmt: skip
_RAISED, _LOWERED = "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻ⁿ", "₀₁₂₃₄₅₆₇₈₉₊₋"
_DASH = re.compile(r"[–—‐‑‒―]")
_RANGE = re.compile(r"(?<=\d)\s*[–—‒―]\s*(?=\d)")
_ROOT = re.compile(r"([√∛])\s*(?:\(([^()]*)\)|(\d+(?:\.\d+)?|[A-Za-z])|)")
_GROUPS = re.compile(r"(?<=\d)(?:,\\!\s*|\{,\}|\\[,;: ]|[\u2009\u202f\u00a0])(?=\d{3}(?!\d))")
_SPACES = re.compile(r"\\\\|\\(?:[!,;:> ()\[\]]|q?quad(?![a-zA-Z]))|[~\s]+")
_DOTS = re.compile(r"\\(?:c|l|v|d)?dots[a-z]?(?![a-zA-Z])|\.\.\.+")
_DROPPED = re.compile(r"\\(?:display|text)style(?![a-zA-Z])|\\(?:left|right|[bB]igg?[lr]?)\s*(?=[()\[\]|]|\\[{}|])")
_PAIRS = (("**", "**"), ("__", "__"), ("`", "`"), ('"', '"'), ("“", "”"), ("*", "*"), ("'", "'"))
_WRAPPED = re.compile(rf"\\{WRAPPERS}\s*\{{")

_INT = r"(?:\d{1,3}(?:,\d{3})+|\d{1,3}(?: \d{3})+|\d+)"
_POINT = rf"(?:{_INT}(?:\.\d*)?|\.\d+)"
_POWER = r"10 ?\^ ?(?:\{ ?([+-]? ?\d+) ?\}|([+-]?\d+))"
_DECIMAL = re.compile(rf"({_POINT})(?:[eE]([+-]?\d+)| ?(?:\\times|\\cdot|\*|x) ?{_POWER})?")
_TEN = re.compile(_POWER)
_RATIO = re.compile(rf"(?:({_INT}) )?({_POINT}) ?/ ?(\d+)")
_FRAC = re.compile(rf"({_INT})? ?\\[dtc]?frac ?(?:\{{ ?([+-]?{_INT}) ?\}}|(\d)) ?(?:\{{ ?({_INT}) ?\}}|(\d))")

_MONEY = re.compile(r"([+-]?) ?(?:US ?)?(\\?\$|€|£|¥|₹|\\euro|\\pounds) ?(?=[\d.])|(?P<code>USD|EUR|GBP) ?(?=[\d.])")
_MONEY_AFTER = re.compile(r"(?<=\d) ?(\\?\$|€|£|¥|₹|\\euro|\\pounds)$")
_PERCENT = re.compile(r"(?:\\?%|\\(?:text|mathrm)\{ ?(?:\\?%|per ?cent) ?\}| (?:per ?cent(?:age)?|pct))$", re.I)
_DEGREE = re.compile(r"(?:\^ ?\{? ?\\circ ?\}?|\\degree) ?(?:\\(?:text|mathrm) ?\{ ?)?([CFK]?) ?\}?$")
_BASE = re.compile(r"(?<=\d) ?_ ?\{? ?(?:\\text ?\{)?(\w+)[ }]*$")
_CALL = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc|log|ln)(?![a-zA-Z])")
_NAMED = re.compile(
    r"(?:(?<=\S) ?(?:/|\\cdot)? ?\\(?:text(?:bf|it|rm|normal)?|math(?:rm|bf|it)|mbox|hbox) ?\{[^{}]*\}"
    r"(?: ?\^ ?(?:\{ ?-?\d ?\}|-?\d))?)+$"
)
_POWERED = r"[A-Za-z]+(?:\^(?:\{-?\d\}|-?\d))?"
_WORDS_AFTER = re.compile(rf"(?:(?<=[\d)}}])|(?<=\\pi)) ({_POWERED}(?:(?: ?/ ?| ){_POWERED}){{0,3}})$")
_GLUED = re.compile(rf"(?<=\d)({_POWERED}(?:/{_POWERED})?)$")


def clean(text: str) -> str:
    r"""`text` in one notation, without what does not matter.

    Characters become LaTeX (∞, √2, ½, x², π, a dash for a minus), `\dfrac` becomes `\frac`; delimiters of mathematics,
    markdown's stars, quotes, wrappers such as `\text{...}` around the whole, thin spaces and a mark at the end go.
    A `$` that opens nothing stays: it means dollars. A dash between two numbers is a range and no minus.
    """
    text = text.strip()
    if len(text) > MAX_CHARS:
        return text
    text = _GROUPS.sub("", _characters(text))
    text = _SPACES.sub(lambda m: m[0] if m[0] == r"\\" else "" if m[0] == r"\!" else " ", text)
    text = _DROPPED.sub("", _DOTS.sub(lambda _: r"\ldots ", text))
    text = re.sub(r"\\[dtc]frac(?![a-zA-Z])", lambda _: r"\frac", _math_signs(text))
    for _ in range(MAX_WRAPPERS):
        before, text = text, _unwrapped(re.sub(" +", " ", text).strip().lstrip("=:").rstrip(".,;:").strip())
        if text == before:
            break
    if infinite := re.fullmatch(r"([+-]?) ?(?:infinity|inf|oo)", text, re.I):
        return infinite[1] + r"\infty"
    return text


def _characters(text: str) -> str:
    if text.isascii():
        return text
    text = _RANGE.sub("–", text)  # 3–5 are not -2
    text = _DASH.sub(lambda m: m[0] if _RANGE.match(text, m.start()) else "-", text)
    text = re.sub(f"[{_RAISED}]+", lambda m: f"^{{{unicodedata.normalize('NFKC', m[0])}}}".replace("−", "-"), text)
    text = re.sub(f"[{_LOWERED}]+", lambda m: f"_{{{unicodedata.normalize('NFKC', m[0])}}}".replace("−", "-"), text)
    root = lambda m: (r"\sqrt[3]" if m[1] == "∛" else r"\sqrt") + f"{{{m[2] or m[3]}}}" * bool(m[2] or m[3])
    return "".join(_SIGNS.get(c) if c in _SIGNS else _character(c) for c in _ROOT.sub(root, text))


def _character(c: str) -> str:
    if c.isascii() or c in "\u2009\u202f\u00a0–":
        return c
    if unicodedata.decomposition(c).startswith("<fraction>"):
        top, _, bottom = unicodedata.normalize("NFKC", c).partition("⁄")
        return rf"\frac{{{top}}}{{{bottom}}}" if bottom else c
    name = unicodedata.name(c, "").split()
    if name[:3] == ["GREEK", "SMALL", "LETTER"] and len(name) == 4:
        return "\\" + {"LAMDA": "lambda", "FINAL": "sigma"}.get(name[3], name[3].lower()) + " "
    return unicodedata.normalize("NFKC", c) if name[:1] == ["FULLWIDTH"] else c


def _math_signs(text: str) -> str:
    """Without the `$` around mathematics: pairs, or a single one that no number follows or precedes."""
    free = re.sub(r"\\\$", "", text).count("$")
    if free % 2 and (_MONEY.match(text) or _MONEY_AFTER.search(text)):
        return text
    return re.sub(r"(?<!\\)\$", " ", text) if free else text


def _unwrapped(text: str) -> str:
    for left, right in _PAIRS:
        if len(text) > len(left + right) and text.startswith(left) and text.endswith(right):
            inside = text[len(left) : -len(right)]
            if left not in inside and right not in inside:
                return inside
    if text.startswith("**") != text.endswith("**"):
        return text.removeprefix("**").removesuffix("**")
    head = _WRAPPED.match(text)
    start = head.end() if head else 1 if text.startswith("{") else 0
    if start and closing_brace(text, start) == len(text) - 1 and (head or "," not in text):
        return text[start:-1]
    return text


def closing_brace(text: str, start: int) -> int | None:
    """Where the brace is that closes the one before `start`, or None. Escaped ones do not count."""
    depth = 1
    for match in re.compile(r"\\.|[{}]", re.DOTALL).finditer(text, start):
        depth += {"{": 1, "}": -1}.get(match[0], 0)
        if depth == 0:
            return match.start()
    return None


def number(text: str) -> Fraction | None:
    r"""The exact value of a plain number, None for anything else.

    "1,234", "1 234", "-0.50", "3/4", "1 1/2", "1e3", r"1.6\times10^{-19}", r"10^{3}", r"\frac{3}{4}", r"1\frac12". The
    fraction of a mixed number must be a proper one. Other digits than ASCII's are no numbers.
    """
    text = text.replace("−", "-").strip()
    if len(text) > MAX_DIGITS or not text.isascii() or not any(c.isdigit() for c in text):
        return None
    sign = -1 if text.startswith("-") else 1
    rest = text[1:].lstrip() if text[:1] in "+-" else text
    value = _unsigned(rest)
    return None if value is None else sign * value


def unclear(text: str) -> bool:
    """Whether a text looks like a mixed number and is none: "4 10/3" may be a sum or a product."""
    return number(text) is None and bool(_RATIO.fullmatch(text.lstrip("+- ")) or _FRAC.fullmatch(text.lstrip("+- ")))


def _unsigned(text: str) -> Fraction | None:
    plain = lambda digits: Fraction(re.sub("[, ]", "", digits).rstrip(".") or "0")
    if match := _DECIMAL.fullmatch(text):
        return _scaled(plain(match[1]), match[2] or match[3] or match[4] or "0")
    if match := _TEN.fullmatch(text):
        return _scaled(Fraction(1), match[1] or match[2])
    if match := _RATIO.fullmatch(text) or _FRAC.fullmatch(text):
        whole, top, bottom = match[1], *[group for group in match.groups()[1:] if group is not None]
        top, bottom = plain(top.lstrip("+-")) * (-1 if top.startswith("-") else 1), plain(bottom)
        if bottom == 0 or (whole is not None and not 0 <= top < bottom):
            return None
        return top / bottom + (plain(whole) if whole is not None else 0)
    return None


def _scaled(value: Fraction, exponent: str) -> Fraction | None:
    exponent = int(exponent.replace(" ", ""))
    return value * Fraction(10) ** exponent if abs(exponent) <= MAX_DIGITS else None


def quantity(text: str) -> tuple[str, str | None]:
    r"""A cleaned text as (value, unit), the unit in one spelling (`units.canonical`), None if there is none.

    Units are: a sign of money, per cent ("%"), degrees, the base
    of a numeral (`12_5`), `\text{...}` at the end, up to four words after a number and a
    space, and well-known abbreviations right behind one ("5km"). A letter right behind a number is a variable. Words
    that are no units ("5 or 6", "2 pi", "5 June") leave the text whole; "5 million" is a number.
    """
    for pattern, group in ((_MONEY, "front"), (_MONEY_AFTER, "end")):
        if match := pattern.match(text) if group == "front" else pattern.search(text):
            sign = (match[1] or "") if group == "front" else ""
            unit = canonical(match["code"] or match[2] if group == "front" else match[1])
            value, more = quantity(sign + text[match.end() :] if group == "front" else text[: match.start()])
            return (value, unit) if more in (None, unit) else (text, None)
    if match := _PERCENT.search(text):
        return text[: match.start()].strip() or text, "%"
    if (match := _DEGREE.search(text)) and match.start() and not _CALL.search(text):
        return text[: match.start()].strip(), canonical(f"degree {match[1]}".strip())
    if match := _BASE.search(text):  # the reader drops it
        return text[: match.start()], f"base {match[1]}"
    for pattern in (_NAMED, _WORDS_AFTER, _GLUED):
        match = pattern.search(text)
        if match is None or not text[: match.start()].strip():
            continue
        words = re.sub(rf"\\{WRAPPERS} ?\{{([^{{}}]*)\}}", r" \1", match[0]).replace(r"\cdot", " ").strip()
        value, first = text[: match.start()].strip(), words.split(" ")[0].lower()
        if first in SCALES and number(value) is not None:
            unit = canonical(words[len(first) :].strip())
            return (text, None) if unit is None else (str(number(value) * SCALES[first]), unit or None)
        unit = canonical(words, glued=pattern is _GLUED)
        if unit is not None:
            return value, unit or None
    return text, None


def elements(text: str) -> tuple[str, tuple[str, ...], str] | None:
    r"""A cleaned list, set, point or interval as (opening bracket, parts, closing bracket); None for a single thing.

    Parts are divided by commas, semicolons, "and" and "or" outside of all brackets; a list without brackets has "" for
    both. `\pm 2` is a list of two. A set of one is a list; other brackets around one thing are not.
    """
    left, right = "", ""
    for opening in (r"\{", "{", "(", "["):
        closings = {r"\{": (r"\}",), "{": ("}",)}.get(opening, (")", "]"))
        closing = next((c for c in closings if text.endswith(c)), None)
        if text.startswith(opening) and closing and _encloses(text, opening, closing):
            left, right, text = opening.lstrip("\\"), closing.lstrip("\\"), text[len(opening) : -len(closing)]
            break
    parts = tuple(sign.strip() for part in _divided(_ungrouped(text)) for sign in _both_signs(part))
    return None if len(parts) == 1 and left != "{" else (left, parts, right)


_TOKEN = re.compile(r"\\[a-zA-Z]+|\\.|[()\[\]{},;]", re.DOTALL)
_DEPTH = dict.fromkeys(["(", "[", "{", r"\{", r"\begin"], 1) | dict.fromkeys([")", "]", "}", r"\}", r"\end"], -1)
_PLUS_MINUS = re.compile(r"\\(p|m)(?:m|p)(?![a-zA-Z])")
_AND = re.compile(r",? ?(?:\\(?:text|mathrm|mbox) ?\{ ?(?:and|or) ?\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z])) ?")


def _encloses(text: str, opening: str, closing: str) -> bool:
    """Whether the bracket at the start is closed by the one at the end, and not before."""
    depth = 0
    for match in _TOKEN.finditer(text):
        depth += _DEPTH.get(match[0], 0)
        if depth == 0:
            return match.end() == len(text)
    return False


def _both_signs(text: str) -> list[str]:
    if not _PLUS_MINUS.search(text):
        return [text]
    upper = lambda m: "+" if m[1] == "p" else "-"
    lower = lambda m: "-" if m[1] == "p" else "+"
    return [_PLUS_MINUS.sub(upper, text), _PLUS_MINUS.sub(lower, text)]


def _divided(text: str) -> list[str]:
    text = _AND.sub(";", text)
    cuts, depth = [0], 0
    for match in _TOKEN.finditer(text):
        depth += _DEPTH.get(match[0], 0)
        if depth == 0 and match[0] in ",;":
            cuts += [match.start(), match.end()]
    cuts.append(len(text))
    return [text[a:b] for a, b in zip(cuts[::2], cuts[1::2], strict=True)]


def _ungrouped(text: str) -> str:
    """Where commas with a space divide, a comma inside a number ("1,234, 5") does not."""
    spaced = re.search(r", |;| (?:and|or) ", text)
    return re.sub(r"(?<=\d),(?=\d{3}(?!\d))", "", text) if spaced else text
