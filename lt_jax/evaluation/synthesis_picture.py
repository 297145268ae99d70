"""The picture of synthesised trajectories: how long steps are, which actions are taken, and what is left of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lt_jax.evaluation.pictures import colour
from lt_jax.evaluation.results import write_whole
from lt_jax.evaluation.svg import INK, Scale, axes, picture, tag, text

WIDTH, HEIGHT = 1100.0, 380.0
TOP, BOTTOM = 64.0, 318.0
ACTIONS = {"commit": 1, "expand": 2, "fold": 3, "call": 5}  # with their colours
MOST = 8  # difficulties that are drawn


def write(numbers: Mapping[str, Any], folder: str | Path) -> None:
    """Writes statistics.svg into a folder."""
    write_whole(Path(folder) / "statistics.svg", synthesis(numbers))


def synthesis(numbers: Mapping[str, Any]) -> str:
    """An SVG of what `memory.statistics.statistics` found."""
    panels = (_steps(numbers["steps"], 60), _actions(numbers["difficulties"], 430), _yield(numbers, 790))
    return picture(WIDTH, HEIGHT, *panels, title="Synthesised trajectories")


def _steps(steps: Mapping[str, Any], left: float) -> str:
    """A histogram of the lengths of steps before their commit."""
    counts, width = steps["counts"], steps["width"]
    x = Scale(0, max(len(counts), 1) * width, left, left + 300)
    y = Scale(0, max(counts, default=0) * 1.05 or 1, BOTTOM, TOP)
    bars = [
        tag("rect", x=x(place * width) + 0.5, y=y(count), width=max(x(width) - x(0) - 1, 1), height=y(0) - y(count),
            fill=colour(1))
        for place, count in enumerate(counts) if count
    ]  # fmt: skip
    words = f"length of a step before its commit, {steps['unit']}"
    return _title(left, f"{sum(counts):,} steps") + axes(x, y, words, "steps", x_about=5) + "".join(bars)


def _actions(difficulties: Mapping[str, Any], left: float) -> str:
    """A bar for each difficulty, cut into the shares of the actions."""
    shown = list(difficulties.items())[:MOST]
    rest = len(difficulties) - len(shown)
    x = Scale(0, 100, left + 60, left + 300)
    high = min(34.0, (BOTTOM - TOP) / max(len(shown), 1))
    parts = [_title(left, "Actions by difficulty" + (f" ({rest} more not drawn)" if rest else ""))]
    parts.append(axes(x, Scale(0, 1, BOTTOM, TOP), "% of the actions but the answer", "", y_about=0,
                      y_label=lambda _: ""))  # fmt: skip
    for place, (name, group) in enumerate(shown):
        total, at = sum(group["actions"][action] for action in ACTIONS), 0.0
        top = TOP + place * high
        parts.append(text(x.start - 8, top + high / 2 + 4, name, 11, text_anchor="end"))
        for action, shade in ACTIONS.items():
            share = 100 * group["actions"][action] / max(total, 1)
            if share:
                wide = x(share) - x(0)
                parts.append(tag("rect", x=x(at), y=top + 3, width=wide, height=high - 6, fill=colour(shade)))
            at += share
    place = x.start
    for action, shade in ACTIONS.items():
        parts += [tag("rect", x=place, y=TOP - 20, width=10, height=10, rx=2, fill=colour(shade)),
                  text(place + 14, TOP - 11, action, 11)]  # fmt: skip
        place += 60
    return "".join(parts)


def _yield(numbers: Mapping[str, Any], left: float) -> str:
    """How many trajectories there are after each stage and each rule."""
    whole = numbers["all"]
    rows: list[tuple[str, int, int]] = [("worked on", whole["asked"], 0), ("answered", whole["answered"], 0)]
    rows += [("answered right", whole["correct"], 0)]
    rows += [(f"removed: {name}", count, 6) for name, count in numbers["removed"].items()]
    rows += [("kept", whole["kept"], 1)]
    return _title(left, f"A yield of {100 * whole['yield']:.1f} %") + _rows(rows, left)


def _rows(rows: Sequence[tuple[str, int, int]], left: float) -> str:
    high = (BOTTOM - TOP + 20) / len(rows)
    x = Scale(0, max((count for _, count, _ in rows), default=0) or 1, left + 118, left + 240)
    parts = []
    for place, (name, count, shade) in enumerate(rows):
        top = TOP - 10 + place * high
        parts.append(text(x.start - 8, top + high / 2 + 4, name, 11, text_anchor="end"))
        parts.append(tag("rect", x=x.start, y=top + 3, width=x(count) - x.start, height=high - 6, fill=colour(shade)))
        parts.append(text(x(count) + 6, top + high / 2 + 4, f"{count:,}", 11, INK))
    return "".join(parts)


def _title(left: float, words: str) -> str:
    return text(left - 36, 26, words, 13, INK, font_weight=600)
