"""What training runs left in their folders, read for comparison: their metrics step by step, and their settings."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from lt_jax.errors import UserError

SEED = re.compile(r"(?:-\d+|[-_]seed[-_]?\d+)$")  # what names of runs that differ in their seed alone end in


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric of one run: its values at rising steps. What was not a number is NaN."""

    steps: tuple[int, ...] = ()
    values: tuple[float, ...] = ()

    @property
    def finite(self) -> list[float]:
        """The values that are numbers."""
        return [value for value in self.values if math.isfinite(value)]


@dataclasses.dataclass(frozen=True)
class Run:
    """One run.

    Attributes:
        folder: where it is. name: the last part of it, and of the parts before as many as tell runs apart.
        series: {metric: its values}, in the order in which they were first logged.
        settings: its config.json, {"rollout.group": "8"}, without what is null; None if it has none.
    """

    folder: Path
    name: str
    series: dict[str, Series]
    settings: dict[str, str] | None

    @property
    def last_step(self) -> int:
        return max(series.steps[-1] for series in self.series.values())


@dataclasses.dataclass(frozen=True)
class Line:
    """What is one line of each chart and one column of the table: a run, or several that differ in their seed."""

    name: str
    runs: tuple[Run, ...]

    def series(self, metric: str) -> list[Series]:
        """The values of the runs that have this metric."""
        return [run.series[metric] for run in self.runs if metric in run.series]


def read(folders: Sequence[str | Path]) -> list[Run]:
    """The runs of several folders, in this order.

    Raises:
        UserError: there are none, one is named twice, or one of them is not the folder of a run; see `metrics`.
    """
    if not folders:
        raise UserError("no runs are given; name their folders with commas between them, --runs=runs/a,runs/b")
    paths = [Path(folder).expanduser().resolve() for folder in folders]
    for place, path in enumerate(paths):
        if path in paths[:place]:
            raise UserError(f"{folders[place]} is given twice")
    found = [(metrics(folder), settings(folder)) for folder in folders]
    return [Run(path, name, *each) for path, name, each in zip(paths, _names(paths), found, strict=True)]


def metrics(folder: str | Path) -> dict[str, Series]:
    """The metrics of the run in `folder`, which `training.metrics.Jsonl` wrote. The last line may be half a line, of a
    run that is writing it or was killed then; it is left out.

    Raises:
        UserError: there is no metrics.jsonl, or nothing in it, or a line in it that `Jsonl` does not write.
    """
    path = Path(folder).expanduser() / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").rstrip().split("\n")
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give the folder of a training run, --runs=runs/NAME") from None
    found: dict[str, dict[int, float]] = {}
    for number, line in enumerate(lines, 1):
        try:
            values = json.loads(line)
            step = values.pop("step")
            if not isinstance(step, int):
                raise TypeError
        except (ValueError, KeyError, TypeError, AttributeError):
            if number == len(lines):
                break
            raise UserError(f'{path}, line {number}: not {{"step": NUMBER, NAME: VALUE, ...}}, as runs log') from None
        for name, value in values.items():
            if not isinstance(value, int | float | None):
                raise UserError(f"{path}, line {number}: {name} is {value!r}, which is no number and not null")
            found.setdefault(name, {})[step] = value if value is not None and math.isfinite(value) else math.nan
    if not found:
        raise UserError(f"{path}: nothing has been logged yet; wait for the run's first train.log_every steps")
    return {name: Series(*zip(*sorted(values.items()), strict=True)) for name, values in found.items()}


def settings(folder: str | Path) -> dict[str, str] | None:
    """The config.json of a run, {"rollout.group": "8"}, without what is null; None if there is none.

    Raises:
        UserError: it cannot be read.
    """
    path = Path(folder).expanduser() / "config.json"
    try:
        return dict(_flat(json.loads(path.read_text(encoding="utf-8"))))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None


def _flat(group: dict, above: str = "") -> Iterable[tuple[str, str]]:
    for name, value in group.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{above}{name}.")
        elif value is not None:
            yield above + name, value if isinstance(value, str) else json.dumps(value)


def lines(runs: Sequence[Run], seeds: bool = False) -> list[Line]:
    """The lines that runs are drawn as: one each or, with `seeds`, one for all whose names are alike but for a `-3`,
    `-seed3` or `_seed3` at the end."""
    together: dict[str, list[Run]] = {}
    for run in runs:
        together.setdefault(SEED.sub("", run.name) if seeds else run.name, []).append(run)
    # What has no siblings keeps its whole name: its ending need not be a seed.
    return [Line(name if len(group) > 1 else group[0].name, tuple(group)) for name, group in together.items()]


def differing(lines: Sequence[Line]) -> dict[str, list[str]]:
    """The settings in which runs differ: {name: for each line what its runs have, "" for what is not set}.

    The folder is left out, and so are runs without config.json; their lines have "?".
    """
    known = [run.settings for line in lines for run in line.runs if run.settings is not None]
    names = dict.fromkeys(name for values in known for name in values if name != "folder")
    differ = [name for name in names if len({values.get(name) for values in known}) > 1]
    return {name: [_said(line, name) for line in lines] for name in differ}


def _said(line: Line, name: str) -> str:
    values = ["?" if run.settings is None else run.settings.get(name, "") for run in line.runs]
    return ", ".join(dict.fromkeys(values))


def mean(several: Sequence[Series]) -> Series:
    """The mean of several runs, at the steps that all of them logged; NaN where one of them is. Of none: nothing."""
    if len(several) < 2:
        return several[0] if several else Series()
    tables = [dict(zip(series.steps, series.values, strict=True)) for series in several]
    steps = sorted(set(tables[0]).intersection(*tables[1:]))
    return Series(tuple(steps), tuple(sum(each[step] for each in tables) / len(tables) for step in steps))


def _names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, and of the parts before as many as make all names differ."""
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        names = ["/".join(path.parts[-depth:]) for path in paths]
        if len(set(names)) == len(paths):
            return names
    return [str(path) for path in paths]
