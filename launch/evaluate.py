r"""Compares methods on the same problems: prints a table, and writes results.json, table.txt, report.html and pictures.

    python launch/evaluate.py --config=configs/eval_math.py --config.model.path=DIR --config.suite.path=problems.jsonl
    python launch/evaluate.py --config=configs/eval_math.py --config.model.path=DIR --config.suite.path=problems.jsonl \
        --kv=rkv,snapkv --budget=512 --buffer=128
    python launch/evaluate.py --results=runs/eval_math/results.json --out=DIR

The second command compares KV policies with the config's baseline, and works with any checkpoint. The last one prints
and draws an earlier evaluation again.
"""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags
from ml_collections import config_flags

from launch.main import METHODS, POLICIES, compile_cache, resolved, run, several
from lt_jax.errors import UserError

CONFIG = config_flags.DEFINE_config_file("config", None, "the config of an evaluation, such as configs/eval_math.py")
METHOD = flags.DEFINE_enum(
    "method", None, METHODS, "the method that runs beside the config's baseline, in place of its other contenders; "
    "with --kv, the method that is decoded under each policy (the baseline's if not given)"
)  # fmt: skip
KV = flags.DEFINE_list(
    "kv", None, f"KV policies, with commas between them, to run beside the config's baseline in place of its other "
    f"contenders: {', '.join(POLICIES)}"
)  # fmt: skip
BUDGET = flags.DEFINE_integer("budget", None, "with --kv: how many keys each layer and KV head keeps; 512 if not given")
BUFFER = flags.DEFINE_integer("buffer", None, "with --kv: how many tokens pass between two evictions; 128 if not given")
RESULTS = flags.DEFINE_string("results", None, "a results.json of an earlier evaluation, to print and draw again")
OUT = flags.DEFINE_string("out", None, "the folder that the files are written to; config.out if not given")


def main(argv) -> None:
    if RESULTS.value is None:
        config = resolved(CONFIG, example="configs/eval_math.py")
        from lt_jax.evaluation import job

        compile_cache(config.compile_cache)
        job.run(eval_config(config, OUT.value, policies(config.baseline), METHOD.value))
        return
    if given := [f"--{flag.name}" for flag in (METHOD, KV, BUDGET, BUFFER) if flag.present]:
        raise UserError(f"{given[0]} and --results are both given: evaluate, or draw an old evaluation again")
    if CONFIG.value is not None:
        raise UserError("--config and --results are both given: evaluate with the one, or draw the other again")
    if OUT.value is None:
        raise UserError("--results needs --out=DIR, where the files shall go")
    from lt_jax.evaluation import job, results, table

    found = results.load(RESULTS.value)
    print(table.table(found))
    job.write(found, OUT.value)


def policies(baseline: str) -> dict:
    """What --kv asks for: name -> settings of the eviction. They run beside the contender `baseline`."""
    if KV.value is None:
        if given := [flag.name for flag in (BUDGET, BUFFER) if flag.present]:
            raise UserError(f"--{given[0]} needs --kv=POLICY, which it is the {given[0]} of")
        return {}
    if not KV.value:
        raise UserError(f"--kv is empty; it is one or several of {', '.join(POLICIES)}, with commas between them")
    if twice := [name for place, name in enumerate(KV.value) if name in KV.value[:place]]:
        raise UserError(f"--kv names {twice[0]} twice")
    if baseline in KV.value:
        raise UserError(f"--kv={baseline}: that is the baseline, which always runs; name policies beside it")
    from lt_jax.ask import AskConfig

    return {name: AskConfig(kv=name, budget=BUDGET.value, buffer=BUFFER.value).eviction for name in KV.value}


def eval_config(config, out: str | None = None, policies=None, method: str | None = None):
    """The `EvalConfig` of a config file. Empty texts in it mean "the model's own".

    Args:
        policies: name -> settings of an eviction, to run beside the baseline in place of the other contenders.
        method: how those are decoded, or what runs beside the baseline without policies: the config's contender of this
            method, or the baseline's folder decoded so.
    """
    from lt_jax.decode import Sampling
    from lt_jax.evaluation.job import ContenderConfig, EvalConfig, SuiteConfig

    contenders, names = {}, list(config.contenders)
    if config.baseline not in names:
        raise UserError(f"config.baseline is {config.baseline!r}; the contenders are {', '.join(names) or 'none'}")
    for name in sorted(names, key=lambda name: name != config.baseline):
        each = config.contenders[name]
        values = {key: value for key, value in each.items() if value != ""}
        if "eviction" in values:
            values["eviction"] = dict(values["eviction"])
        contenders[name] = ContenderConfig(**{"path": config.model.path, **values})
    if policies or method:
        contenders = chosen(contenders, policies or {}, method)
    decode = config.decode
    return EvalConfig(
        suite=SuiteConfig(**{**config.suite, "path": several(config.suite.path)}),
        contenders=contenders,
        out=out or config.out,
        dtype=config.model.dtype,
        rows=decode.rows,
        tensor=decode.tensor,
        capacity=decode.capacity,
        block_steps=decode.block_steps,
        max_new=decode.max_new,
        sampling=Sampling(decode.temperature, decode.top_k, decode.top_p),
        seed=decode.seed,
        samples=config.samples,
        note=config.note,
    )


def chosen(contenders: dict, policies: dict, method: str | None) -> dict:
    """The baseline, which is the first contender, and beside it what --kv and --method ask for."""
    name, first = next(iter(contenders.items()))
    own = first
    if method is not None:
        same = {place: each for place, each in contenders.items() if each.method == method}
        place, own = next(iter(same.items()), (method, dataclasses.replace(first, method=method)))
        if not policies:
            return {name: first, place: own}
    return {name: first} | {policy: dataclasses.replace(own, eviction=how) for policy, how in policies.items()}


if __name__ == "__main__":
    run(main)
