"""The page of trajectories of `lt_jax.memory`: each question with all methods side by side, in one HTML file without
scripts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from lt_jax.data.readers import read_records
from lt_jax.errors import UserError
from lt_jax.evaluation import html_page
from lt_jax.evaluation.curve_pictures import swatch
from lt_jax.evaluation.html_page import escaped, table
from lt_jax.evaluation.results import write_whole
from lt_jax.evaluation.svg import tag
from lt_jax.evaluation.timeline import KINDS, MALFORMED, MARKS, OPENED, cut, moments, named, timeline
from lt_jax.evaluation.visible_chart import Keys, chart, keys_from_json, visible
from lt_jax.memory.log import Log, from_json
from lt_jax.memory.machine import STEP, Entity, Memory, ranges
from lt_jax.memory.syntax import ACTIONS

Shown = Log | Keys
WIDE, HALF = 1040, 508  # pixels of a picture that stands alone, and of one beside another
CROWDED = 40  # turns of a trajectory that needs the whole width
NAMES = {"c": "commit", "e": "expand", "f": "fold", "t": "call of a tool", "a": "final answer", "!": "not possible"}


def read(path: str | Path) -> list[Shown]:
    """The trajectories of a JSONL file, and answers of methods without actions, which have a field `visible`.

    Raises:
        UserError: with file and line; a file without any; the same id twice.
    """
    found: dict[str, Shown] = {}
    for where, record in read_records(Path(path)):
        one = (keys_from_json if "visible" in record else from_json)(record, where)
        if one.id in found:
            raise UserError(f"{where}: there is one with id {one.id!r} already; a file has one of each question")
        found[one.id] = one
    if not found:
        raise UserError(f"{path}: no trajectory in the file")
    return list(found.values())


def read_all(paths: Sequence[str | Path]) -> dict[str, list[Shown]]:
    """The methods of several files, by the names of the files without what is behind the first full stop.

    Raises:
        UserError: as `read`; two files have the same name.
    """
    found: dict[str, list[Shown]] = {}
    for path in map(Path, paths):
        name = path.name.partition(".")[0]
        if name in found:
            raise UserError(f"{path}: another file is named {name!r} too, which is what its method is called here")
        found[name] = read(path)
    return found


def write(methods: Mapping[str, Sequence[Shown]], path: str | Path, title: str = "", most: int = 20) -> int:
    """Writes the page, completely or not at all. Arguments as of `page`; returns how many questions it left out."""
    text, left_out = page(methods, title, most)
    write_whole(path, text)
    return left_out


def page(methods: Mapping[str, Sequence[Shown]], title: str = "", most: int = 20) -> tuple[str, int]:
    """The page as text, and how many questions it left out.

    Args:
        methods: of each method, by name, its trajectories. What has the same id is of the same question.
        title: plain text; "" makes one.
        most: questions that are shown; those with most methods come first.
    """
    questions: dict[str, dict[str, Shown]] = {}
    for name, several in methods.items():
        for one in several:
            questions.setdefault(one.id, {})[name] = one
    order = sorted(questions.values(), key=lambda each: -len(each))
    title = title or ("Trajectories side by side" if len(methods) > 1 else "Trajectories")
    left_out = max(0, len(order) - most)
    sections = [_header(title, len(order), left_out, list(methods)), _legend()]
    sections += [_question(each, list(methods)) for each in order[:most]]
    return html_page.page(title, sections, style="trajectories.css"), left_out


def _header(title: str, count: int, left_out: int, names: Sequence[str]) -> str:
    parts = [f"{count:,} question{'s' * (count != 1)}", f"{len(names)} method{'s' * (len(names) != 1)}"]
    if left_out:
        parts.append(f"{left_out:,} of the questions are not shown")
    words = (
        "From left to right the turns of a trajectory, each of which ends with an action. A line is an entity of the "
        "memory: thin where only its summary is visible, thick where it is shown in full. Below them is the step that "
        "belongs to no entity yet, and the context: what is visible when a turn begins and when it ends. The pointer "
        "on any part says what it is."
    )
    return (f"<header><p class=kicker>LightThinker++ &middot; {' &middot; '.join(parts)}</p>"
            f"<h1>{escaped(title)}</h1><p class=note>{words}</p></header>")  # fmt: skip


def _legend() -> str:
    bar = lambda fill, height: tag("rect", x=0, y=6 - height / 2, width=26, height=height, fill=fill, rx=2)
    small = lambda inside, width: tag("svg", inside, width=width, height=12, class_="swatch")
    kinds = {"a step, archived": bar(KINDS[STEP], 2.5), "active": bar(KINDS[STEP], 11),
             "an observation": bar(KINDS["observation"], 11), "open step": bar(OPENED, 11)}  # fmt: skip
    parts = [f"<span>{small(shape, 26)}{words}</span>" for words, shape in kinds.items()]
    for letter, fill in MARKS.values():
        circle = tag("circle", cx=6, cy=6, r=6, fill=fill)
        parts.append(f"<span>{small(circle, 12)}<b>{letter}</b> {NAMES[letter]}</span>")
    return f"<nav class=legend>{''.join(parts)}</nav>"


def _question(shown: dict[str, Shown], names: Sequence[str]) -> str:
    """A section: the question, what each method came to, their curves, and a panel for each trajectory."""
    first = next(iter(shown.values()))
    right = next((one.gold for one in shown.values() if one.gold), "")
    gold = f"<p class=note>Right answer: <b>{escaped(cut(right))}</b></p>" if right else ""
    curves = [(name, visible(shown[name]) if name in shown else ()) for name in names]
    drawn = [name for name, values in curves if values]
    compared = ""
    if drawn and len(shown) > 1:
        absent = [name for name in shown if name not in drawn]
        said = f" Not counted: {escaped(', '.join(absent))}." if absent else ""
        said = f"What the environment feeds is not written, and has no place here.{said}"
        heading = "<h3>Keys visible to each token that was written</h3>"
        compared = f"{heading}{chart(curves, WIDE)}<p class=note>{said}</p>"
    logs = {name: one for name, one in shown.items() if isinstance(one, Log) and one.turns}
    tops = {unit: max(high for other, high in map(_top, logs.values()) if other == unit)
            for unit in {_top(one)[0] for one in logs.values()}}  # fmt: skip
    wide = len(logs) < 2 or any(len(one.turns) > CROWDED for one in logs.values())
    panels = "".join(
        _panel(name, names.index(name), one, WIDE if wide else HALF, tops[_top(one)[0]]) for name, one in logs.items()
    )
    asked = f"<h2>{escaped(first.id)}</h2><p class=question>{escaped(cut(first.question, 600))}</p>{gold}"
    panels = f"<div class={'wide' if wide else 'beside'}>{panels}</div>"
    return f"<section>{asked}{_table(shown, names)}{compared}{panels}</section>"


def _top(log: Log) -> tuple[str, int]:
    """The unit of a trajectory's context, and its peak."""
    drawn, unit = moments(log)
    return unit, max(each.high for each in drawn)


def _table(shown: dict[str, Shown], names: Sequence[str]) -> str:
    head = ["", "answer", "ended", "turns", *(name.replace("_", " ") for name in ACTIONS[:-1]), "not possible",
            "tokens written", "tokens read", "of them again", "peak, keys", "mean, keys"]  # fmt: skip
    return table(head, [_line(name, names.index(name), one) for name, one in shown.items()])


def _line(name: str, number: int, one: Shown) -> list[str]:
    keys = visible(one)
    peak = [f"{max(keys):,.0f}", f"{sum(keys) / len(keys):,.0f}"] if keys else ["&ndash;"] * 2
    told = [f"{swatch(number)}{escaped(name)}", _verdict(one)]
    if isinstance(one, Keys):
        return [*told, *["&ndash;"] * (len(ACTIONS) + 2), f"{len(keys):,}", "&ndash;", "&ndash;", *peak]
    done = [turn.action for turn in one.turns if not turn.why]
    sums = [sum(getattr(turn, field) for turn in one.turns) for field in ("written", "read", "again")]
    wrong = len(one.turns) - len(done)
    return [
        *told, escaped(one.finish), f"{len(one.turns):,}", *(f"{done.count(action):,}" for action in ACTIONS[:-1]),
        f"<span class=wrong>{wrong:,}</span>" if wrong else "0",
        *(f"{total:,}" if keys else "&ndash;" for total in sums), *peak,
    ]  # fmt: skip


def _verdict(one: Shown) -> str:
    kind = {True: "right", False: "wrong", None: "unknown"}[one.correct]
    said = {"right": "right", "wrong": "wrong", "unknown": "not judged"}[kind]
    given = escaped(cut(one.answer, 40)) or "none"
    return f"<span class='answer {kind}'>{given}</span><small>{said}</small>"


def _panel(name: str, number: int, log: Log, width: float, top: int) -> str:
    return (f"<figure><h3>{swatch(number)}{escaped(name)}</h3>{timeline(log, width, top)}"
            f"<details><summary>Turn by turn</summary>{_turns(log)}</details>"
            f"<details><summary>The entities</summary>{_entities(log.states()[-1])}</details></figure>")  # fmt: skip


def _turns(log: Log) -> str:
    """Every turn in words: what was visible when it began, what was written, what was done."""
    drawn, unit = moments(log)
    parts = []
    for number, each in enumerate(drawn, 1):
        turn = each.turn
        counts = [f"{each.low:,} {unit} visible at its beginning"]
        if turn.context:
            counts += [f"{turn.written:,} tokens written", f"{turn.read:,} read, {turn.again:,} of them again"]
        said = _block("thought", turn.text)
        said += _block("why" if turn.why else "content", turn.why or turn.content)
        said += _block("observation", turn.observation)
        parts.append(
            f"<li><p class=turn><b class=mark style=\"background:{MARKS[each.mark][1]}\">{MARKS[each.mark][0]}</b>"
            f"<b>{number}. {escaped(named(turn) if each.mark != MALFORMED else 'not possible')}</b> "
            f"<span>{' &middot; '.join(counts)}</span></p><p class=seen>{_seen(each.before)}</p>{said}</li>"
        )
    return f"<ol class=turns>{''.join(parts)}</ol>"


def _block(kind: str, content: str) -> str:
    return f"<pre class={kind}>{escaped(content)}</pre>" if content.strip() else ""


def _seen(memory: Memory) -> str:
    """Which entities are visible, and how."""
    numbers = lambda active: ranges(each.number for each in memory.entities if each.active == active)
    parts = [f"{words} {found}" for words, found in (("archived", numbers(False)), ("active", numbers(True))) if found]
    return "; ".join(parts).replace("-", "&ndash;") or "no entities yet"


def _entities(memory: Memory) -> str:
    if not memory.entities:
        return "<p class=note>None.</p>"
    return f"<ol class=turns>{''.join(map(_whole, memory.entities))}</ol>"


def _whole(entity: Entity) -> str:
    kind = "step" if entity.kind == STEP else "observation"
    fill = KINDS[entity.kind]
    return (
        f"<li><p class=turn><b class=mark style=\"background:{fill}\">{entity.number}</b><b>{kind}</b> "
        f"<span>{len(entity.raw):,} characters, its {'summary' if entity.kind == STEP else 'call'} "
        f"{len(entity.summary):,}; in the end {'active' if entity.active else 'archived'}</span></p>"
        f"{_block('content', entity.summary)}{_block('thought', entity.raw)}</li>"
    )
