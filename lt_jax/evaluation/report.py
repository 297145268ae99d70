"""The report of an evaluation: one HTML file that loads nothing, neither fonts nor scripts, from anywhere else."""

from __future__ import annotations

import json
import math
from pathlib import Path

from lt_jax.evaluation import html_page, metrics, pictures, table
from lt_jax.evaluation.html_page import escaped
from lt_jax.evaluation.results import MethodResult, Results, Sample, write_whole
from lt_jax.layout.row import Role

SHOWN_TOKENS = 6000  # the most tokens of a sample that are shown


def write(results: Results, path: str | Path) -> None:
    """Writes the report, completely or not at all."""
    write_whole(path, page(results))


def page(results: Results) -> str:
    """The report as text."""
    sections = [_header(results), _methods(results), _over_time(results), _trade(results), _samples(results)]
    return html_page.page(results.suite, sections, "report.js")


def _header(results: Results) -> str:
    count = len(results.methods[0].records)
    lines = "".join(f"<p class=lead>{_headline(each, results.methods[0])}</p>" for each in results.methods[1:])
    note = f"<p class=note>{escaped(results.note)}</p>" if results.note else ""
    if results.missing:
        note += f"<p class=note>Incomplete, not run when this was written: {escaped(', '.join(results.missing))}</p>"
    return (
        f"<header><p class=kicker>Evaluation &middot; {count:,} problem{'s' * (count != 1)}</p>"
        f"<h1>{escaped(results.suite)}</h1>{lines}{note}</header>"
    )


def _headline(method: MethodResult, base: MethodResult) -> str:
    p = metrics.paired(method.records, base.records)
    d = p.difference
    right = [metrics.summarise(each.records).accuracy.value for each in (method, base)]
    return (
        f"<b>{escaped(method.name)}</b> solves {100 * right[0]:.1f}&nbsp;% where {escaped(base.name)} solves "
        f"{100 * right[1]:.1f}&nbsp;% ({100 * d.value:+.1f} points, 95&nbsp;% interval {100 * d.low:+.1f} to "
        f"{100 * d.high:+.1f}), with {table.share(p.peak.value, 1)} of the peak and "
        f"{table.share(p.dependency.value, 1)} of the dependency."
    )


def _methods(results: Results) -> str:
    base = metrics.summarise(results.methods[0].records)
    head = ["method", "accuracy, %", "peak", "dependency", "tokens", "compressions", "unfinished", "cache of a row, MB",
            "time, s", "tokens/s"]  # fmt: skip
    small = lambda value, words: f"{value}<small>{words}</small>"
    body = []
    for number, each in enumerate(results.methods):
        s = metrics.summarise(each.records, each.seconds)
        body.append([
            _name(number, each), small(f"{100 * s.accuracy.value:.1f}", _interval(s.accuracy)),
            small(table.number(s.peak.value), table.share(s.peak.value, base.peak.value)),
            small(table.number(s.dependency.value), table.share(s.dependency.value, base.dependency.value)),
            table.number(s.generated.value), f"{s.compressions:.1f}", f"{100 * s.unfinished:.1f} %",
            small(table.megabytes(each.cache_used), f"of {table.megabytes(each.cache_bytes)}"),
            small(table.number(each.seconds), f"after {table.number(each.compile_seconds)}"),
            table.number(s.tokens_per_second),
        ])  # fmt: skip
    words = (
        "Means over the problems. <b>Peak</b>: the most tokens in context at once. <b>Dependency</b>: the sum, over "
        "the tokens sampled, of the keys each could see, the area under the curves below. Small figures: the 95 % "
        "interval of the accuracy; shares of the first method. <b>Cache</b>: what the row with the most keys used, of "
        "what is allocated. <b>Time</b>: wall time of decoding all problems, batched, after loading and compiling, "
        "which tokens/s leaves out."
    )
    lines = table.unanswered(results), table.unjudged(results)
    wrong = "".join(f"<p class=note>{escaped(line)}</p>" for line in lines)
    return f"<section><h2>Methods</h2>{html_page.table(head, body)}<p class=note>{words}</p>{wrong}</section>"


def _name(number: int, method: MethodResult) -> str:
    return f'<i class=dot style="background:{pictures.colour(number)}"></i>{escaped(method.name)}'


def _interval(interval: metrics.Interval) -> str:
    return f"{100 * interval.low:.1f} &ndash; {100 * interval.high:.1f}"


def _over_time(results: Results) -> str:
    words = (
        "How many keys the newest token can see, after every sampled token. Each drop is a thought that has been "
        "replaced by its gist, or keys evicted for a budget; the area under a line is the dependency."
    )
    return f"<section><h2>Visible keys over time</h2><p>{words}</p>{pictures.over_time(results)}</section>"


def _trade(results: Results) -> str:
    families = table.families(results)
    picture = f"<div><h2>Accuracy against peak</h2>{pictures.accuracy_peak(results)}</div>"
    if len(families) < 2:
        return f"<section>{picture}</section>"
    head = ["family", "problems", *(_name(number, each) for number, each in enumerate(results.methods))]
    body = []
    for family in families:
        parts = [[r for r in each.records if r.family == family] for each in results.methods]
        summaries = [metrics.summarise(part) for part in parts]
        body.append([escaped(family), f"{len(parts[0]):,}"] + [
            f"{100 * s.accuracy.value:.1f}<small>{_interval(s.accuracy)}</small><small>peak {s.peak.value:,.0f}"
            "</small>"
            for s in summaries
        ])  # fmt: skip
    grid = html_page.table(head, body)
    layout = "class=two" if len(results.methods) <= 3 else ""
    return f"<section {layout}>{picture}<div><h2>Accuracy by family, %</h2>{grid}</div></section>"


def _samples(results: Results) -> str:
    shown = pictures.shown(results)
    if shown is None:
        return ""
    method, sample = shown
    data = {
        "methods": [{"name": each.name, "samples": [_sample(each, sample) for sample in each.samples]}
                    for each in results.methods],
        "roles": {int(role): name for role, name in pictures.ROLE_NAMES.items()},
    }  # fmt: skip
    first, place = results.methods.index(method), method.samples.index(sample)
    script = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")
    return (
        f"<section><h2>One sample, {escaped(method.name)}: who sees whom</h2><p>Problem "
        f"{sample.problem + 1}. Every row of the picture is a token looking back, every column a token being seen, "
        "coloured while it is alive. Where full attention would still see a token that is dead here, it is grey. "
        "Point at the picture to read the tokens.</p>"
        f'<div class=two><div id=lifetimes data-method={first} data-sample={place}>{pictures.lifetimes(sample)}</div>'
        f"<div>{pictures.bars(sample)}<p id=readout class=readout>&nbsp;</p></div></div></section>"
        "<section><h2>Samples, token by token</h2><p>Struck out: tokens that are dead at the chosen moment. "
        "<i class=gist></i> gist token, <i class=out></i> output token, <i class=cut></i> trigger. Move the slider, or "
        "click on a token, to see what the model could see when it wrote it.</p>"
        "<div id=controls></div><div id=sample></div></section>"
        f'<script type="application/json" id=data>{script}</script>'
    )


def _sample(method: MethodResult, sample: Sample) -> dict:
    """What the page needs to know of a sample. The death of a token that lives on is null."""
    n = min(len(sample.death), SHOWN_TOKENS)
    record = method.records[sample.problem]
    alive = lambda death: death if death < len(sample.death) else None
    return {
        "pieces": sample.pieces[:n], "role": sample.role[:n], "death": [alive(d) for d in sample.death[:n]],
        "since": sample.since[:n], "thought": sample.thought[:n], "visible": sample.visible[:n],
        "prompt": sample.role.index(next((r for r in sample.role if r != Role.PROMPT), Role.PROMPT)),
        "cut": len(sample.death) - n, "problem": sample.problem, "given": record.given, "answer": record.answer,
        "correct": record.correct, "peak": record.counts.peak,
        "dependency": record.counts.dependency if math.isfinite(record.counts.dependency) else None,
    }  # fmt: skip
