"""Our sides of the sections `budgets` and `memory20`: what is kept instead of everything, and what that is worth.

Rates are of the steady state: a row is filled by a prompt with as many keys as it holds on average over the whole
answer, and some hundred tokens are timed from there on. (The time of a step is a constant and a part for each key, so
its mean over an answer is its value at the mean number of keys.)
"""

from __future__ import annotations

from benchmarks.gpu_sides.engines import Engines, rate, steady, warmed
from benchmarks.gpu_sides.jax_side import ENGINE, begin
from benchmarks.gpu_sides.side import given
from lt_jax.decode import Request

KEPT = 10  # keys that stay of a thought: 9 gists and the output token


def peak(engines: Engines, how: str, generated: int) -> int:
    """The most keys of a row, at the end of an answer."""
    size = engines.task.sizes
    if how == "LightThinker":
        thoughts = generated // size.thought
        return size.prompt + thoughts * KEPT + size.thought + 2 * KEPT
    return size.prompt + generated


def middle(engines: Engines, how: str, generated: int) -> int:
    """Tokens of a prompt from which `short` + `window` more lead through the mean number of keys of an answer."""
    size = engines.task.sizes
    if how == "R-KV":
        return size.budget
    if how == "LightThinker":
        return size.prompt + generated // size.thought * KEPT // 2
    return size.prompt + generated // 2 - size.short - size.window // 2


def span(engines: Engines, how: str) -> int:
    """Tokens that are timed: whole rounds of what is done every so often."""
    size = engines.task.sizes
    return 2 * size.buffer if how == "R-KV" else size.window


def budgets(engines: Engines) -> None:
    """What goals are about comes first, in pairs whose programs are compiled side by side."""
    size, rows = engines.task.sizes, engines.task.sizes.many
    most, label = size.budget + size.buffer, f"R-KV {size.budget} + {size.buffer}"
    # A row under the budget, beside full attention with as many keys on average as that has slots.
    works = [(label, most, middle(engines, "R-KV", 0), span(engines, "R-KV")),
             ("full", most + size.window, most - size.window // 2 - size.short, size.window)]  # fmt: skip
    filled(engines, f"{rows} rows at {most} keys", rows, works)
    whole(engines, ("LightThinker", "full"), size.new)
    works = [(how, peak(engines, how, size.long), middle(engines, how, size.long), span(engines, how))
             for how in ("LightThinker", "full")]  # fmt: skip
    filled(engines, f"{rows} rows x {size.long:,}", rows, works)
    whole(engines, (label,), size.budget_new)


def how_of(label: str) -> str:
    """The way to decode that a line's form names; R-KV's names its budget, too."""
    return label.split(" ")[0]


def whole(engines: Engines, labels: tuple[str, ...], new: int) -> None:
    """Times whole calls, prompts read and all."""
    task, rows = engines.task, engines.task.sizes.many
    prompts = engines.prompts(rows, task.sizes.prompt)
    asked = [Request(prompt, new) for prompt in prompts]
    make = lambda label: lambda: engines.make(how_of(label), rows, peak(engines, label, new))
    made = warmed([(make(label), asked) for label in labels])
    for label, engine in zip(labels, made, strict=True):
        measure = lambda engine=engine: {"rows": rows} | rate(engine.result(), prompts, new)
        task.attempt(f"{rows} rows x {new:,}", label, measure)


def filled(engines: Engines, work: str, rows: int, works: list[tuple]) -> None:
    """Times rows in their steady state: (form, capacity, prompt, window) of each. All of the caches are there at once,
    and what is compiled is compiled side by side."""
    task = engines.task
    start = lambda prompt: [Request(engines.prompts(1, prompt)[0], task.sizes.short, n=rows)]
    make = lambda label, capacity: lambda: engines.make(how_of(label), rows, capacity)
    made = warmed([(make(label, capacity), start(prompt)) for label, capacity, prompt, _ in works])
    for engine, (label, _, prompt, window) in zip(made, works, strict=True):
        measure = lambda engine=engine, how=(rows, prompt, window): steady(task, engine.result(), *how)
        task.attempt(work, label, measure)


def memory(engines: Engines) -> None:
    """As many rows as a fixed memory for the cache has room for, in eights. One cache is there at a time."""
    size = engines.task.sizes
    for how in ("R-KV", "LightThinker", "full"):
        capacity = peak(engines, how, size.memory_keys)
        rows = int(size.memory / engines.row_bytes(how, capacity))
        rows = max(1, rows // 8 * 8)
        works = [(how, capacity, middle(engines, how, size.memory_keys), span(engines, how))]
        filled(engines, f"{size.memory_keys:,} tokens a row", rows, works)


def main() -> None:
    task = given()
    begin(task)
    engines = Engines(task)
    print(f"engines are {ENGINE}", flush=True)
    memory(engines) if task.section == "memory20" else budgets(engines)


if __name__ == "__main__":
    main()
