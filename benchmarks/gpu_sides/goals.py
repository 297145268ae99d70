"""The goals of one H100, each beside the figure that a run found: what `benchmarks/gpu.py` prints last."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from benchmarks.gpu_sides.sizes import Sizes

OURS = "triton"


class Missing(Exception):
    """A figure that a goal needs was not found; the message says which, and why."""


class Found:
    """The lines of all sides; `found(section, side, work, form)[name]` is a figure."""

    def __init__(self, rows: Sequence[dict], sizes: Sizes):
        self.rows, self.sizes = rows, sizes

    def row(self, section: str, side: str, work: str, form: str = "") -> dict:
        """The line whose work and form begin so. Raises Missing."""
        same = lambda row: row["section"] == section and row["side"].startswith(side)
        mine = [row for row in self.rows if same(row)]
        for row in mine:
            if row["work"].startswith(work) and row["form"].startswith(form):
                if "failed" in row:
                    raise Missing(f"{side}: {row['failed']}")
                return row
        why = next((row["failed"] for row in mine if row["work"] == "all"), "not measured")
        raise Missing(f"{side}: {why}")

    def limit(self, name: str) -> float:
        """The greatest "matmul" or "copy" that any side measured."""
        found = [row[name] for row in self.rows if row["work"] == "limits" and name in row]
        if not found:
            raise Missing("the card's limits were not measured")
        return max(found)

    def ours(self, layout: str, which: int, name: str = "both ms") -> float:
        return self.row("attention", "lt_jax", self.attention(layout, which), self.form)[name]

    def theirs(self, layout: str, which: int, form: str, side: str = "torch") -> float:
        return self.row("attention", side, self.attention(layout, which), form)["both ms"]

    def attention(self, layout: str, which: int) -> str:
        rows, length = self.sizes.attention[which]
        return f"{layout}, {rows} x {length:,}"

    @property
    def form(self) -> str:
        """Of our attention: the kernels, or what a rehearsal has in their place."""
        forms = [row["form"] for row in self.rows if row["section"] == "attention" and row["side"] == "lt_jax"]
        return OURS if OURS in forms or not forms else next(iter(form for form in forms if form != "jax"), OURS)

    def rate(self, section: str, work: str, form: str = "", side: str = "lt_jax") -> float:
        return self.row(section, side, work, form)["tokens/s"]

    def decoded(self, rows: int) -> float:
        return self.rate("decode", f"{rows} rows")


def lines(rows: Sequence[dict], sizes: Sizes) -> list[dict]:
    """What the issue asks for, in its order: what, figure, goal, verdict ("met", "missed", "" where it is reported)."""
    found, out = Found(rows, sizes), []

    def line(what: str, measure: Callable[[], float], goal: float | None, least: bool = False, unit: str = "x") -> None:
        sign = "" if goal is None else ">= " if least else "<= "
        said = "reported" if goal is None else sign + _said(goal, unit)
        try:
            value = measure()
        except (Missing, KeyError) as why:  # a line without this figure
            out.append(dict(what=what, figure="none", goal=said, verdict=f"not measured ({why})"))
            return
        good = goal is None or (value >= goal if least else value <= goal)
        verdict = "" if goal is None else "met" if good else "missed"
        out.append(dict(what=what, figure=_said(value, unit), goal=said, verdict=verdict, value=value))

    _attention(found, line)
    _training(found, line)
    _decoding(found, line)
    _memory(found, line)
    _numerics(found, line)
    return out


def _said(value: float, unit: str) -> str:
    if unit == "%":
        return f"{100 * value:.0f} %"
    if unit == "x":
        return f"{value:.2f}x"
    return f"{value:,.0f} {unit}" if value >= 10 else f"{value:.2g} {unit}"


def _attention(found: Found, line) -> None:
    mine, names = found.ours, [f"{rows} x {length:,}" for rows, length in found.sizes.attention]
    thoughts, flash = "thoughts of 40", "SDPA flash"
    what = "attention, thoughts of 40, forward + backward"
    line(f"{what}, {names[0]}: of FlexAttention with keys in our order",
         lambda: mine(thoughts, 0) / found.theirs(thoughts, 0, "FlexAttention, our order"), 1.0)  # fmt: skip
    for which, goal in ((0, 0.8), (1, 0.4)):
        line(f"{what}, {names[which]}: of torch's causal flash",
             lambda which=which: mine(thoughts, which) / found.theirs("causal", which, flash), goal)  # fmt: skip
    for which, name in enumerate(names):
        cudnn = lambda which=which: found.theirs("causal", which, "cuDNN", "lt_jax")
        level = lambda which=which, cudnn=cudnn: mine("causal", which) / cudnn()
        record = lambda which=which: mine("R-KV record", which) / found.theirs("causal", which, flash)
        line(f"attention, causal, forward + backward, {name}: of cuDNN's", level, 1.0)
        line(f"attention, R-KV record, forward + backward, {name}: of torch's causal flash", record, None)


def _training(found: Found, line) -> None:
    rows, length, _ = found.sizes.train[0]
    work, shape = f"{rows} x {length:,}", found.sizes.model
    mine = lambda: found.rate("sft", f"{work}, thoughts of 40")
    line(f"SFT step, {work}: tokens/s of transformers, causal", lambda: mine() / found.rate("sft", work, side="torch"),
         1.3, least=True)  # fmt: skip
    share = lambda: mine() * shape.train_flops(1) / found.limit("matmul")
    line(f"SFT step, {work}: of the matmul rate", share, 0.4, least=True, unit="%")


def _decoding(found: Found, line) -> None:
    size, shape = found.sizes, found.sizes.model
    launches = lambda: found.rate("graphs", "1 row", "triton, launches")
    line("decode, 1 row: times as fast by graphs", lambda: found.rate("graphs", "1 row", "triton, graphs") / launches(),
         None)  # fmt: skip
    line("decode, 1 row: times as fast by the kernels, without graphs",
         lambda: launches() / found.rate("plain", "1 row"), None)  # fmt: skip
    mean = size.prompt + size.new / 2
    bound = lambda: found.limit("copy") / shape.step_bytes(1, mean)
    line("decode, 1 row: of the bandwidth limit", lambda: found.decoded(1) / bound(), 0.6, least=True, unit="%")
    for rows, goal in ((64, 25_000), (256, 60_000)):
        line(f"decode, {rows} rows", lambda rows=rows: found.decoded(rows), goal, least=True, unit="tokens/s")
    for rows in (1, 8, 64, 256):
        theirs = lambda rows=rows: found.rate("decode", f"{rows} rows", side="torch")
        ratio = lambda rows=rows, theirs=theirs: found.decoded(rows) / theirs()
        line(f"decode, {rows} rows: times transformers", ratio, None)
    many = size.many
    keys = size.budget + size.buffer
    at = lambda form: found.rate("budgets", f"{many} rows at {keys} keys", form)  # both in their steady state
    line(f"R-KV {size.budget} + {size.buffer}, {many} rows: of full attention's rate at {keys} keys",
         lambda: at("R-KV") / at("full"), 0.8, least=True, unit="%")  # fmt: skip
    for new, goal in ((size.new, 0.9), (size.long, 1.0)):
        of = lambda form, new=new: found.rate("budgets", f"{many} rows x {new:,}", form)
        line(f"LightThinker, {many} rows x {new:,}: of vanilla's rate",
             lambda of=of: of("LightThinker") / of("full"), goal, least=True, unit="%")  # fmt: skip


def _memory(found: Found, line) -> None:
    work = f"{found.sizes.memory_keys:,} tokens a row"
    for how in ("full", "R-KV", "LightThinker"):
        for name in ("rows", "tokens/s"):
            figure = lambda how=how, name=name: found.row("memory20", "lt_jax", work, how)[name]
            line(f"cache of {found.sizes.memory / 1e9:g} GB, {work}, {how}", figure, None, unit=name)


def _numerics(found: Found, line) -> None:
    for layout in ("thoughts of 40", "causal", "deaths for each head"):
        for name in ("forward", "gradients"):
            line(f"bfloat16 against dense, {layout}, {name}: of the suite's bound",
                 lambda layout=layout, name=name: found.row("numerics", "lt_jax", layout)[f"{name}, of the bound"],
                 1.0)  # fmt: skip
    for how in ("LightThinker", "R-KV"):
        work = f"log-probs sampled and scored, {how}"
        line(work, lambda work=work: found.row("numerics", "lt_jax", work)["most"], 2e-2, unit="nats")
