"""Multiple choices: the options of a record, and which of them is right.

    MMLU            {"choices": ["1", "2", "3", "4"], "answer": 1}                    B: a number is a place, from 0
    ARC, CSQA, OBQA {"choices": {"text": [...], "label": ["A", "B", ...]}, "answerKey": "B"}    or labels "1", ...
    MMLU-Pro, MedQA {"options": [...] or {"A": ..., "B": ...}, "answer": "B" or its text, "answer_index": 1}
    HellaSwag       {"ctx": ..., "endings": [...], "label": "1"}                      B: `label` is a place, from 0

As an `answer`, text is an option's own text, or its label or letter. One that is two of these for different options,
or a numeral that is none, is refused: it would have to be guessed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.data import answers
from lt_jax.data.fields import text
from lt_jax.errors import UserError

_ANSWERS = ("answer", "answerKey", "answer_index", "answer_idx", "label")
_LETTER = re.compile(r"\(?([A-Za-z])[).:]?")


def read(record: Mapping[str, Any], where: str) -> tuple[str, list[str]]:
    """(answer, options) of a record; no options if it is no multiple choice, answer "" if it has none.

    The answer is text that `answers.choice` reads as the right option: as it stands in the record where that does, else
    the option's letter.

    Raises:
        UserError: options that are no list of texts; an answer that names none or several of them.
    """
    options, labels = _options(record, where)
    if not options:
        return text(record, "answer", where, ""), []
    given = {name: record[name] for name in _ANSWERS if record.get(name) not in (None, "")}
    if len(given) > 1:
        given.pop("label", None)  # where there is another answer, it may say anything
    places = {name: _place(value, name, options, labels, where) for name, value in given.items()}
    if len(set(places.values())) > 1:
        named = " and ".join(f"{name!r} is {given[name]!r}" for name in given)
        raise UserError(f"{where}: {named}, which are different choices; keep one")
    if not places:
        return "", options
    name, place = next(iter(places.items()))
    letter = chr(ord("A") + place) if place < 26 else ""
    for form in (given[name], letter, options[place]):
        if isinstance(form, str) and answers.choice(form, tuple(options)) == place:
            return form, options
    raise UserError(f"{where}: the right choice, {options[place]!r}, cannot be told from the others")


def _options(record: Mapping, where: str) -> tuple[list[str], list[str]]:
    """(options, labels) of a record; no labels where they are the letters A, B, ..."""
    for name in ("choices", "options", "endings"):
        value = record.get(name)
        labels: Sequence = ()
        if isinstance(value, Mapping) and {"text", "label"} <= value.keys():
            value, labels = value["text"], value["label"]
        elif isinstance(value, Mapping) and list(value) == [chr(ord("A") + place) for place in range(len(value))]:
            value = list(value.values()) if all(isinstance(part, str) for part in value.values()) else value
        if value is None:
            continue
        if _listed(value) and (not labels or (_listed(labels) and len(labels) == len(value))):
            return [str(option) for option in value], [str(label) for label in labels]
        if name != "options":  # which may be anything
            raise UserError(f"{where}: field {name!r} must be a list of texts or numbers, the options A, B, ..., "
                            "or an object of a list 'text' and a list 'label'")  # fmt: skip
    return [], []


def _listed(value) -> bool:
    texts = isinstance(value, list | tuple) and all(isinstance(part, str | int | float) for part in value)
    return texts and bool(value)


def _place(value, name: str, options: list[str], labels: list[str], where: str) -> int:
    """Which option the field `name` names with `value`, from 0."""
    if name == "label" and isinstance(value, str) and value.isascii() and value.isdigit():
        value = int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        if not 0 <= value < len(options):
            raise UserError(
                f"{where}: {name!r} is {value}, a number and so a place counted from 0, and there are {len(options)} "
                "choices; write the text of an option as text"
            )
        return value
    if isinstance(value, bool) or not isinstance(value, str | float):
        raise UserError(f"{where}: field {name!r} must be a place counted from 0, a letter, or an option's text")
    said = str(value)
    if "####" in said:
        said = answers.extract(said) or said
    said = said.strip()
    if name == "answerKey" and said in labels:
        return labels.index(said)
    fold = lambda words: " ".join(words.split()).casefold()
    found = {place for place, option in enumerate(options) if fold(option) == fold(said)}
    found |= {place for place, label in enumerate(labels) if label == said}
    letter = None if labels else _LETTER.fullmatch(said)
    if letter and ord(letter[1].upper()) - ord("A") < len(options):
        found.add(ord(letter[1].upper()) - ord("A"))
    if len(found) > 1:
        several = " and ".join(chr(ord("A") + place) for place in sorted(found))
        raise UserError(f"{where}: {name!r} is {said!r}, which may be option {several}; give a number, counted from 0")
    place = found.pop() if found else answers.choice(said, tuple(options))
    if place is None:
        raise UserError(f"{where}: the answer {said!r} is none of the {len(options)} choices")
    return place
