"""The charts of training runs: one metric each, a line for each run, in the same colours everywhere."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
import statistics
from collections.abc import Callable, Sequence

import numpy as np

from lt_jax.evaluation.charts import Chart
from lt_jax.evaluation.pictures import METHOD_COLOURS, colour
from lt_jax.evaluation.runs import Line, Series, mean
from lt_jax.evaluation.svg import INK, PAPER, Scale, axes, label, path, picture, spread, tag, text

WIDTH, HEIGHT = 340, 216
DASHES = (None, "6 3", "2 3", "9 3 2 3")  # when the colours are used up
FEW = 15  # values: of no more, each is a dot
NOISY = 5.0  # a line that climbs and falls this many times its whole range is smoothed
GAP = 11.5  # pixels from the number at the end of a line to the next
HIGH, DEEP = 100.0, 1e4  # how far a logarithmic axis reaches at least above the middle, and at most below it


@dataclasses.dataclass(frozen=True)
class Style:
    """How a line is drawn everywhere."""

    shade: str
    dash: str | None


def style(number: int) -> Style:
    """The style of a line, by its place among all."""
    return Style(colour(number), DASHES[number // len(METHOD_COLOURS) % len(DASHES)])


def swatch(number: int) -> str:
    """A short piece of a line, for the legend and for the table."""
    how = style(number)
    stroke = tag("path", d="M0 5H22", stroke=how.shade, stroke_width=2.4, stroke_dasharray=how.dash)
    return tag("svg", stroke, width=22, height=10, class_="swatch")


def smooth(series: Series) -> Series:
    """Each value replaced by the mean of its neighbours, up to a twenty-fifth of all on either side, and itself.

    Values that are not numbers are left out of the means, and stay where they are. It lags behind nothing; at either
    end it is a mean over half as many.
    """
    values = np.asarray(series.values)
    given = np.isfinite(values)
    window = np.ones(2 * max(1, round(len(values) / 25)) + 1)
    around = lambda what: np.convolve(what, window)[len(window) // 2 :][: len(values)]
    means = around(np.where(given, values, 0.0)) / np.maximum(around(given.astype(float)), 1.0)
    return Series(series.steps, tuple(np.where(given, means, values).tolist()))


def noisy(series: Series) -> bool:
    """Whether a line goes up and down so much that its course is hard to see."""
    values = series.finite
    if len(values) <= FEW:
        return False
    way = sum(abs(after - before) for before, after in zip(values, values[1:], strict=False))
    return way > NOISY * (max(values) - min(values))


def constant(chart: Chart, lines: Sequence[Line]) -> float | None:
    """The only value of a metric, where every run has it at every step and nothing is dotted beside it; else None."""
    several = [run.series.get(chart.metric) for line in lines for run in line.runs]
    if None in several or chart.beside:
        return None
    values = {value for series in several for value in series.values}
    return values.pop() if len(values) == 1 and math.isfinite(min(values)) else None


def chart(what: Chart, lines: Sequence[Line], last_step: int) -> str:
    """An SVG of one metric.

    Args:
        last_step: where the axis of steps ends.
    """
    given = [[_times(what.factor, series) for series in line.series(what.metric)] for line in lines]
    dotted = [_times(what.factor, mean(line.series(what.beside))) if what.beside else Series() for line in lines]
    x = Scale(_first_step([series for several in given for series in several], last_step), last_step, 46, WIDTH - 62)
    axis = upright([*(series for several in given for series in several), *dotted], what)
    single = [[axis.of(series) for series in several] for several in given]
    middle = [axis.of(mean(several)) for several in given]
    rough = what.metric[:5] != "eval_" and any(noisy(series) for several in single for series in several)
    strong = [smooth(series) for series in middle] if rough else middle
    parts = [text(10, 17, what.metric, 13, INK, font_weight=600),
             axes(x, axis.y, "step", axis.words, x_about=4, y_about=4, y_label=axis.tick)]  # fmt: skip
    for place, several in enumerate(single):
        if rough or len(several) > 1:
            behind = [smooth(series) for series in several] if rough and len(several) > 1 else several
            parts += [_line(series, x, axis.y, style(place), 1.0, 0.3) for series in behind]
    for place, series in enumerate(dotted):
        parts.append(_line(axis.of(series), x, axis.y, Style(style(place).shade, "1.5 3"), 1.3))
    for place, series in enumerate(strong):
        parts.append(_line(series, x, axis.y, style(place), 1.7))
        parts += [_cross(x(step), axis.y.start, style(place).shade) for step in _missing(given[place])]
    parts += _ends(strong, x, axis)
    return picture(WIDTH, HEIGHT, *parts, title=f"{what.metric} over steps")


def _times(factor: float, series: Series) -> Series:
    return Series(series.steps, tuple(factor * value for value in series.values))


def _first_step(drawn: Sequence[Series], last_step: int) -> int:
    """0 where lines begin near it, as they mostly do."""
    first = min((series.steps[0] for series in drawn if series.steps), default=0)
    return first if first > last_step / 4 and first < last_step else 0


def _missing(several: Sequence[Series]) -> list[int]:
    """The steps at which a value is not a number."""
    pairs = [pair for series in several for pair in zip(series.steps, series.values, strict=True)]
    return sorted({step for step, value in pairs if not math.isfinite(value)})


@dataclasses.dataclass(frozen=True)
class Axis:
    """The axis of values, in powers of ten where it is logarithmic.

    Attributes:
        y: from values, or their logarithms, to pixels.
        words: what stands above it. tick: the label of a tick.
        ground: of a logarithmic axis the least value; what is less, zero too, lies there. Else None.
    """

    y: Scale
    words: str
    tick: Callable[[float], str]
    ground: float | None = None

    def of(self, series: Series) -> Series:
        """A series as it lies on this axis."""
        if self.ground is None:
            return series
        return Series(series.steps, tuple(math.log10(max(value, self.ground)) for value in series.values))


def upright(given: Sequence[Series], what: Chart) -> Axis:
    """The axis for these series. It is logarithmic where half of the lines would lie on the ground otherwise."""
    values = [value for series in given for value in series.finite]
    bottom, top = HEIGHT - 42.0, 50.0
    low, high = min(values, default=0.0), max(values, default=1.0)
    middles = [statistics.median(series.finite) for series in given if any(series.finite)]
    middle = statistics.median(middles) if middles else 0.0
    if what.wide and low >= 0 and 0 < middle * HIGH < high:
        ground = 10.0 ** math.floor(math.log10(max(middle / DEEP, min(value for value in values if value > 0))))
        y = Scale(math.log10(ground), math.log10(high) + 0.05, bottom, top)
        power = lambda value: f"{10.0**value:g}" if value == round(value) else ""
        return Axis(y, ", ".join(filter(None, (what.words, "log scale"))), power, ground)
    if 0 <= low <= 0.4 * high:
        low = 0.0
    least = 0.002 * max(abs(low), abs(high)) or 1.0  # what is smaller is rounding, and would look like much
    if high - low < least:
        low, high = (low + high - least) / 2, (low + high + least) / 2
    return Axis(Scale(low, high + 0.04 * (high - low), bottom, top), what.words, _tick)


def _tick(value: float) -> str:
    """A tick's number, short enough for the margin."""
    for power, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 10 * power:
            return f"{value / power:g}{letter}"
    return label(value)


def number(value: float) -> str:
    """A value with three digits, more where they stand before the point."""
    if 0 < abs(value) < 1e-3:
        return re.sub(r"(\.0)?e-0?", "e-", f"{value:.1e}")
    return f"{value:,.0f}" if abs(value) >= 999.5 else f"{value:.3g}"


def _line(series: Series, x: Scale, y: Scale, how: Style, wide: float, opacity: float | None = None) -> str:
    """A line with a gap wherever a value is not a number. Few values, and one that stands alone, are dots."""
    pieces: list[list[tuple[float, float]]] = [[]]
    for step, value in zip(series.steps, series.values, strict=True):
        if math.isfinite(value):
            pieces[-1].append((x(step), y(value)))
        elif pieces[-1]:
            pieces.append([])
    few = len(series.values) <= FEW
    parts = [
        tag("circle", cx=left, cy=height, r=2.0, fill=how.shade)
        for piece in pieces for left, height in piece if few or len(piece) == 1
    ]  # fmt: skip
    outline = "".join(path(thinned(piece)) for piece in pieces if len(piece) > 1)
    if outline:
        parts.append(tag("path", d=outline, fill="none", stroke=how.shade, stroke_width=wide, stroke_linejoin="round",
                         stroke_dasharray=how.dash))  # fmt: skip
    return tag("g", *parts, opacity=opacity) if parts else ""


def thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Of the points in one column of pixels the first, the last, the highest and the lowest: the same line to the eye,
    however long a run is."""
    found = []
    for _, column in itertools.groupby(points, lambda point: math.floor(point[0])):
        here = list(column)
        heights = [height for _, height in here]
        kept = sorted({0, heights.index(min(heights)), heights.index(max(heights)), len(here) - 1})
        found += [here[place] for place in kept]
    return found


def _cross(x: float, y: float, shade: str) -> str:
    d = f"M{x - 3:.1f} {y - 3:.1f}l6 6m0-6l-6 6"
    return tag("path", d=d, stroke=shade, stroke_width=1.4, fill="none")


def _ends(strong: Sequence[Series], x: Scale, axis: Axis) -> list[str]:
    """Dots where lines end, and beside the axis the values there, if there is room for all from top to bottom.

    Lines that end in the same number share it: it stands once, with a dot of each of their colours, or in ink if there
    is no room for so many dots.
    """
    parts, same = [], {}
    for place, series in enumerate(strong):
        last = [pair for pair in zip(series.steps, series.values, strict=True) if math.isfinite(pair[1])][-1:]
        for step, value in last:
            shade = style(place).shade
            parts.append(tag("circle", cx=x(step), cy=axis.y(value), r=2.4, fill=shade, stroke=PAPER, stroke_width=0.8))
            said = number(value) if axis.ground is None else number(10.0**value)
            if axis.ground is not None and value <= math.log10(axis.ground):
                said = f"<{number(axis.ground)}"
            same.setdefault(said, []).append((shade, axis.y(value)))
    if len(same) > (axis.y.start - axis.y.stop + GAP) / GAP:
        return parts
    wanted = [sum(height for _, height in group) / len(group) for group in same.values()]
    for (said, group), height in zip(same.items(), spread(wanted, GAP, axis.y.stop - 4, axis.y.start), strict=True):
        shades = list(dict.fromkeys(shade for shade, _ in group))
        left = x.stop + 13 + 7 * len(said)
        fits = len(shades) == 1 or left + 6 * (len(shades) - 2) <= WIDTH - 3
        parts.append(text(x.stop + 7, height + 4, said, 11, shades[0] if fits else INK, font_weight=600))
        if fits:
            parts += [tag("circle", cx=left + 6 * k, cy=height, r=2.4, fill=each) for k, each in enumerate(shades[1:])]
    return parts
