"""Evaluations: folders, suites, contenders, jobs and progress, with a random tiny model in an exported folder."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest

from lt_jax.ask import AskConfig
from lt_jax.data import answers, suites
from lt_jax.data.problem import Problem
from lt_jax.data.suites import Suite
from lt_jax.decode import DecodeConfig, Request
from lt_jax.errors import UserError
from lt_jax.evaluation import job, pictures, progress, report, results, table
from lt_jax.evaluation.contenders import contender, warm_up
from lt_jax.evaluation.run import evaluate
from lt_jax.layout import card
from lt_jax.layout.scheme import Scheme
from lt_jax.model import load
from lt_jax.models import huggingface
from lt_jax.serving import prompts
from tests.scripted import three
from tests.tiny_folder import TOKENIZER, make

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "light", Scheme(n_gist=2))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "base")




# The folder.


def test_card_survives_the_folder(folder):
    writer = load(folder)
    assert writer.scheme == Scheme(n_gist=2) and len(writer.special.gists) == 2
    assert writer.tokenizer.convert_ids_to_tokens(writer.special.trigger) == "<|splitter|>"
    row = writer.ask("Sum 1)+001")
    assert writer.pieces(row.tokens)[0] == "<|user|>" and writer.text(row.tokens) == "Sum 1)+001"


def test_what_is_put_around_questions_survives_the_folder(folder, tmp_path):
    path = shutil.copytree(folder, tmp_path / "other") / card.NAME
    values = json.loads(path.read_text())
    for change, asked in (({}, "Sum"), ({"prefix": "A ", "suffix": " Z"}, "A Sum Z")):
        path.write_text(json.dumps(values | change))
        writer = load(path.parent)
        assert writer.text(writer.ask("Sum").tokens) == asked
    assert writer.card.suffix == " Z" and json.loads(writer.card.to_json(writer.tokenizer))["suffix"] == " Z"
    writer = load(path.parent, suffix="!")
    assert writer.text(writer.ask("Sum").tokens) == "A Sum!"
    del values["suffix"]  # of a folder that an earlier version wrote
    path.write_text(json.dumps(values))
    assert load(path.parent).card.suffix == ""


def test_method_of_a_folder(folder, base):
    assert load(folder, "vanilla").scheme == Scheme("vanilla")
    assert load(base).scheme == Scheme("vanilla")
    with pytest.raises(UserError, match="trained for lightthinker; it can be decoded as lightthinker or vanilla"):
        load(folder, "anllm")
    with pytest.raises(UserError, match="has no lt_jax.json, .* for lightthinker; .* launch/evaluate.py --kv=rkv"):
        load(base, "lightthinker")


def test_tokenizer_without_the_special_tokens(folder, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    for path in TOKENIZER.iterdir():
        if path.name.startswith("tokenizer"):
            shutil.copy(path, other)
    with pytest.raises(UserError, match=r"other: the tokenizer has no token '<\|splitter\|>' with id"):
        load(other)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda f: (f / card.NAME).write_text("{"), "lt_jax.json: not what an export writes"),
        (lambda f: (f / card.NAME).write_text('{"version": 7}'), "lt_jax.json: version 7"),
        (lambda f: (f / "tokenizer.json").write_text("{}"), "the tokenizer cannot be read"),
        (lambda f: (f / "tokenizer.json").unlink(), "no tokenizer.json"),
        (lambda f: (f / "model.safetensors").unlink(), "safetensors"),
        (lambda f: (f / "config.json").write_text('{"model_type": "mamba"}'), "model_type 'mamba' is not supported"),
        (lambda f: shutil.rmtree(f), "no such folder"),
    ],
    ids=["card", "version", "tokenizer", "no tokenizer", "weights", "model type", "folder"],
)
def test_broken_folders(folder, tmp_path, change, message):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    change(broken)
    with pytest.raises(UserError, match=message) as caught:
        load(broken)
    assert "\n" not in str(caught.value)


def test_pieces_keep_every_character(folder):
    writer = load(folder)
    ids = writer.tokenize("é 😀 x")
    pieces = writer.pieces(ids)
    assert "".join(pieces) == "é 😀 x" and len(pieces) == len(ids) and "\ufffd" not in "".join(pieces)


def test_transformers_does_not_tell_us_that_there_is_no_torch(tmp_path):
    """Nothing here needs torch; everything else that transformers says is still heard."""
    code = """
        import importlib.util, logging, sys
        real = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *more: None if name == "torch" else real(name, *more)
        if sys.argv[1] == "ours":
            from lt_jax.layout.tokenizer import load_tokenizer
            load_tokenizer(sys.argv[2])
        import transformers
        logging.getLogger("transformers").warning("PyTorch is nice")
    """
    said = {}
    for which in ("ours", "theirs"):
        command = [sys.executable, "-c", textwrap.dedent(code), which, str(TOKENIZER)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert not done.returncode, done.stderr
        said[which] = done.stderr
    assert "PyTorch was not found" in said["theirs"], "it says so no longer: the filter can go"
    assert "PyTorch was not found" not in said["ours"] and said["ours"].count("\n") == 1
    assert "PyTorch is nice" in said["ours"]


# Suites.


def test_suite_from_file(tmp_path):
    path = tmp_path / "math.jsonl"
    records = [
        {"question": "1+1?", "answer": "so two\n#### 2", "family": "plus"},
        {"question": "capital?", "answer": "B", "choices": ["Rome", "Paris"]},
        {"conversations": [{"from": "user", "value": "3+3?"}, {"from": "assistant", "value": "\\boxed{6}"}]},
    ]
    path.write_text("\n".join(json.dumps(r) for r in records[:2]))
    suite = suites.from_files(path, name="math", prefix="Box it. ")
    assert [(p.answer, p.family) for p in suite.problems] == [("2", "plus"), ("B", "all")]
    assert suite.problems[0].question == "Box it. 1+1?"
    assert suite.problems[1].text == "Box it. capital?\n\nA. Rome\nB. Paris"
    (tmp_path / "more.jsonl").write_text(json.dumps({"question": "2+2?", "answer": 4}))
    both = job.SuiteConfig((str(path), str(tmp_path / "more.jsonl"))).open()
    assert both.name == "math, more" and [p.answer for p in both.problems] == ["2", "B", "4"]
    path.write_text(json.dumps(records[2]))
    assert suites.from_files(path, name="chat").problems[0].answer == "6"
    path.write_text("\n".join(json.dumps({"question": str(i), "answer": str(i)}) for i in range(50)))
    few = suites.from_files(path, name="few", limit=5, seed=3).problems
    assert len(few) == 5 and few == suites.from_files(path, name="few", limit=5, seed=3).problems


@pytest.mark.parametrize(
    "text, message",
    [
        ('{"question": "a", "answer": "1"}\n{"question": ', r"bad.jsonl:2: broken JSON"),
        ("", "no trace in the data"),
        ('{"question": "a", "answer": "1"}\n{"question": "a"}', "bad.jsonl:2: no answer to judge by"),
        ('{"question": "a", "answer": " \\n"}', "bad.jsonl:1: no answer to judge by"),
        ('{"question": "a", "answer": "C", "choices": ["x", "y"]}', "bad.jsonl:1: .* none of the 2 choices"),
        ('{"question": "a", "answer": "A", "choices": "xyz"}', "bad.jsonl:1: field 'choices' must be a list"),
        ('{"question": "a", "answer": "A", "choices": {"A": 1}}', "bad.jsonl:1: field 'choices' must be a list"),
    ],
)
def test_bad_suites(tmp_path, text, message):
    (tmp_path / "bad.jsonl").write_text(text)
    with pytest.raises(UserError, match=message):
        suites.from_files(tmp_path / "bad.jsonl", name="bad")


def test_embedded_suite_is_held_out_and_seeded():
    suite = suites.embedded(6, steps=(4, 5), families=("gcd", "simple_equations"), seed=4)
    assert suite == suites.embedded(6, steps=(4, 5), families=("gcd", "simple_equations"), seed=4)
    assert {p.family for p in suite.problems} == {"gcd", "simple_equations"}
    with pytest.raises(UserError, match="no more than .* different problems of count_bits with 6 to 6 steps"):
        suites.embedded(30, steps=(6, 6), families=("count_bits",))
    with pytest.raises(UserError, match="unknown family 'chess'; families are"):
        suites.embedded(6, families=("chess",))
    with pytest.raises(UserError, match="TFDS no_such_set, split test: cannot be read"):
        suites.from_tfds("no_such_set")
    with pytest.raises(UserError, match="give one of path, tfds and embedded; given are path, embedded"):
        job.SuiteConfig(path="x", embedded=3)


def test_embedded_problems_are_distinct_and_each_drawn_once(monkeypatch):
    """As small a pool as that of few halvings gives the same question again and again."""
    drawn, real = [], suites.Problems.__getitem__
    monkeypatch.setattr(suites.Problems, "__getitem__", lambda self, i: drawn.append(i) or real(self, i))
    suite = suites.embedded(24, steps=(6, 7), families=("count_bits", "simple_equations"))
    assert len({p.question for p in suite.problems}) == 24
    assert [p.family for p in suite.problems] == ["count_bits", "simple_equations"] * 12
    assert len(set(drawn)) == len(drawn) > 24, "skipped, and never asked for twice"


# The engine's numbers.


def test_engine_counts_what_its_lifetimes_say(folder):
    """The counter of a real engine, against the rule applied to the lifetimes it reports."""
    writer = load(folder)
    config = DecodeConfig(rows=3, capacity=256, block_steps=8, max_thought=9)
    problems = tuple(Problem(f"Sum 1)+00{i} 2)+01{i}", str(10 + 2 * i)) for i in range(4))
    found = evaluate([contender("light", writer, config, max_new=30)], Suite("sums", problems), samples=4)
    for record, sample in zip(found.methods[0].records, found.methods[0].samples, strict=True):
        seen = pictures.mask(sample).sum(1)
        forced, n = np.array(sample.forced), len(sample.forced)
        assert seen[~forced].tolist() == np.array(sample.visible)[~forced].tolist()
        assert record.counts.dependency == seen[~forced].sum()
        assert record.counts.compressions >= 2 and min(sample.death) < n
        assert record.counts.peak < record.counts.prompt + record.counts.generated


def test_warming_compiles_every_group_that_may_come(folder):
    """Rows become free one by one or together: whatever the engine then feeds was compiled before the clock."""
    writer = load(folder)
    engine = writer.engine(DecodeConfig(rows=5, capacity=256, block_steps=4))
    prompts = [writer.ask(f"{n} Sum " + "1)+001 " * n) for n in (1, 2, 9, 1, 20)]  # none begins like another
    warm_up(engine, prompts)
    compiled = engine.programs.prefill._cache_size(), engine.programs.block._cache_size()
    for sizes in ([1], [3], [0, 0], [0] * 5, [1, 1, 1], [2], [4], [0, 1, 2, 3, 4], [1, 3, 0] * 2):
        engine.forget()  # what starts from a prefix is cut otherwise; if it compiles, that has the compiler's clock
        list(engine.run(Request(prompts[i], 2 + n % 3) for n, i in enumerate(sizes)))
    assert (engine.programs.prefill._cache_size(), engine.programs.block._cache_size()) == compiled


def test_judging_is_off_the_clock(monkeypatch):
    """An engine works on while its caller judges: the clock must run through the decoding, and only that."""
    contenders, suite = three(size=4)
    now = iter(range(0, 10**6, 10))
    asked = []
    clock = lambda: asked.append("clock") or next(now)
    monkeypatch.setattr("lt_jax.evaluation.run.time.perf_counter", clock)
    judge = answers.judge
    monkeypatch.setattr(answers, "judge", lambda *given: asked.append("judge") or judge(*given))
    found = evaluate(contenders[:1], suite)
    assert asked == ["clock", "clock"] + ["judge"] * 4 and found.methods[0].seconds == 10


def test_a_folder_is_read_once_for_all_its_methods(folder, tmp_path, monkeypatch):
    read, real = [], huggingface.load
    monkeypatch.setattr(huggingface, "load", lambda *given, **more: read.append(given) or real(*given, **more))
    each = {name: job.ContenderConfig(str(folder), name) for name in ("vanilla", "lightthinker")}
    suite = job.SuiteConfig(embedded=1, steps=(4, 5), families=("gcd",))
    job.run(job.EvalConfig(suite, each, str(tmp_path / "out"), rows=1, capacity=256, block_steps=8, max_new=4))
    assert len(read) == 1


def test_job_writes_everything(folder, tmp_path, capsys):
    each = {name: job.ContenderConfig(str(folder), name) for name in ("vanilla", "lightthinker")}
    suite = job.SuiteConfig(embedded=3, steps=(4, 5), families=("gcd",))
    how = dict(rows=3, capacity=256, block_steps=8, max_new=24, samples=1)
    config = job.EvalConfig(suite, each, str(tmp_path / "out"), **how)
    found = job.run(config)
    printed = capsys.readouterr()
    assert "lightthinker - vanilla: accuracy" in printed.out and "3 of 3 problems" in printed.err
    assert results.load(tmp_path / "out" / "results.json") == found
    assert {p.name for p in (tmp_path / "out").iterdir()} >= {"results.json", "table.txt", "report.html"}
    with pytest.raises(UserError, match="contenders.vanilla: which model"):
        job.run(job.EvalConfig(suite, {"vanilla": job.ContenderConfig("")}, str(tmp_path / "no")))
    with pytest.raises(UserError, match=r"lightthinker: problem \d of .* tokens; decode.capacity is 8 keys"):
        job.run(job.EvalConfig(suite, {"lightthinker": each["lightthinker"]}, str(tmp_path / "no"), capacity=8))
    assert not (tmp_path / "no").exists()


def test_what_ran_is_kept_when_a_contender_fails(folder, tmp_path, monkeypatch, capsys):
    """The third of four dies while it decodes: two are in the files, which say what is missing."""
    names, real = ["vanilla", "lightthinker", "again", "last"], job.contender
    each = {name: job.ContenderConfig(str(folder), "vanilla") for name in names}
    suite = job.SuiteConfig(embedded=2, steps=(4, 5), families=("gcd",))

    def failing(name, *given, **more):
        made = real(name, *given, **more)
        return dataclasses.replace(made, complete=broken) if name == "again" else made

    def broken(prompts):
        raise MemoryError("no more")

    monkeypatch.setattr(job, "contender", failing)
    config = job.EvalConfig(suite, each, str(tmp_path), rows=2, capacity=256, block_steps=8, max_new=4)
    with pytest.raises(MemoryError):
        job.run(config)
    found = results.load(tmp_path / "results.json")
    assert [m.name for m in found.methods] == names[:2] and found.missing == names[2:]
    for name, words in (("table.txt", "incomplete, not run when this was written: again, last"),
                        ("report.html", "Incomplete, not run when this was written: again, last")):  # fmt: skip
        assert words in (tmp_path / name).read_text()
    monkeypatch.setattr(job, "contender", real)
    assert job.run(config).missing == [] and "incomplete" not in (tmp_path / "table.txt").read_text()


def test_where_rows_end_does_not_depend_on_what_the_report_keeps(folder, tmp_path):
    short = tmp_path / "short"
    shutil.copytree(folder, short)
    sizes = json.loads((short / "config.json").read_text())
    (short / "config.json").write_text(json.dumps(sizes | {"max_position_embeddings": 150}))
    how = {"policy": "knorm", "budget": 64, "buffer": 16}
    each = {"budget": job.ContenderConfig(str(short), "vanilla", eviction=how)}
    suite = job.SuiteConfig(embedded=2, steps=(4, 5), families=("gcd",))
    ends = []
    for samples in (0, 1):
        config = job.EvalConfig(suite, each, str(tmp_path / "out"), rows=2, block_steps=8, max_new=300, samples=samples)
        ends.append([(r.finish, r.text) for r in job.run(config).methods[0].records])
    assert ends[0] == ends[1] and {finish for finish, _ in ends[0]} <= {"positions", "eos"}
    assert any(finish == "positions" for finish, _ in ends[0])


def test_logits_that_are_no_numbers_are_told_of(folder, tmp_path, capsys):
    broken = tmp_path / "broken"
    shutil.copytree(folder, broken)
    tree, model = huggingface.load(broken)
    tree["final_norm"] = tree["final_norm"] * np.nan
    writer = dataclasses.replace(load(folder), params=tree, config=model)
    lines = []
    (done,) = prompts.generate(writer, [("1", "")], AskConfig(max_new=5), warn=lines.append)
    assert done.finish == "nan" and len(done.tokens) == 0
    assert lines[0].startswith("warning: 1 of 1 answers ended where the model's logits were NaN or infinite")
    problems = Suite("one", (Problem("1", "1"),))
    bad = contender("bad", writer, DecodeConfig(rows=1, capacity=64), max_new=5)
    found = evaluate([bad, dataclasses.replace(bad, name="worse")], problems)
    assert [r.finish for r in found.methods[0].records] == ["nan"]
    printed = table.table(found)
    assert "unfinished (cut off: logits NaN or infinite): bad 1, worse 1" in printed and "nan%" not in printed
    pictures.all_pictures(found)
    assert "nan" not in report.page(found).split("<script")[0]


def test_progress_is_there_at_once_and_once_for_each_contender(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("lt_jax.evaluation.progress.time.monotonic", lambda: now[0])
    file = io.StringIO()
    shown = progress.ProgressLine(file, every=3600)
    with shown.contender("rkv", 40):
        assert file.getvalue() == "rkv: loading and compiling\n"
        now[0] = 48.0
        assert shown.text(now[0]) == "rkv: loading and compiling, 48 s so far"
        shown.answered(0)
        now[0] = 78.0
        shown.answered(1)
        for done in range(2, 41):
            now[0] += 1
            shown.answered(done)
    lines = file.getvalue().splitlines()
    assert lines[1] == "rkv: 0 of 40 problems" and lines[2] == "rkv: 4 of 40 problems, 33 s so far, about 297 s left"
    assert lines[-1] == "rkv: 40 of 40 problems in 69 s, after 48 s of loading and compiling"
    assert len(lines) == 2 + 10 and not any(" 0 s" in line for line in lines)
    file = io.StringIO()
    with progress.ProgressLine(file, every=0.01).contender("slow", 2):
        threading.Event().wait(0.2)
    assert len(file.getvalue().splitlines()) > 2, "nothing is answered, and still something is shown"


def test_compiling_has_a_clock_of_its_own_and_the_cache_of_a_row_its_need(folder):
    writer = load(folder)
    config = DecodeConfig(rows=2, capacity=1000, block_steps=8)
    problems = Suite("two", (Problem("Sum 1)+006", "1"), Problem("1", "1")))
    found = evaluate([contender("vanilla", writer, config, max_new=6)], problems).methods[0]
    assert found.compile_seconds > 0
    peak, model = max(r.counts.peak for r in found.records), writer.config
    slot = 2 * 4 * model.layers * model.kv_heads * model.head_dim + 8  # keys, values, birth and death
    assert found.cache_used == pytest.approx(peak * slot, abs=8)
    assert found.cache_bytes == pytest.approx(256 * slot, abs=8)  # of 1,000 that it may come to have


def test_a_prompt_that_is_no_text_is_one_line(folder):
    with pytest.raises(UserError, match=r"the text '.*' has '\\udcff', which is no character"):
        load(folder).generate("Sum \udcff")
