"""Units of answers in one spelling: "kilometres" and "km" are one, "km" and "m" are two. Nothing is converted."""

from __future__ import annotations

import re
from fractions import Fraction

SCALES = {"hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
SCALES = {word: Fraction(value) for word, value in SCALES.items()}

_SPELLINGS = {
    "km": "kilometer kilometre kms", "m": "meter metre", "cm": "centimeter centimetre", "mm": "millimeter millimetre",
    "kg": "kilogram kilo", "g": "gram gramme", "mg": "milligram", "L": "l liter litre",
    "mL": "ml milliliter millilitre",
    "s": "sec second", "min": "minute", "h": "hr hour", "day": "d", "week": "wk", "year": "yr", "ms": "millisecond",
    "in": "inch", "ft": "foot feet", "yd": "yard", "mi": "mile", "oz": "ounce", "pound": "lb £ \\pounds gbp",
    "ton": "tonne", "dollar": "$ \\$ usd buck", "euro": "€ \\euro eur", "yen": "¥", "rupee": "₹ rs", "cent": "¢",
    "degree": "deg", "radian": "rad", "K": "kelvin", "J": "joule", "N": "newton", "W": "watt", "V": "volt",
    "A": "ampere amp", "C": "coulomb", "Hz": "hertz", "Pa": "pascal", "mol": "mole", "kW": "kilowatt",
    "kJ": "kilojoule", "person": "people", "man": "men", "woman": "women", "child": "children", "degree C": "celsius",
    "degree F": "fahrenheit", "degree K": "",
}  # fmt: skip
_ONE = {other: unit for unit, others in _SPELLINGS.items() for other in (unit, *others.split())}
_PHRASES = {"mph": "mi/h", "kmph": "km/h", "kph": "km/h", "kmh": "km/h", "cc": "cm^3"}
_SHORT = re.compile(
    r"(?:[kcm]m|m|ft|in|mi)\^[23]|(?:km|m|mi)/(?:h|s|hr)(?:\^2)?"
    r"|[kcm]m|[km]g|m[lL]|[kM]?Hz|kW|kJ|lbs?|ft|oz|mph|kmph|kph|USD|EUR"
)
_PLURALS = (("ies", "y"), ("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("ss", "ss"), ("s", ""))
_POWERS = {"square": "^2", "sq": "^2", "cubic": "^3", "cu": "^3"}
_NO_UNIT = set(
    "and or to of is are was be if for when where with while not no mod modulo base pi sqrt sin cos tan log ln exp "
    "times plus minus over divided by squared cubed choose factorial infinity inf dozen half halves third thirds "
    "quarter quarters fifth fifths x y z percent because since so as but than more less at on from through between "
    "january february march april may june july august september october november december i e"
    .split()
)  # fmt: skip
_LETTERS = set("m g s h L l K N J W V A C F d".split())


def canonical(words: str, glued: bool = False) -> str | None:
    """One spelling of a unit: "" for one that says nothing ("units"), None for words that are no unit.

    Args:
        words: "km", "miles per hour", "cm^2", "square metres", "apples".
        glued: it stands right behind a number, where only well-known abbreviations are units.
    """
    words = " ".join(words.replace("{", "").replace("}", "").split())
    if glued and not _SHORT.fullmatch(words):
        return None
    parts, power, out = re.sub(r" ?/ ?| per ", " / ", words).split(" "), "", []
    if len(parts) > 6 or parts == [""]:
        return None if len(parts) > 6 else ""
    for part in parts:
        base, _, exponent = part.partition("^")
        if part.lower() in _POWERS:
            power = _POWERS[part.lower()]
            continue
        if part != "/" and (base.lower() in _NO_UNIT or (len(base) == 1 and base.isalpha() and base not in _LETTERS)):
            return None
        out.append(_word(base) + (f"^{exponent}" if exponent else power))
        power = ""
    said = [part for part in out if part.partition("^")[0] != "unit"]
    return "".join(part if part == "/" else f" {part}" for part in said).replace("/ ", "/").strip()


def _word(word: str) -> str:
    """The singular in its short spelling; abbreviations keep their case (mW, MW)."""
    for form in (word, word.lower(), _singular(word.lower())):
        if form in _PHRASES or form in _ONE:
            return _PHRASES.get(form) or _ONE[form]
    return _singular(word.lower()) if len(word) > 3 else word


def _singular(word: str) -> str:
    for end, instead in _PLURALS:
        if word.endswith(end) and len(word) > len(end) + 1:
            return word[: -len(end)] + instead
    return word
