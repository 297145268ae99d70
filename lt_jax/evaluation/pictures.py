"""The pictures of an evaluation. Each is an SVG that needs no other file."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from lt_jax.evaluation import metrics
from lt_jax.evaluation.results import MethodResult, Results, Sample, drawable
from lt_jax.evaluation.svg import FAINT, INK, SOFT, Scale, axes, labels, path, picture, spread, tag, text
from lt_jax.layout.row import Role
from lt_jax.lifetimes import visible

# Okabe and Ito's palette, darkened to read as lines and text on white; the baseline is grey.
METHOD_COLOURS = ("#6b7280", "#00735c", "#c2410c", "#1d5fa8", "#a21caf", "#8a6d00", "#b91c1c")
THOUGHT, GIST, PROMPT, TEXT, DEAD = "#e3a857", "#00735c", "#9aa3ae", "#4a7fb5", "#f0ede6"
ROLE_COLOURS = {
    Role.PROMPT: PROMPT, Role.THOUGHT: THOUGHT, Role.TRIGGER: "#b45309", Role.INSTRUCTION: "#d9c7a3", Role.GIST: GIST,
    Role.OUTPUT: "#58b09c", Role.TEXT: TEXT, Role.EOS: INK, Role.PAD: FAINT,
}  # fmt: skip
ROLE_NAMES = {
    Role.PROMPT: "prompt", Role.THOUGHT: "thought", Role.TRIGGER: "trigger", Role.INSTRUCTION: "instruction",
    Role.GIST: "gist", Role.OUTPUT: "output token", Role.TEXT: "text", Role.EOS: "end", Role.PAD: "padding",
}  # fmt: skip


def colour(number: int) -> str:
    """The colour of a method, by its place in the results."""
    return METHOD_COLOURS[number % len(METHOD_COLOURS)]


def mask(sample: Sample) -> np.ndarray:
    """Which tokens each token of a sample can see: bool [N, N], queries downwards, keys to the right."""
    index, gist = np.arange(len(sample.death)), np.asarray(sample.gist)
    return visible(index, np.asarray(sample.death), index, np.asarray(sample.since), gist, gist, sample.gist_rule)


def regions(seen: np.ndarray, role: Sequence[int]) -> list[tuple[int, int, int, int, int]]:
    """Cuts a mask [N, N] into vertical strips, few enough that each can be drawn as a polygon.

    Returns:
        (first key, last key + 1, first query of the first key, step, last query + 1): neighbouring keys of one role
        that are seen until the same query, and from one query on (step 0) or each from one later (step 1).
    """
    done, open_ = [], []
    for key in range(seen.shape[1]):
        column = np.concatenate([[False], seen[:, key], [False]])
        edges = np.flatnonzero(column[1:] != column[:-1])
        grown = []
        for start, end in zip(edges[::2].tolist(), edges[1::2].tolist(), strict=True):
            for strip in open_:
                first, last, since, step, until, kind = strip
                if last == key and until == end and kind == role[key]:
                    wide = last - first
                    if (step == 0 and start == since) or (step == 1 and start == since + wide) or (
                        wide == 1 and start - since in (0, 1)
                    ):
                        open_.remove(strip)
                        grown.append((first, key + 1, since, start - since if wide == 1 else step, end, kind))
                        break
            else:
                grown.append((key, key + 1, start, 0, end, role[key]))
        done += open_
        open_ = grown
    return [strip[:5] for strip in done + open_]


def lifetimes(sample: Sample, side: float = 540) -> str:
    """Which tokens each token can see: keys to the right, queries (time) downwards, coloured by the role of the key.
    What full attention would see besides is grey."""
    seen, n = mask(sample), len(sample.death)
    left, top = 56.0, 58.0
    unit = side / n
    place = Scale(0, n, 0, side)
    parts = [tag("path", d=_stairs(0, n, 0, 1, n, unit), fill=DEAD)]
    for region in regions(seen, sample.role):
        parts.append(tag("path", d=_stairs(*region, unit), fill=ROLE_COLOURS[Role(sample.role[region[0]])]))
    for value in range(0, n, _round_step(n)):
        parts.append(text(place(value), -8, f"{value:,}", 11, text_anchor="middle"))
        parts.append(text(-8, place(value) + 4, f"{value:,}", 11, text_anchor="end"))
    parts.append(tag("path", d=f"M0 0H{side:.1f}M0 0V{side:.1f}", stroke=SOFT, fill="none"))
    parts.append(tag("g", id="cross", pointer_events="none"))
    share = seen.sum() / (n * (n + 1) / 2)
    used = {ROLE_NAMES[role]: shade for role, shade in ROLE_COLOURS.items() if int(role) in set(sample.role)}
    if share < 0.999:
        used["already dead"] = DEAD
    return picture(
        side + left + 24, side + top + 44,
        text(left + side / 2, 20, "key: index of the token that is seen", text_anchor="middle"),
        text(18, top + side / 2, "query: index of the token that looks (time runs down)", text_anchor="middle",
             transform=f"rotate(-90 18 {top + side / 2:.1f})"),
        tag("g", *parts, transform=f"translate({left:.0f} {top:.0f})", id="matrix", data_unit=unit),
        text(left + side, top + 24, f"{100 * share:.0f} % of the pairs of full attention", 13, INK, text_anchor="end"),
        _legend(used, left, top + side + 26),
        title="Who sees whom in one sample",
    )  # fmt: skip


def _stairs(first: int, last: int, since: int, step: int, until: int, unit: float) -> str:
    """The outline of one region: exact steps of one token each."""
    f = lambda value: f"{value * unit:.2f}"
    if step == 0:
        return f"M{f(first)} {f(since)}H{f(last)}V{f(until)}H{f(first)}Z"
    stairs = "".join(f"H{f(first + i + 1)}V{f(min(since + i + 1, until))}" for i in range(last - first - 1))
    return f"M{f(first)} {f(since)}{stairs}H{f(last)}V{f(until)}H{f(first)}Z"


def _round_step(n: int) -> int:
    return next(step for step in (5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10**9) if n / step <= 8)


def _legend(shades: dict[str, str], x: float, y: float) -> str:
    parts = []
    for name, shade in shades.items():
        parts += [tag("rect", x=x, y=y - 9, width=10, height=10, rx=2, fill=shade), text(x + 15, y, name)]
        x += 29 + 6.4 * len(name)
    return "".join(parts)


def bars(sample: Sample, width: float = 560) -> str:
    """A bar for each thought, from its first token to the moment it can no longer be seen, and then for its gist."""
    n, role, thought = len(sample.death), np.asarray(sample.role), np.asarray(sample.thought)
    death = np.minimum(np.asarray(sample.death), n)
    groups = [("prompt", np.flatnonzero(role == Role.PROMPT))]
    groups += [(f"thought {t + 1}", np.flatnonzero(thought == t)) for t in range(thought.max(initial=-1) + 1)]
    rest = np.flatnonzero((thought < 0) & (role != Role.PROMPT))
    if len(rest):
        groups.append(("end" if (role[rest] == Role.EOS).all() else "text", rest))
    high = max(9.0, min(26.0, 480 / len(groups)))
    left, top = 84.0, 34.0
    x, parts = Scale(0, n, left, width - 30), []
    for number, (name, indices) in enumerate(groups):
        y = top + number * high
        if high >= 12 or number % 5 == 0:
            parts.append(text(left - 8, y + high / 2 + 4, name, 11, text_anchor="end"))
        for run in _runs(indices, role, death):
            kind, start, stop = Role(role[run[0]]), int(run[0]), int(death[run].max())
            ends = x(stop)
            parts.append(tag("rect", x=x(start), y=y + high * 0.14, width=max(ends - x(start), 1), height=high * 0.72,
                             rx=2, fill=ROLE_COLOURS[kind], data_from=start, data_to=stop))  # fmt: skip
            if high >= 15 and ends - x(start) > 26:
                shade = INK if kind in (Role.THOUGHT, Role.PROMPT) else "#ffffff"
                parts.append(text(x(start) + 6, y + high / 2 + 4, str(len(run)), 11, shade))
    bottom = Scale(0, 1, top + len(groups) * high + 4, top)
    words = "bars: from birth to death; numbers: tokens of a bar"
    frame = axes(x, bottom, "token index (time)", words, y_about=0, y_label=lambda _: "")
    return picture(width, top + len(groups) * high + 52, frame, *parts, title="Lifetimes of the keys of one sample")


def _runs(indices: np.ndarray, role: np.ndarray, death: np.ndarray) -> list[np.ndarray]:
    """Splits indices into runs of neighbours that die together. Gists and their output token form one run."""
    if len(indices) == 0:
        return []
    lasting = (death[indices] == death.max()) & np.isin(role[indices], (Role.GIST, Role.OUTPUT))
    key = np.where(lasting, -1, death[indices])
    cuts = np.flatnonzero((key[1:] != key[:-1]) | (np.diff(indices) != 1)) + 1
    return np.split(indices, cuts)


def over_time(results: Results, problem: int | None = None, width: float = 1100) -> str:
    """How many keys the newest token sees, over the tokens sampled so far.

    Args:
        problem: the one that the left half shows; None chooses one in which the method can be seen at work.

    Returns:
        an SVG: one problem on the left; on the right the mean of all problems with its 10th to 90th percentile.
    """
    if problem is None and (drawn := shown(results)):
        kept = [sample.problem for sample in results.methods[0].samples] or [drawn[1].problem]
        problem = drawn[1].problem if drawn[1].problem in kept else kept[0]
    singles, means = [], []
    for number, method in enumerate(results.methods):
        sample = next((s for s in method.samples if s.problem == problem), None)
        if sample is not None:
            seen = [v for v, forced in zip(sample.visible, sample.forced, strict=True) if not forced]
            singles.append((method.name, colour(number), list(range(1, len(seen) + 1)), seen, None))
        c = method.curve
        means.append((method.name, colour(number), c.at, c.mean, (c.low, c.high)))
    singles, means = ([line for line in lines if line[2]] for lines in (singles, means))  # empty answers have none
    half = width / 2
    count = len(results.methods[0].records)
    wanted = [
        (singles, 0.0, "One problem: at every drop, tokens leave the cache"),
        (means, half, f"Mean of {count:,} problem{'s' * (count != 1)} (shaded: 10th to 90th percentile)"),
    ]
    panels = [_panel(lines, half, x, name) for lines, x, name in wanted if lines]
    return picture(width, 360, *panels, title="Visible keys over time")


def _panel(lines, width: float, left: float, name: str) -> str:
    peaks = [f"at most {max(values):,.0f}" if band is None else "" for _, _, _, values, band in lines]
    margin = 24 + max(max(7.4 * len(line[0]), 6.2 * len(peak)) for line, peak in zip(lines, peaks, strict=True))
    x = Scale(0, max((max(at, default=1) for _, _, at, _, _ in lines), default=1), left + 58, left + width - margin)
    top = max(max([*values, *(band[1] if band else [])], default=1) for _, _, _, values, band in lines)
    y = Scale(0, top * 1.04, 304, 54)
    parts = [text(x.start - 36, 22, name, 13, INK, font_weight=600),
             axes(x, y, "tokens generated so far", "tokens that the newest token can still see")]  # fmt: skip
    for _, shade, at, _, band in lines:
        if band:
            around = [(x(a), y(v)) for a, v in zip(at, band[1], strict=True)]
            around += [(x(a), y(v)) for a, v in zip(at, band[0], strict=True)][::-1]
            parts.append(tag("path", d=path(around) + "Z", fill=shade, opacity=0.13))
    gap = 29 if any(peaks) and len(lines) < 8 else 15  # of more lines there is room for the names alone
    ends = spread([y(values[-1]) for _, _, _, values, _ in lines], gap, y.stop, y.start - (gap - 15))
    for (label, shade, at, values, _), peak, end in zip(lines, peaks, ends, strict=True):
        points = [(x(a), y(v)) for a, v in zip(at, values, strict=True)]
        parts.append(tag("path", d=path(points), fill="none", stroke=shade, stroke_width=1.7, stroke_linejoin="round"))
        parts.append(text(points[-1][0] + 7, end + 4, label, 12, shade, font_weight=600))
        if peak and gap > 15:
            parts.append(text(points[-1][0] + 7, end + 18, peak, 11))
    return "".join(parts)


def accuracy_peak(results: Results, width: float = 620) -> str:
    """An SVG of accuracy over peak, a point for each method, with the 95 % intervals of both."""
    points = []
    for number, method in enumerate(results.methods):
        summary = metrics.summarise(method.records)
        points.append((method.name, colour(number), summary.accuracy, summary.peak))
    low = min(p[2].low for p in points)
    floor = max(0.0, math.floor(low * 20 - 0.2) / 20)
    ceiling = 1.0 if max(p[2].high for p in points) > floor + 0.02 else floor + 0.05
    reach = max(p[3].high if math.isfinite(p[3].high) else p[3].value for p in points)
    x, y = Scale(0, reach * 1.06, 62, width - 70), Scale(floor, ceiling, 290, 54)
    parts = [axes(x, y, "peak: most tokens in context at once, mean over problems", "accuracy, %",
                  y_label=lambda value: f"{100 * value:.0f}")]  # fmt: skip
    places, intervals = [], []
    for _, _, right, peak in points:
        px, py = x(peak.value), y(right.value)
        places.append((px, py))
        intervals.append((px - 2, y(right.high), px + 2, y(right.low)))
        if math.isfinite(peak.low):
            intervals.append((x(peak.low), py - 2, x(peak.high), py + 2))
    names = labels(places, [name for name, *_ in points], 12.5, (x.start, y.stop - 8, width, y.start), intervals)
    for (name, shade, right, peak), (left, base) in zip(points, names, strict=True):
        cx, cy = x(peak.value), y(right.value)
        parts.append(tag("path", d=f"M{cx:.1f} {y(right.low):.1f}V{y(right.high):.1f}", stroke=shade, stroke_width=2))
        if math.isfinite(peak.low):
            parts.append(tag("path", d=f"M{x(peak.low):.1f} {cy:.1f}H{x(peak.high):.1f}", stroke=shade, stroke_width=2))
        parts.append(tag("circle", cx=cx, cy=cy, r=5, fill=shade, stroke="#fff", stroke_width=1.5))
        parts.append(text(left, base, name, 12.5, shade, font_weight=600))
    return picture(width, 340, *parts, title="Accuracy against peak")


def all_pictures(results: Results) -> dict[str, str]:
    """All pictures: file name -> SVG."""
    drawn = {"visible_keys.svg": over_time(results), "accuracy_peak.svg": accuracy_peak(results)}
    found = shown(results)
    if found is not None:
        drawn["lifetimes.svg"], drawn["lifetime_bars.svg"] = lifetimes(found[1]), bars(found[1])
    return drawn


def shown(results: Results) -> tuple[MethodResult, Sample] | None:
    """The sample that the pictures show, with its method; None if there are no samples.

    The method is the first one with a sample in which a key dies, if there is one. Of its samples, one of a size that
    can be drawn is preferred, and then the one that sees the smallest share of its past.
    """
    sampled = [(method, sample) for method in results.methods for sample in method.samples]
    dies = [method for method, sample in sampled if sample.dies]
    own = [pair for pair in sampled if not dies or (pair[0] is dies[0] and pair[1].dies)]
    share = lambda sample: sum(sample.visible) / len(sample.visible) ** 2
    return min(own, key=lambda pair: (not drawable(len(pair[1].death)), share(pair[1])), default=None)
