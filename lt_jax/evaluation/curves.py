"""The report of training runs: their curves side by side, and what they came to, in one HTML file without scripts."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from pathlib import Path

from lt_jax.evaluation import charts, curve_pictures, html_page, runs
from lt_jax.evaluation.charts import Chart
from lt_jax.evaluation.html_page import escaped
from lt_jax.evaluation.results import write_whole
from lt_jax.evaluation.runs import Line, Run, Series

LONGEST = 40  # characters of a setting that the table shows


def write(folders: Sequence[str | Path], path: str | Path, seeds: bool = False) -> None:
    """Reads the runs in `folders` and writes their report, completely or not at all.

    Args:
        seeds: runs whose names differ only in a seed at the end (`-3`, `-seed3`, `_seed3`) are one line, their mean.

    Raises:
        UserError: one of the folders is not that of a run, see `runs.read`, or the file cannot be written.
    """
    write_whole(path, page(runs.read(folders), seeds))


def page(found: Sequence[Run], seeds: bool = False) -> str:
    """The report of runs, as text."""
    lines = runs.lines(found, seeds)
    groups = charts.grouped(name for run in found for name in run.series)
    last = max(run.last_step for run in found)
    sections = [_header(found, lines, last), _legend(lines)]
    sections += [_group(title, group, lines, last) for title, group in groups.items()]
    sections.append(_table(lines, groups))
    return html_page.page(_title(found), sections)


def _title(found: Sequence[Run]) -> str:
    return f"{len(found)} runs side by side" if len(found) > 1 else found[0].name


def _header(found: Sequence[Run], lines: Sequence[Line], last: int) -> str:
    without = [run.name for run in found if run.settings is None]
    words = (
        "The numbers say where the lines end. Where values go up and down a lot, the raw line is faint, and strong is "
        "a moving mean over a twenty-fifth of the run on either side (on a log scale, of the logarithms). A cross on "
        "the axis: a value that was not a number."
    )
    counts = [_count(len(found), "run"), _count(last, "step")]
    if len(lines) < len(found):
        words += " Runs that differ in their seed alone are one colour: faint each of them, strong their mean."
        counts.insert(1, _count(len(lines), "line"))
    missing = f"<p class=note>Without config.json, so of unknown settings: {escaped(', '.join(without))}</p>"
    return (
        f"<header><p class=kicker>Training &middot; {' &middot; '.join(counts)}</p>"
        f"<h1>{escaped(_title(found))}</h1><p class=note>{words}</p>{missing if without else ''}</header>"
    )


def _count(number: int, word: str) -> str:
    return f"{number:,} {word}{'s' * (number != 1)}"


def _legend(lines: Sequence[Line]) -> str:
    names = "".join(f"<span>{_name(number, line)}</span>" for number, line in enumerate(lines))
    return f"<nav class=legend>{names}</nav>"


def _name(number: int, line: Line) -> str:
    seeds = f" <small>{len(line.runs)} seeds</small>" if len(line.runs) > 1 else ""
    return f"{curve_pictures.swatch(number)}{escaped(line.name)}{seeds}"


def _group(title: str, group: Sequence[Chart], lines: Sequence[Line], last: int) -> str:
    """The charts of a group; what never changes and is the same in all runs is a line of text."""
    still = {chart.metric: curve_pictures.constant(chart, lines) for chart in group}
    drawn = "".join(curve_pictures.chart(chart, lines, last) for chart in group if still[chart.metric] is None)
    said = [f"{escaped(chart.metric)} {_value(chart, still[chart.metric])}{_unit(chart, '&nbsp;')}"
            for chart in group if still[chart.metric] is not None]  # fmt: skip
    same = f"<p class=note>The same at every step of all runs: {'; '.join(said)}.</p>" if said else ""
    return f"<section><h2>{title}</h2><div class=charts>{drawn}</div>{same}</section>"


def _value(chart: Chart, value: float) -> str:
    """A value in the unit of its chart, which is not said."""
    return curve_pictures.number(chart.factor * value)


def _unit(chart: Chart, before: str) -> str:
    unit = {100.0: "%", 1e-6: "MB"}.get(chart.factor, "")
    return before + unit if unit else ""


def _table(lines: Sequence[Line], groups: dict[str, list[Chart]]) -> str:
    head = ["", *(_name(number, line) for number, line in enumerate(lines))]
    body = [["last step", *(", ".join(dict.fromkeys(f"{run.last_step:,}" for run in line.runs)) for line in lines)]]
    differing = runs.differing(lines)
    if differing:
        body.append(["Settings in which they differ"])
        body += [[escaped(name), *map(_setting, values)] for name, values in differing.items()]
    for title, group in groups.items():
        body.append([title])
        for chart in group:
            both = [chart] + ([Chart(chart.beside, "", chart.factor)] if chart.beside else [])
            for each in both:
                body.append([escaped(each.metric) + _unit(each, ", "), *(_final(each, line) for line in lines)])
    words = (
        "The last value of each metric; below it, the mean over the last tenth of the run where that says something "
        "else. Of several seeds: the mean of their last values, below it the least and the greatest."
    )
    grid = html_page.table(head, body)
    return f"<section class=finals><h2>Final values</h2>{grid}<p class=note>{words}</p></section>"


def _setting(value: str) -> str:
    if not value:
        return "&ndash;"
    short = value if len(value) <= LONGEST else value[: LONGEST - 3] + "..."
    return escaped(short) if short == value else f'<span title="{escaped(value)}">{escaped(short)}</span>'


def _final(chart: Chart, line: Line) -> str:
    """What a metric came to, as a cell of the table."""
    several = line.series(chart.metric)
    if not several:
        return "&ndash;"
    ends = [series.values[-1] for series in several]
    kept = [end for end in ends if math.isfinite(end)]
    say = lambda value: _value(chart, value)
    small = []
    if len(several) == 1:
        tenth = _tenth(several[0])
        if kept and tenth is not None and say(tenth) != say(kept[0]):
            small.append(f"mean {say(tenth)}")
    elif kept and say(min(kept)) != say(max(kept)):
        small.append(f"{say(min(kept))} &ndash; {say(max(kept))}")
    if kept and len(kept) < len(line.runs):
        small.append(f"of {len(kept)} of {len(line.runs)} seeds")
    shown = say(statistics.fmean(kept)) if kept else "not a number"
    return shown + "".join(f"<small>{words}</small>" for words in small)


def _tenth(series: Series) -> float | None:
    """The mean over the last tenth of the values that are numbers; None if that is one value or none."""
    values = series.finite
    last = values[-(len(values) // 10) :] if len(values) >= 20 else []
    return statistics.fmean(last) if last else None
