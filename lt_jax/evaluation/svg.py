"""Small SVG drawing: elements as strings, linear scales, axes with round ticks. A picture needs no style sheet."""

from __future__ import annotations

import dataclasses
import html
import math
from collections.abc import Sequence

INK, SOFT, FAINT, PAPER = "#1f2328", "#5f6670", "#e4e1da", "#fffefb"
FONT = "ui-sans-serif, system-ui, 'Segoe UI', Helvetica, Arial, sans-serif"


def tag(name: str, *children: str, **attributes) -> str:
    """One element; underscores in names become dashes (`stroke_width`), None leaves an attribute out."""
    parts = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{html.escape(_plain(value), quote=True)}"'
        for key, value in attributes.items() if value is not None
    )  # fmt: skip
    return f"<{name}{parts}>{''.join(children)}</{name}>" if children else f"<{name}{parts}/>"


def _plain(value) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else str(value)


def text(x: float, y: float, words: str, size: float = 12, fill: str = SOFT, **attributes) -> str:
    """A line of text."""
    return tag("text", html.escape(words), x=float(x), y=float(y), font_size=size, fill=fill, **attributes)


def picture(width: float, height: float, *children: str, title: str, **attributes) -> str:
    """A whole SVG on paper, with a title that screen readers speak."""
    return tag(
        "svg", tag("title", html.escape(title)), tag("rect", width=width, height=height, fill=PAPER, rx=6), *children,
        xmlns="http://www.w3.org/2000/svg", viewBox=f"0 0 {_plain(float(width))} {_plain(float(height))}", width=width,
        height=height, font_family=FONT, role="img", **attributes,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Scale:
    """Maps [low, high] of the data to [start, stop] pixels."""

    low: float
    high: float
    start: float
    stop: float

    def __call__(self, value: float) -> float:
        return self.start + (value - self.low) / ((self.high - self.low) or 1) * (self.stop - self.start)


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Round values within [low, high], 1, 2 or 5 times a power of ten apart."""
    raw = (high - low) / max(about, 1) or 1.0
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda each: abs(math.log(each / raw)))
    first = math.ceil(low / step - 1e-9)
    digits = max(10, 2 - math.floor(math.log10(step)))
    return [round(k * step, digits) for k in range(first, math.floor(high / step + 1e-9) + 1)]


def label(value: float) -> str:
    """A tick's number."""
    return f"{value:,.0f}" if value == round(value) else f"{value:g}"


def axes(x: Scale, y: Scale, x_name: str, y_name: str, *, x_about: int = 6, y_about: int = 5,
         x_label=label, y_label=label) -> str:  # fmt: skip
    """Horizontal grid lines, ticks and names of both axes; the y name stands above the axis, to be read upright."""
    parts = []
    for value in ticks(min(y.low, y.high), max(y.low, y.high), y_about):
        parts.append(tag("line", x1=x.start, x2=x.stop, y1=y(value), y2=y(value), stroke=FAINT))
        parts.append(text(x.start - 8, y(value) + 4, y_label(value), 11, text_anchor="end"))
    for value in ticks(x.low, x.high, x_about):
        parts.append(tag("line", x1=x(value), x2=x(value), y1=y.start, y2=y.start + 4, stroke=SOFT))
        parts.append(text(x(value), y.start + 17, x_label(value), 11, text_anchor="middle"))
    parts.append(tag("line", x1=x.start, x2=x.stop, y1=y.start, y2=y.start, stroke=SOFT))
    parts.append(text((x.start + x.stop) / 2, y.start + 35, x_name, text_anchor="middle"))
    parts.append(text(x.start - 36, y.stop - 14, y_name))
    return "".join(parts)


def path(points: Sequence[tuple[float, float]]) -> str:
    """The `d` of a line through points."""
    return "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions for labels near `wanted`, at least `gap` apart and within [low, high] if there is room."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    for rank, i in enumerate(order):
        floor = low if rank == 0 else placed[order[rank - 1]] + gap
        placed[i] = max(wanted[i], floor)
    ceiling = high
    for i in reversed(order):
        placed[i] = min(placed[i], ceiling)
        ceiling = placed[i] - gap
    return placed


def labels(points: Sequence[tuple[float, float]], words: Sequence[str], size: float,
           box: tuple[float, float, float, float], avoid: Sequence[tuple[float, float, float, float]] = (),
           ) -> list[tuple[float, float]]:  # fmt: skip
    """Where to write a word beside each point, left end and base line, so that nothing lies over anything else.

    Each takes the first free place of: right above, right below, left above, left below, and then further up and down;
    if none is free within the box (left, top, right, bottom), right above. `avoid`: boxes that are taken besides.
    """
    taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points] + list(avoid)
    found = []
    for (x, y), word in zip(points, words, strict=True):
        wide = 0.6 * size * len(word)
        shifts = [(side, y + up) for step in range(8) for side in (x + 10, x - 10 - wide)
                  for up in (-8 - step * size, size + 4 + step * size)]  # fmt: skip
        area = lambda left, base, wide=wide: (left, base - 0.8 * size, left + wide, base + 0.25 * size)
        free = lambda a: not any(a[0] < t[2] and t[0] < a[2] and a[1] < t[3] and t[1] < a[3] for t in taken)
        inside = lambda a: a[0] >= box[0] and a[1] >= box[1] and a[2] <= box[2] and a[3] <= box[3]
        place = next((s for s in shifts if inside(area(*s)) and free(area(*s))), shifts[0])
        taken.append(area(*place))
        found.append(place)
    return found
