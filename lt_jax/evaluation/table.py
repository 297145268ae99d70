"""Results as plain text, at most 100 columns wide."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence

from lt_jax.evaluation import metrics
from lt_jax.evaluation.results import MethodResult, Outcome, Results

WIDTH = 100
CUT = {  # why an answer did not end by itself
    "length": "max_new", "capacity": "capacity", "positions": "the model's positions", "nan": "logits NaN or infinite",
}  # fmt: skip


def table(results: Results) -> str:
    """The whole evaluation: methods, comparisons with the first one, and accuracy by family."""
    count = len(results.methods[0].records)
    blocks = [f"{results.suite}: {count:,} problem{'s' * (count != 1)}", methods(results)]
    if results.missing:
        blocks.append(textwrap.fill(f"incomplete, not run when this was written: {', '.join(results.missing)}", WIDTH))
    blocks += filter(None, (cache_bytes(results), compile_seconds(results), unfinished(results)))
    blocks += filter(None, (unanswered(results), unjudged(results)))
    if len(results.methods) > 1:
        blocks.append("\n".join(compared(each, results.methods[0]) for each in results.methods[1:]))
    if len(families(results)) > 1:
        blocks.append(by_family(results))
    return "\n\n".join(blocks + ([results.note] if results.note else []))


def methods(results: Results) -> str:
    """The main table: a line for each method."""
    base = metrics.summarise(results.methods[0].records)
    head = ["method", "accuracy % (95%)", "peak", "of", "dependency", "of", "tokens", "compr.", "time s", "tokens/s"]
    body = []
    for each in results.methods:
        s = metrics.summarise(each.records, each.seconds)
        body.append([
            each.name, accuracy(s.accuracy), number(s.peak.value), share(s.peak.value, base.peak.value),
            number(s.dependency.value), share(s.dependency.value, base.dependency.value), number(s.generated.value),
            f"{s.compressions:.1f}", number(each.seconds), number(s.tokens_per_second),
        ])  # fmt: skip
    return grid(head, body)


def cache_bytes(results: Results) -> str:
    """A line on the memory that the cache of a row uses and takes; empty if it is not known."""
    known = [each for each in results.methods if each.cache_bytes]
    told = ", ".join(f"{each.name} {megabytes(each.cache_used)} ({megabytes(each.cache_bytes)})" for each in known)
    return textwrap.fill(f"cache of one row, MB, most used (allocated): {told}", WIDTH) if told else ""


def compile_seconds(results: Results) -> str:
    """A line on the time of loading and compiling, which the table leaves out; empty if nothing was compiled."""
    told = ", ".join(f"{each.name} {number(each.compile_seconds)}" for each in results.methods if each.compile_seconds)
    return textwrap.fill(f"loading and compiling before that time, s: {told}", WIDTH) if told else ""


def megabytes(n: int) -> str:
    if not n:
        return "-"
    return f"{n / 1e6:,.1f}" if n >= 1e6 else f"{n / 1e6:.2g}"


def unfinished(results: Results) -> str:
    """A line on problems whose answer was cut off, which count as wrong; empty if there are none."""
    found = {r.finish for each in results.methods for r in each.records}
    why = ", ".join(words for finish, words in CUT.items() if finish in found)
    return counted(results, f"unfinished (cut off: {why})", lambda r: r.finish not in metrics.FINISHED)


def unanswered(results: Results) -> str:
    """A line on finished replies in which no answer was found, which count as wrong; empty if there are none."""
    return counted(results, "no answer found in a finished reply (counted as wrong)",
                   lambda r: r.given is None and r.finish in metrics.FINISHED)  # fmt: skip


def unjudged(results: Results) -> str:
    """A line on answers that could not be compared with the right one; empty if there are none."""
    return counted(results, "not judged: the comparison ran out of time or ended (counted as wrong)",
                   lambda r: not r.judged)  # fmt: skip


def counted(results: Results, what: str, which: Callable[[Outcome], bool]) -> str:
    """A line with `what`, and the number of such records of each method that has any; empty if none has."""
    counts = [(each.name, sum(map(which, each.records))) for each in results.methods]
    told = ", ".join(f"{name} {number:,}" for name, number in counts if number)
    return textwrap.fill(f"{what}: {told}", WIDTH) if told else ""


def compared(first: MethodResult, second: MethodResult) -> str:
    """Two lines on two methods that solved the same problems."""
    p = metrics.paired(first.records, second.records)
    d = p.difference
    return (
        f"{first.name} - {second.name}: accuracy {100 * d.value:+.1f} points (95%: {100 * d.low:+.1f} to "
        f"{100 * d.high:+.1f})\n    solved by {first.name} only {p.only_first}, by {second.name} only {p.only_second}; "
        f"peak {share(p.peak.value, 1)}, dependency {share(p.dependency.value, 1)}"
    )


def families(results: Results) -> list[str]:
    """The families of the suite, in the order they first appear."""
    return list(dict.fromkeys(record.family for record in results.methods[0].records))


def by_family(results: Results) -> str:
    """The accuracy and peak of every method on each family. With more than four methods, each has a line of its own."""
    if len(results.methods) > 4:
        return _by_method(results)
    head = ["family", "problems", *(f"{each.name} % / peak" for each in results.methods)]
    body = []
    for family in families(results):
        parts = [[r for r in each.records if r.family == family] for each in results.methods]
        summaries = [metrics.summarise(part) for part in parts]
        cells = [f"{100 * s.accuracy.value:.1f} / {number(s.peak.value)}" for s in summaries]
        body.append([family, str(len(parts[0])), *cells])
    return grid(head, body)


def _by_method(results: Results) -> str:
    names, body = families(results), []
    for each in results.methods:
        parts = [metrics.summarise([r for r in each.records if r.family == family]) for family in names]
        body.append([each.name, *(f"{100 * s.accuracy.value:.1f} / {number(s.peak.value)}" for s in parts)])
    return grid(["method, % / peak", *names], body)


def accuracy(interval: metrics.Interval) -> str:
    return f"{100 * interval.value:.1f} ({100 * interval.low:.1f}-{100 * interval.high:.1f})"


def share(value: float, whole: float) -> str:
    return f"{100 * value / whole:.0f}%" if whole and math.isfinite(value) else "-"


def number(value: float | None) -> str:
    """A number as text: without decimals from ten on, with commas between thousands; "-" if it is not known."""
    if value is None or not math.isfinite(value):
        return "-"
    if abs(value) >= 1e7:
        return f"{value / 1e6:,.1f}M"
    return f"{value:,.0f}" if abs(value) >= 10 else f"{value:.1f}"


def grid(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table whose first column is aligned to the left and the others to the right. If it is wider than WIDTH, the
    names in its first column are shortened."""
    widths = [max(len(row[i]) for row in [head, *body]) for i in range(len(head))]
    widths[0] = max(min(widths[0], WIDTH - sum(widths[1:]) - 2 * (len(widths) - 1)), 8)
    cut = lambda text, width: text if len(text) <= width else text[: width - 3] + "..."
    line = lambda row: "  ".join(
        [f"{cut(row[0], widths[0]):<{widths[0]}}", *(f"{x:>{w}}" for x, w in zip(row[1:], widths[1:], strict=True))]
    ).rstrip()
    return "\n".join([line(head), "-" * min(sum(widths) + 2 * (len(widths) - 1), WIDTH), *map(line, body)])
