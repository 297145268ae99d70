"""The demo's plumbing at the smallest size, and what must be true of the base model that ships."""

import dataclasses
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lt_jax import demo
from lt_jax.data import suites
from lt_jax.data.tasks import Problems
from lt_jax.decode import DecodeConfig
from lt_jax.demo import BASE
from lt_jax.evaluation import job
from lt_jax.evaluation.contenders import contender
from lt_jax.evaluation.run import evaluate
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.model import load
from tests.scripted import three

ROOT = Path(__file__).parents[1]


def test_the_base_model_reasons():
    """Greedy, on held-out problems: what the demo starts from must solve nearly all of them."""
    suite = suites.embedded(30, seed=5)
    writer = load(BASE)
    found = evaluate([contender("base", writer, DecodeConfig(rows=30, capacity=800), max_new=760)], suite)
    assert sum(record.correct for record in found.methods[0].records) >= 28


def test_the_base_model_is_small():
    assert (BASE / "model.safetensors").stat().st_size <= 4 * 2**20


def test_the_tokenizer_keeps_digits_apart():
    tokenizer = load_tokenizer(BASE)
    problem = Problems(5, seed=1)[2]
    text = "\n\n".join((problem.question, *problem.thoughts))
    ids = tokenizer.encode(text, add_special_tokens=False)
    pieces = [tokenizer.decode([i]) for i in ids]
    assert "".join(pieces) == text
    assert all(len(piece) == 1 or not any(map(str.isdigit, piece)) for piece in pieces)
    assert tokenizer.encode("\n\n", add_special_tokens=False) == [tokenizer.convert_tokens_to_ids("ĊĊ")]


def test_the_memory_of_one_students_rows_holds_more_of_the_others(tmp_path, monkeypatch):
    """A cache of 40 % of the bytes: 4 rows become 10, of the second contender alone, and both rates are told."""
    found, suite = three(size=4, families=("gcd",))
    whole = evaluate(found[:2], suite)
    sized = lambda each, size: dataclasses.replace(each, cache_bytes=size, seconds=2.0)
    whole = dataclasses.replace(whole, methods=[sized(m, n) for m, n in zip(whole.methods, (1000, 400), strict=True)])
    ran, said = [], []

    def run(asked, say):
        ran.append(asked)
        return dataclasses.replace(whole, methods=[dataclasses.replace(whole.methods[1], seconds=1.0)])

    monkeypatch.setattr(demo.job, "run", run)
    asked = job.EvalConfig(job.SuiteConfig(embedded=4), {m.name: m for m in whole.methods}, str(tmp_path), rows=4)
    demo.at_equal_memory(asked, whole, said.append)
    assert [(each.rows, list(each.contenders)) for each in ran] == [(10, ["LightThinker"])]
    rates = [float(rate.replace(",", "")) for rate in re.findall(r"[A-Za-z] ([\d,.]+)", said[1])]
    before = float(re.search(r"\(([\d,.]+) with 4 rows", said[1])[1].replace(",", ""))
    assert "takes 40 % of the memory" in said[0] and rates[1] == pytest.approx(2 * before, rel=0.1)
    demo.at_equal_memory(asked, dataclasses.replace(whole, methods=whole.methods[::-1]), said.append)
    assert len(ran) == 1, "no more rows fit"


@pytest.mark.slow
def test_the_demo_runs_through_and_learns_to_compress(tmp_path):
    """With a tenth of its steps nearly all tokens are right already, also with every earlier thought gone."""
    small = {
        "out": tmp_path / "demo", "train.steps": 80, "train.log_every": 10, "decode.rows": 4,
        "decode.max_new": 40, "suites.main.embedded": 5, "suites.many_steps.embedded": 2,
    }  # fmt: skip
    command = [sys.executable, "launch/demo.py", "--config=configs/demo.py"]
    command += [f"--config.{name}={value}" for name, value in small.items()]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "lightthinker - vanilla" in done.stdout
    for suite, size in (("main", 5), ("many_steps", 2)):
        results = json.loads((tmp_path / "demo" / suite / "results.json").read_text())
        assert [len(method["records"]) for method in results["methods"]] == [size, size]
        assert (tmp_path / "demo" / suite / "report.html").is_file()
    card = json.loads((tmp_path / "demo" / "lightthinker" / "final" / "lt_jax.json").read_text())
    assert card["scheme"]["method"] == "lightthinker" and len(card["special"]["gists"]) == 9
    for student in ("vanilla", "lightthinker"):
        lines = (tmp_path / "demo" / student / "metrics.jsonl").read_text().splitlines()
        assert json.loads(lines[-1])["accuracy"] > 0.97, student
