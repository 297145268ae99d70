"""A picture of what a KV budget costs: one line for each policy."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lt_jax.evaluation.pictures import METHOD_COLOURS
from lt_jax.evaluation.svg import FAINT, SOFT, Scale, axes, path, picture, spread, tag, text

COLOURS = (*METHOD_COLOURS[1:], "#0e7490", "#4d7c0f", "#7c2d12")


def budget_curves(rows: Sequence[dict], name: str, title: str, width: float = 640, height: float = 400) -> str:
    """Draws a figure over the budget, as a line for each policy and a level line for full attention.

    Args:
        rows: each has "policy", "budget" and the figure. The budget does not count for the policy "full".
        name: the key of the figure.
        title: what the figure is, for the reader.

    Returns:
        an SVG; equal distances on its budget axis are doublings.
    """
    full = [row for row in rows if row["policy"] == "full"]
    lines: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        if row["policy"] != "full":
            lines.setdefault(row["policy"], []).append((row["budget"], row[name]))
    budgets = sorted({budget for points in lines.values() for budget, _ in points})
    values = [row[name] for row in rows]
    margin = 0.06 * ((max(values) - min(values)) or 1)
    x = Scale(math.log2(budgets[0]), math.log2(budgets[-1]), 60, width - 110)
    y = Scale(min(values) - margin, max(values) + margin, height - 50, 40)
    parts = [axes(x, y, "budget: keys that each layer and kv head keeps", title, x_label=lambda _: "")]
    for budget in budgets:
        at = x(math.log2(budget))
        parts.append(tag("line", x1=at, x2=at, y1=y.stop, y2=y.start, stroke=FAINT))
        parts.append(text(at, y.start + 17, f"{budget:,}", 11, text_anchor="middle"))
    labels = spread([y(points[-1][1]) for points in lines.values()], 14, y.stop, y.start - 4)
    for row in full:
        parts.append(tag("line", x1=x.start, x2=x.stop, y1=y(row[name]), y2=y(row[name]), stroke=SOFT,
                         stroke_dasharray="5 4"))  # fmt: skip
        parts.append(text(x.start + 6, y(row[name]) - 6, "full attention", 11))
    for number, ((policy, points), label) in enumerate(zip(lines.items(), labels, strict=True)):
        shade = COLOURS[number % len(COLOURS)]
        places = [(x(math.log2(budget)), y(value)) for budget, value in sorted(points)]
        parts.append(tag("path", d=path(places), stroke=shade, stroke_width=2, fill="none"))
        parts += [tag("circle", cx=px, cy=py, r=3, fill=shade) for px, py in places]
        parts.append(text(x.stop + 10, label + 4, policy, 12, shade))
    return picture(width, height, *parts, title=title)
