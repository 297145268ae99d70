"""What `launch/evaluate.py` and `launch/generate.py` say to good and bad command lines, in processes of their own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launch import main
from lt_jax.cache.policies.config import POLICIES
from lt_jax.layout.scheme import METHODS, Scheme
from tests.tiny_folder import make

ROOT = Path(__file__).parents[1]
CONFIG = "--config=configs/eval_math.py"
SYNTHESIS = "--config=configs/synthesize.py"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "light", Scheme(n_gist=2))


def launch(script, *arguments):
    """Runs a command line; (exit code, stdout, stderr)."""
    done = subprocess.run([sys.executable, f"launch/{script}.py", *arguments], cwd=ROOT, capture_output=True, text=True,
                          env={**os.environ, "JAX_PLATFORMS": "cpu"})  # fmt: skip
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize(
    "script, arguments, message",
    [
        ("generate", [], "--model=DIR is needed"),
        ("generate", ["--model=x", "--prompt=a", "--prompts=b"], "--prompt and --prompts are both given"),
        ("generate", ["--model=x", "--out=b"], "--out needs --prompt or --prompts"),
        ("generate", ["--model=x", "--prompt=a", "--budget=5"], "budget is given, but no kv policy"),
        ("generate", ["--model=x", "--prompt="], "--prompt is empty; give a question, or no --prompt"),
        ("generate", ["--model=x", "--kv=lru", "--prompt=a"], "value should be one of <full|streaming|h2o|"),
        ("generate", ["--model=x", "--kv=rkv", "--budget=0"], "budget is 0; it must be a number of keys, 1 or more"),
        ("generate", ["--model=x", "--kv=rkv", "--capacity=9"], "capacity and kv are both given"),
        ("generate", ["--model=x", "--temperature=-1"], "temperature is -1.0; it must be a number, 0 (greedy) or more"),
        ("generate", ["--model=x", "--temperature=nan"], "temperature is nan; it must be a number"),
        ("generate", ["--model=x", "--top_p=0.5"], "top_k and top_p need a temperature above 0"),
        ("generate", ["--model=x", "--prompt=a", "--n=2"], "n is 2, but at temperature 0 all answers to a prompt are"),
        ("generate", ["--model=x", "--n=2", "--temperature=1"], "--n needs --prompt or --prompts"),
        ("generate", ["--model=x", "--n=0"], "0 is not a positive integer"),
        ("generate", ["--model=x", "--prompt=a", "--out=configs"], "--out=configs: that is a folder; give a file"),
        ("generate", ["--model=x", "--max_new=0"], "0 is not a positive integer"),
        ("evaluate", [CONFIG, "--config.suite.embedded=1", "--config.samples=-1"], "samples is -1; it must be 0 or"),
        ("evaluate", [CONFIG, "--kv="], "--kv is empty; it is one or several of full, streaming"),
        ("evaluate", [CONFIG, "--kv=rkv,h2o,rkv"], "--kv names rkv twice"),
        ("evaluate", ["--config=eval_meth"], "there is no config of that name (there are agent, base, defaults, demo,"),
        ("evaluate", [CONFIG, "--results=x", "--kv=rkv"], "--kv and --results are both given"),
        ("agent", [], "--config=FILE is needed, for example --config=configs/agent.py"),
        ("agent", ["--config=configs/agent.py"], "give either questions (a file) or embedded"),
        ("agent", ["--config=configs/agent.py", "--config.embedded=2", "--config.model.path=x",
                   "--config.tools.functions=f"], "tools.functions has 'f'; it must name functions as module:function"),
        ("agent", ["--config=configs/agent.py", "--config.embedded=2", "--config.model.path=/no/where"],
         "/no/where: no such folder"),
        ("generate", ["--model=x", "--method=magic", "--prompt=a"], "value should be one of"),
        ("generate", ["--nothing=1"], "Unknown command line flag 'nothing'"),
        ("generate", ["--model=/no/where", "--prompt=a"], "/no/where: no such folder"),
        ("evaluate", [], "--config=FILE is needed, for example --config=configs/eval_math.py"),
        ("evaluate", ["--config=none.py"], "cannot read the config file"),
        ("evaluate", [CONFIG, "--config.decode.row=3"], "unknown config key --config.decode.row: "
         "config.decode has no key 'row'; did you mean rows?"),
        ("evaluate", [CONFIG, "--config.decode.rows=many"], "invalid literal for int"),
        ("evaluate", [CONFIG, "extra"], "unexpected argument 'extra'"),
        ("evaluate", [CONFIG], "suite: give one of path, tfds and embedded; given are none; for example "
         "--config.suite.path=problems.jsonl or --config.suite.embedded=100"),
        ("evaluate", [CONFIG, "--config.suite.path=no.jsonl,neither", "--config.model.path=x"],
         "no.jsonl: no such file"),
        ("evaluate", [CONFIG, "--results=x", "--out=y"], "--config and --results are both given"),
        ("synthesize", [SYNTHESIS], "questions: give one of path, embedded and function; given are none"),
        ("synthesize", [SYNTHESIS, "--config.questions.embedded=1"], "endpoint.url is ''; it must begin with http"),
        ("synthesize", [SYNTHESIS, "--config.questions.embedded=1", "--config.endpoint.key_from=NO_SUCH_KEY"],
         "endpoint.key_from is 'NO_SUCH_KEY', and there is no environment variable of that name"),
        ("synthesize", [SYNTHESIS, "--config.questions.embedded=1", "--config.teacher=oracle"],
         "config.teacher is 'oracle'; it must be one of endpoint, local, scripted"),
    ],
)  # fmt: skip
def test_bad_command_lines_get_one_line_and_exit_code_2(script, arguments, message):
    code, out, error = launch(script, *arguments)
    assert (code, out) == (2, "")
    assert error.startswith("error: ") and error.count("\n") == 1 and message in error


def test_the_names_that_flags_know_are_those_of_the_library():
    assert {*main.METHODS, "memory"} == set(METHODS) and main.POLICIES == POLICIES


@pytest.mark.parametrize(
    "script", ["convert", "curves", "demo", "evaluate", "generate", "synthesize", "train", "train_tokenizer"]
)
def test_help_shows_commands_one_a_line(script):
    code, out, error = launch(script, "--help")
    assert (code, error) == (0, "") and out.count("python launch/") >= 1
    for line in out.splitlines():
        assert line.count("python launch/") <= 1 and len(line) <= 140
        if "python launch/" in line:
            assert line.startswith("    python launch/") and "  --" not in line.strip(), "one command, on one line"


def test_evaluate_and_generate_from_the_command_line(folder, tmp_path):
    out = tmp_path / "out"
    code, printed, error = launch(
        "evaluate", CONFIG, f"--config.model.path={folder}", "--config.suite.embedded=2", "--config.decode.rows=2",
        "--config.decode.capacity=256", "--config.decode.max_new=20", "--config.contenders.lightthinker.max_thought=9",
        f"--config.out={out}", "--config.compile_cache=",
    )  # fmt: skip
    assert code == 0, error
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert (out / "table.txt").read_text() in printed
    again = launch("evaluate", f"--results={out / 'results.json'}", f"--out={tmp_path / 'again'}")
    assert again[0] == 0 and (tmp_path / "again" / "report.html").read_bytes() == (out / "report.html").read_bytes()
    code, printed, error = launch(
        "generate", f"--model={folder}", "--prompt=Sum 1)+006", "--max_new=20", "--max_thought=9", "--compile_cache=",
        f"--out={tmp_path / 'a.jsonl'}",
    )  # fmt: skip
    assert code == 0, error
    assert "gists for" in printed and json.loads((tmp_path / "a.jsonl").read_text())["generated"] > 0


def budget(*more, **environment):
    command = [sys.executable, str(ROOT / "launch" / "evaluate.py"), f"--config={ROOT}/configs/eval_budget.py",
               f"--config.model.path={ROOT}/lt_jax/assets/base", "--config.suite.embedded=4", *more]  # fmt: skip
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_policies_run_beside_the_baseline(tmp_path):
    out = budget("--kv=rkv,streaming", "--budget=64", "--buffer=32", "--config.decode.max_new=100",
                 "--config.contenders.vanilla.prefix=", f"--config.out={tmp_path}")  # fmt: skip
    assert not out.returncode, out.stderr[-2000:]
    lines = [line.split() for line in out.stdout.splitlines()]
    peaks = {line[0]: int(line[3]) for line in lines if line and line[0] in ("vanilla", "rkv", "streaming")
             and len(line) > 6 and line[2].startswith("(")}  # fmt: skip
    assert peaks["rkv"] == peaks["streaming"] == 96 < peaks["vanilla"]
    assert "cache of one row, MB, most used (allocated): vanilla" in out.stdout
    assert "loading and compiling before that time, s: vanilla" in out.stdout
    saved = json.loads((tmp_path / "results.json").read_text())
    assert [m["name"] for m in saved["methods"]] == ["vanilla", "rkv", "streaming"]
    assert saved["methods"][1]["cache_bytes"] < 0.6 * saved["methods"][0]["cache_bytes"]


@pytest.mark.parametrize("flags, line", [
    (["--budget=64"], "--budget needs --kv=POLICY"),
    (["--kv=rkv", "--budget=8"], "budget 8 leaves no room beside the window"),
    (["--kv=rkv", "--buffer=0"], "buffer is 0"),
    (["--kv=vanilla"], "that is the baseline"),
    (["--config.baseline=rk"], "config.baseline is 'rk'"),
])  # fmt: skip
def test_a_bad_budget_is_one_line(flags, line):
    out = budget(*flags)
    assert out.returncode == 2 and line in out.stderr and out.stderr.startswith("error: "), out.stderr[-2000:]


def test_a_bad_budget_is_one_line_the_first_time_too(tmp_path):
    """When every package is compiled to bytecode, some warn of their syntax."""
    out = budget("--kv=lru", PYTHONPYCACHEPREFIX=str(tmp_path))
    assert out.returncode == 2 and out.stderr.startswith("error: kv is 'lru'"), out.stderr[-2000:]
    assert out.stderr.count("\n") == 1
