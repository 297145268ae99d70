"""The keys that every token of an answer saw, for several methods in one picture."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from lt_jax.errors import UserError
from lt_jax.evaluation.curve_pictures import style, thinned
from lt_jax.evaluation.svg import Scale, axes, path, picture, spread, tag, text
from lt_jax.evaluation.timeline import has_counts
from lt_jax.memory.log import Log

FIELDS = {"id": str, "question": str, "gold": str, "answer": str, "correct": bool, "visible": list}


@dataclasses.dataclass(frozen=True)
class Keys:
    """An answer of a method without actions, as one line of JSON: {"id": "q7", "question": "...", "visible": [31, 32]}.

    Attributes:
        visible: keys that each token of the answer saw, itself included (`Completion.visible`).
        gold, answer, correct: as of `log.Log`.
    """

    id: str
    question: str
    visible: tuple[float, ...]
    gold: str = ""
    answer: str = ""
    correct: bool | None = None

    def to_json(self) -> dict:
        """As JSON values."""
        return {**dataclasses.asdict(self), "visible": list(self.visible)}


def keys_from_json(record, where: str = "record") -> Keys:
    """Raises UserError if a field is missing, unknown or of the wrong kind."""
    for name in ("id", "question", "visible"):
        if name not in record:
            raise UserError(f"{where}: an answer with 'visible' needs the field {name!r}")
    for name, value in record.items():
        if name not in FIELDS:
            raise UserError(f"{where}: unknown field {name!r} of an answer; known are {', '.join(FIELDS)}")
        if not isinstance(value, FIELDS[name]) and not (name == "correct" and value is None):
            raise UserError(f"{where}: field {name!r} must be of the kind {FIELDS[name].__name__}")
    number = lambda value: isinstance(value, int | float) and not isinstance(value, bool) and value > 0
    if not record["visible"] or not all(map(number, record["visible"])):
        raise UserError(f"{where}: field 'visible' must be a list of numbers of keys, one at least, each above 0")
    return Keys(**{**record, "visible": tuple(record["visible"])})


def visible(shown: Log | Keys) -> tuple[float, ...]:
    """The keys that each token saw which the model wrote; () where nobody counted them. In a turn nothing ends, so each
    of its tokens sees one key more than the one before."""
    if isinstance(shown, Keys):
        return shown.visible
    if not has_counts(shown):
        return ()
    return tuple(turn.context + place for turn in shown.turns for place in range(1, turn.written + 1))


def chart(curves: Sequence[tuple[str, Sequence[float]]], width: float, height: float = 240) -> str:
    """The SVG.

    Args:
        curves: (name of a method, keys that each token saw); without any for a method that has none.
    """
    longest = max(len(values) for _, values in curves)
    x = Scale(0, longest, 52, width - 180)
    y = Scale(0, 1.06 * max(max(values, default=0) for _, values in curves), height - 44.0, 34)
    parts = [axes(x, y, "tokens that the model wrote", "keys visible", x_about=8)]
    ends = []
    for number, (name, values) in enumerate(curves):
        if not values:
            continue
        how = style(number)
        points = [(x(place + 1), y(value)) for place, value in enumerate(values)]
        parts.append(tag("path", d=path(thinned(points)), fill="none", stroke=how.shade, stroke_width=1.7,
                         stroke_dasharray=how.dash, stroke_linejoin="round"))  # fmt: skip
        parts.append(tag("circle", cx=points[-1][0], cy=points[-1][1], r=2.6, fill=how.shade))
        ends.append((points[-1], f"{name}: peak {max(values):,.0f}", how.shade))
    for (point, words, fill), at in zip(ends, spread([point[1] for point, _, _ in ends], 15, 30, y.start), strict=True):
        parts.append(tag("line", x1=point[0], x2=x.stop + 8, y1=point[1], y2=at, stroke=fill, opacity=0.35))
        parts.append(text(x.stop + 11, at + 4, words, 11.5, fill, font_weight=600))
    return picture(width, height, *parts, title="Keys visible to each token that was written, by method")
