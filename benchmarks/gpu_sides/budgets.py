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


def long_rows(engines: Engines) -> list[tuple]:
    """(work, how, rows, capacity, prompt, window) of the rows that are timed in their steady state."""
    size, rows = engines.task.sizes, engines.task.sizes.many
    works = [(f"{rows} rows x {size.long:,}", how, rows, peak(engines, how, size.long), middle(engines, how, size.long),
              span(engines, how)) for how in ("full", "LightThinker")]  # fmt: skip
    # Full attention with as many keys on average as a row under the budget has slots.
    most = size.budget + size.buffer
    begin = most - size.window // 2 - size.short
    works.append((f"{rows} rows at {most} keys", "full", rows, most + size.window, begin, size.window))
    return works


def budgets(engines: Engines) -> None:
    task, size = engines.task, engines.task.sizes
    rows, whole = size.many, []
    for how, new in (("full", size.new), ("LightThinker", size.new), ("R-KV", size.budget_new)):
        label = f"{how} {size.budget} + {size.buffer}" if how == "R-KV" else how
        whole.append((f"{rows} rows x {new:,}", label, new, engines.make(how, rows, peak(engines, how, new))))
    prompts = engines.prompts(rows, size.prompt)
    warmed([(engine, [Request(prompt, new) for prompt in prompts]) for *_, new, engine in whole])
    for work, label, new, engine in whole:
        task.attempt(work, label, lambda engine=engine, new=new: {"rows": rows} | rate(engine, prompts, new))
    whole.clear()
    filled(engines, long_rows(engines))


def filled(engines: Engines, works: list[tuple]) -> None:
    """Times rows in their steady state, one work after the other so that only one cache is there at a time."""
    for work, how, rows, capacity, prompt, window in works:

        def measure(how=how, rows=rows, capacity=capacity, prompt=prompt, window=window) -> dict:
            engine = engines.make(how, rows, capacity)
            warmed([(engine, [Request(engines.prompts(1, prompt)[0], engines.task.sizes.short, n=rows)])])
            return steady(engines.task, engine, rows, prompt, window)

        engines.task.attempt(work, how, measure)


def memory(engines: Engines) -> None:
    """As many rows as a fixed memory for the cache has room for, in eights."""
    size, works = engines.task.sizes, []
    for how in ("R-KV", "LightThinker", "full"):
        capacity = peak(engines, how, size.memory_keys)
        rows = int(size.memory / engines.row_bytes(how, capacity))
        rows = max(1, rows // 8 * 8)
        works.append((f"{size.memory_keys:,} tokens a row", how, rows, capacity,
                      middle(engines, how, size.memory_keys), span(engines, how)))  # fmt: skip
    filled(engines, works)


def main() -> None:
    task = given()
    begin(task)
    engines = Engines(task)
    print(f"engines are {ENGINE}", flush=True)
    memory(engines) if task.section == "memory20" else budgets(engines)


if __name__ == "__main__":
    main()
