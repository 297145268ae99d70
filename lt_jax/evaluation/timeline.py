"""The picture of a trajectory: its turns from left to right, what was visible in each, the actions, and the context.

    actions        c       e   f   a          one mark a turn
    1           ──────────██████──────        an entity: thin where it is archived, thick where it is active
    2                  ───────────────
    open step   ▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒▒        what belongs to no entity yet
    context     ╱│╱│╱ ...                     what was visible when a turn began, and when it ended

Colours are CSS variables with a value to fall back on, so that a picture needs no style sheet and a page may have a
dark one.
"""

from __future__ import annotations

import dataclasses
import html
import itertools
from collections.abc import Sequence

from lt_jax.evaluation.svg import SOFT, Scale, axes, path, picture, tag, text
from lt_jax.memory.log import Log, LoggedTurn
from lt_jax.memory.machine import OBSERVATION, STEP, Entity, Memory
from lt_jax.memory.trajectories import MALFORMED

LEFT, RIGHT, TOP, OPEN, CHART, BOTTOM = 66, 14, 30, 18, 104, 44  # pixels
TALLEST, LOWEST, ALL = 16.0, 5.0, 420.0  # of an entity's line, and of all of them if they may be that tall
FULL = 160  # characters of a content that is shown under the pointer


def shade(name: str, light: str) -> str:
    """A colour that a style sheet may change."""
    return f"var(--{name}, {light})"


OPENED, WRONG, LETTER = shade("open", "#d08a1d"), shade("wrong", "#b42318"), shade("letter", "#fffefb")
KINDS = {STEP: shade("step", "#00735c"), OBSERVATION: shade("observation", "#1d5fa8")}
MARKS = {  # of the actions: a letter, and a colour
    "commit": ("c", KINDS[STEP]),
    "expand": ("e", shade("expand", "#a21caf")),
    "fold": ("f", shade("fold", "#8a6d00")),
    "call": ("t", KINDS[OBSERVATION]),
    "final_answer": ("a", shade("answer", "#4b5563")),
    MALFORMED: ("!", WRONG),
}


@dataclasses.dataclass(frozen=True)
class Moment:
    """A turn as it is drawn.

    Attributes:
        turn: what was done in it.
        before, after: the memory when it began, and when it had ended.
        seen: numbers of the entities of which something was visible when it began.
        low, high: what was visible when it began, and when it ended, in the unit of all of them.
    """

    turn: LoggedTurn
    before: Memory[str]
    after: Memory[str]
    seen: frozenset[int]
    low: int
    high: int

    @property
    def mark(self) -> str:
        """A key of `MARKS`."""
        return MALFORMED if self.turn.why else self.turn.action


def moments(log: Log) -> tuple[list[Moment], str]:
    """The turns as they are drawn, and the unit of what is visible: "keys" where they were counted, else "characters"
    of entities and open step, which leave out the question and what marks and numbers take."""
    states = log.states()
    counted = has_counts(log)
    found = []
    for turn, before, after in zip(log.turns, [Memory(), *states[:-1]], states, strict=True):
        low = turn.context if counted else _characters(before)
        high = low + (turn.written if counted else len(turn.text) + len(turn.content))
        seen = frozenset(part.number for part in before.visible() if isinstance(part, Entity))
        found.append(Moment(turn, before, after, seen, low, high))
    return found, "keys" if counted else "characters"


def has_counts(log: Log) -> bool:
    """Whether somebody counted the keys that its turns began with."""
    return bool(log.turns) and all(turn.context for turn in log.turns)


def _characters(memory: Memory[str]) -> int:
    return sum(len(part.shown if isinstance(part, Entity) else part) for part in memory.visible())


def timeline(log: Log, width: float, top: float = 0) -> str:
    """The SVG of a trajectory with one turn at least.

    Args:
        width: pixels.
        top: where the axis of the context ends, if not at this trajectory's own peak: to compare several.
    """
    drawn, unit = moments(log)
    count = len(drawn[-1].after.entities)
    line = max(LOWEST, min(TALLEST, ALL / max(count, 1)))
    x = Scale(0.5, len(drawn) + 0.5, LEFT, width - RIGHT)
    opened = TOP + count * line + 6  # top of the open step's line
    bottom = opened + OPEN + 38 + CHART
    height_of = lambda number: TOP + (number - 0.5) * line
    parts = [_columns(drawn, x, opened + OPEN, unit)]
    parts += [_entity(drawn, number, x, height_of(number), line) for number in range(1, count + 1)]
    parts += _opened(drawn, x, opened)
    parts += [_link(each, number, x, height_of, opened) for number, each in enumerate(drawn, 1)]
    parts += [_mark(each, number, x) for number, each in enumerate(drawn, 1)]
    parts += _names(count, line, height_of, opened)
    y = Scale(0, (max(top, max(each.high for each in drawn)) or 1) * 1.06, bottom, bottom - CHART)
    parts.append(axes(x, y, "turn", f"context, {unit}", x_about=_about(len(drawn), width), y_about=4))
    parts += _context(drawn, x, y)
    return picture(width, bottom + BOTTOM, *parts, title=f"What was visible in trajectory {log.id}, turn by turn")


def _about(turns: int, width: float) -> int:
    return max(1, min(turns - 1, round(width / 90)))


def _wide(x: Scale) -> float:
    """Of a column."""
    return x(2) - x(1)


def _columns(drawn: Sequence[Moment], x: Scale, bottom: float, unit: str) -> str:
    """What the pointer is told of each turn, and faint lines between them."""
    parts = []
    for number, each in enumerate(drawn, 1):
        said = f"turn {number}: {named(each.turn)}, {each.low:,} {unit} at its beginning and {each.high:,} at its end"
        parts.append(tag("rect", _title(said), x=x(number - 0.5), y=4, width=_wide(x), height=bottom - 4.0,
                         fill=shade("column", "#f3f0e9"), opacity=number % 2 * 0.8))  # fmt: skip
    return "".join(parts)


def _title(words: str) -> str:
    return tag("title", html.escape(words))


def named(turn: LoggedTurn) -> str:
    """An action in words."""
    if turn.why:
        return f"not possible: {turn.why}"
    return f"{turn.action} of {turn.number}" if turn.number else turn.action.replace("_", " ")


def cut(content: str, most: int = FULL) -> str:
    """A content, or its beginning and how long it is."""
    return content if len(content) <= most else f"{content[:most]}... ({len(content):,} characters)"


def _entity(drawn: Sequence[Moment], number: int, x: Scale, middle: float, line: float) -> str:
    """The line of an entity: a bar for each stretch of turns in which it was archived, or active; a faint one where
    nothing of it was visible."""

    there = lambda each: number <= len(each.before.entities)
    states = ((each.before.entities[number - 1], number in each.seen) if there(each) else None for each in drawn)
    parts, first = [], 1
    for found, group in itertools.groupby(states):
        last = first + len(list(group)) - 1
        if found is not None:
            entity, visible = found
            thick = line - 2 if entity.active else max(1.5, line / 6)
            how = "active" if entity.active else "archived" if visible else "archived with its step"
            turns = f"turn {first}" if first == last else f"turns {first} to {last}"
            said = f"entity {number}, {_kind(entity)}, {how} in {turns}: {cut(entity.shown)}"
            parts.append(tag("rect", _title(said), x=x(first - 0.5), y=middle - thick / 2,
                             width=x(last + 0.5) - x(first - 0.5), height=thick, fill=KINDS[entity.kind],
                             rx=min(2.0, thick / 2), opacity=1 if visible else 0.3))  # fmt: skip
        first = last + 1
    return "".join(parts)


def _kind(entity: Entity) -> str:
    return "a step" if entity.kind == STEP else "an observation"


def _opened(drawn: Sequence[Moment], x: Scale, top: float) -> list[str]:
    """The open step: a bar from the turn behind a commit to the next one."""
    ends = [number for number, each in enumerate(drawn, 1) if each.mark == "commit"]
    parts = []
    for start, end in itertools.pairwise([0, *ends, *([] if ends[-1:] == [len(drawn)] else [len(drawn)])]):
        said = f"open step, turns {start + 1} to {end}" if end > start + 1 else f"open step, turn {end}"
        parts.append(tag("rect", _title(said), x=x(start + 0.5) + 0.5, y=top + 3, width=x(end) - x(start) - 1,
                         height=OPEN - 6, fill=OPENED, rx=2))  # fmt: skip
    return parts


def _link(each: Moment, number: int, x: Scale, height_of, opened: float) -> str:
    """From the open step to the entity that an action makes or changes, with a dot there."""
    made = {"commit": len(each.after.entities), "call": len(each.after.entities)}
    entity = made.get(each.mark, each.turn.number)
    if each.mark not in ("commit", "call", "expand", "fold"):
        return ""
    where, colour = x(number + 0.5), MARKS[each.mark][1]
    if number == x.high - 0.5:
        where -= 3
    dot = tag("circle", cx=where, cy=height_of(entity), r=min(3.2, _wide(x) / 2.4), fill=colour)
    line = tag("line", x1=where, x2=where, y1=opened + 3, y2=height_of(entity), stroke=colour, opacity=0.45)
    return line + dot


def _mark(each: Moment, number: int, x: Scale) -> str:
    """The letter of an action, or a stroke where there is no room for it."""
    letter, colour = MARKS[each.mark]
    if _wide(x) < 13:
        thick = max(1.0, min(4.0, _wide(x) - 1.5))
        return tag("rect", _title(named(each.turn)), x=x(number) - thick / 2, y=8, width=thick, height=14, fill=colour)
    circle = tag("circle", _title(named(each.turn)), cx=x(number), cy=15, r=7, fill=colour)
    return circle + text(x(number), 18.5, letter, 10, LETTER, text_anchor="middle", font_weight=700,
                         pointer_events="none")  # fmt: skip


def _names(count: int, line: float, height_of, opened: float) -> list[str]:
    every = 1 if line >= 11 else 5 if count < 60 else 10
    shown = [number for number in range(1, count + 1) if number % every == 0 or (number == 1 and line >= 8)]
    parts = [text(LEFT - 8, 19, "action", 11, text_anchor="end")]
    parts += [text(LEFT - 8, height_of(number) + 4, str(number), 11, text_anchor="end") for number in shown]
    parts.append(text(LEFT - 8, opened + OPEN / 2 + 4, "open step", 11, text_anchor="end"))
    return parts


def _context(drawn: Sequence[Moment], x: Scale, y: Scale) -> list[str]:
    """A tooth for each turn, and the peak in words."""
    points = []
    for number, each in enumerate(drawn, 1):
        points += [(x(number - 0.5), y(each.low)), (x(number + 0.5), y(each.high))]
    ground = [(points[-1][0], y(0)), (points[0][0], y(0))]
    area = tag("path", d=path([*points, *ground]) + "Z", fill=OPENED, opacity=0.16)
    peak = max(range(len(drawn)), key=lambda place: drawn[place].high)
    where, high = x(peak + 1.5), y(drawn[peak].high)
    left = where > (x.start + x.stop) / 2
    said = text(where + (-7 if left else 7), high - 5, f"peak {drawn[peak].high:,}", 11, SOFT, font_weight=600,
                text_anchor="end" if left else "start")  # fmt: skip
    dot = tag("circle", cx=where, cy=high, r=2.6, fill=OPENED)
    return [area, tag("path", d=path(points), fill="none", stroke=OPENED, stroke_width=1.5, stroke_linejoin="round"),
            dot, said]  # fmt: skip
