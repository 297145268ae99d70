"""Our sides of the sections `graphs` and `decode`: whole calls of an engine, prompts read and all."""

from __future__ import annotations

from benchmarks.gpu_sides.engines import Engines, rate
from benchmarks.gpu_sides.jax_side import ENGINE, begin
from benchmarks.gpu_sides.side import given


def main() -> None:
    task = given()
    size = task.sizes
    begin(task)
    engines = Engines(task)
    if task.section == "graphs":
        form = "plain" if task.part == "plain" else ENGINE
        measure = lambda: one(engines, 1, form)
        how = "graphs" if task.graphs else "launches"
        task.attempt(f"1 row, {size.prompt} + {size.new}", f"{form}, {how}", measure)
        return
    for rows in size.rows:
        task.attempt(f"{rows} rows, {size.prompt} + {size.new}", ENGINE, lambda rows=rows: one(engines, rows, ENGINE))


def one(engines: Engines, rows: int, form: str) -> dict:
    """Full attention of so many rows. Three calls: a graph must survive its second run."""
    size = engines.task.sizes
    engine = engines.make("full", rows, size.prompt + size.new, form)
    return {"rows": rows} | rate(engine, engines.prompts(rows, size.prompt), size.new)


if __name__ == "__main__":
    main()
