"""Multiple choice as public data sets keep it: the options, and which of them is right.

    {"choices": ["a", "b"], "answer": 1}                                  MMLU: an integer is an index from 0
    {"choices": ["a", "b"], "answer": "B"}                                a letter, or the text of an option
    {"choices": {"text": [...], "label": [...]}, "answerKey": "B"}        ARC, CommonsenseQA: one of the labels
    {"choices": [{"text", "label"}, ...], "answerKey": "B"}               OpenBookQA's layout by question
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from lt_jax.errors import UserError

KEYS = ("answer", "answerKey", "answer_key")


def options(record: Mapping[str, Any], where: str) -> tuple[tuple[str, ...], str] | None:
    """The options' texts and the right answer; None for a record without `choices`.

    The answer is the text of an option where a label or an index names it, else what the record says ("" if nothing).

    Raises:
        UserError: the options are no list of texts or numbers, or the index or label is none of theirs.
    """
    given = record.get("choices")
    if given is None:
        return None
    texts, labels = _parts(given, where)
    said = next((record[key] for key in KEYS if record.get(key) is not None), "")
    if isinstance(said, int) and not isinstance(said, bool):
        return texts, _numbered(said, texts, where)
    if labels and str(said) in labels:
        return texts, texts[labels.index(str(said))]
    if labels and said != "" and str(said) not in texts:
        raise UserError(f"{where}: the answer {said!r} is none of the labels {', '.join(labels)}")
    return texts, str(said)


def _numbered(said: int, texts: tuple[str, ...], where: str) -> str:
    """An integer is an index from 0. One that is too large for that may still be the option itself."""
    if 0 <= said < len(texts):
        return texts[said]
    if str(said) in texts:
        return str(said)
    raise UserError(f"{where}: the answer {said} is none of the {len(texts)} choices; an index counts from 0")


def _parts(given: Any, where: str) -> tuple[tuple[str, ...], list[str]]:
    """Texts, and labels where there are any."""
    labels: Sequence = ()
    if isinstance(given, Mapping) and "text" in given and "label" in given:
        given, labels = given["text"], given["label"]
    elif _listed(given) and all(isinstance(option, Mapping) and {"text", "label"} <= set(option) for option in given):
        given, labels = [option["text"] for option in given], [option["label"] for option in given]
    listed = _listed(given) and all(isinstance(option, str | int | float) for option in given)
    if not listed or (len(labels) and len(labels) != len(given)):
        raise UserError(
            f"{where}: field 'choices' must be a list of texts or numbers, the options A, B, ..., or their 'text' and "
            "'label', lists of one length"
        )
    return tuple(map(str, given)), [str(label) for label in labels]


def _listed(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str | bytes) and len(value) > 0
