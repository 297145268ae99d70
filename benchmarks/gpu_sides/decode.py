"""Our sides of the sections `graphs`, `plain` and `decode`: whole calls of an engine, prompts read and all."""

from __future__ import annotations

from benchmarks.gpu_sides.engines import Engines, first, rate
from benchmarks.gpu_sides.jax_side import ENGINE, begin
from benchmarks.gpu_sides.side import given


def main() -> None:
    task = given()
    size = task.sizes
    begin(task)
    engines = Engines(task)
    if task.section != "decode":
        form = "plain" if task.section == "plain" else ENGINE
        measure = lambda: one(engines, 1, form)
        how = "graphs" if task.graphs else "launches"
        task.attempt(f"1 row, {size.prompt} + {size.new}", f"{form}, {how}", measure)
        return
    for rows in size.rows:
        task.attempt(f"{rows} rows, {size.prompt} + {size.new}", ENGINE, lambda rows=rows: one(engines, rows, ENGINE))


def one(engines: Engines, rows: int, form: str) -> dict:
    """Full attention of so many rows. Three calls: a graph must survive its second run. That the first returned is
    said at once, for if the next one hangs it is the only trace."""
    size = engines.task.sizes
    engine = engines.make("full", rows, size.prompt + size.new, form)
    prompts = engines.prompts(rows, size.prompt)
    engines.task.note(f"first call, {rows} rows", form, **first(engine, prompts, size.new))
    return {"rows": rows} | rate(engine, prompts, size.new)


if __name__ == "__main__":
    main()
