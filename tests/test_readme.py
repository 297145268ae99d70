"""What the documents tell a reader to type works as printed: every command, and the Python.

A command that is written into one of them and that no rule here covers fails its test.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.tiny_folder import make

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
DOCUMENTS = ("README.md", "docs/performance.md", "CONTRIBUTING.md")
FENCE = re.compile(r"^```(.*)\n((?:.*\n)*?)^```$", re.MULTILINE)
INSTALLED = {name: f"launch/{target.rpartition(':')[2]}.py" for name, target in PROJECT["project"]["scripts"].items()}
TYPED = re.compile(rf"(\S*/)?(python3?|pip|make|{'|'.join(INSTALLED)}) ")

# What is added to a printed command so that it is over in seconds; no key that it gives itself.
SMALLER = {
    "launch/train.py": (
        "--config.train.steps=2", "--config.batches.length=64", "--config.batches.batch=2", "--config.batches.bins=4",
        "--config.batches.threads=1", "--config.data.held_out=2", "--config.model.dtype=float32",
        "--config.log.tensorboard=False",
    ),
    "launch/train.py rl": (
        "--config.train.steps=1", "--config.train.accumulate=1", "--config.updates=1", "--config.rollout.prompts=1",
        "--config.rollout.group=2", "--config.rollout.max_new=8", "--config.model.dtype=float32",
        "--config.train.params_dtype=float32", "--config.data.held_out=0", "--config.data.chat=plain",
        "--config.train.eval_every=0", "--config.log.tensorboard=False", "--config.reward.workers=1",
    ),
    "launch/curves.py": (),
    "launch/generate.py": (),
    "launch/evaluate.py": (),
    "launch/convert.py": (),
}  # fmt: skip


def commands(text: str) -> list[str]:
    """The command lines of a document: those of its bash blocks, and others in code that begin with such a program."""
    found = [line for language, block in FENCE.findall(text) if language == "bash"
             for line in block.replace("\\\n", " ").splitlines()]  # fmt: skip
    rest = FENCE.sub("", text).replace("\\\n", " ")
    code = re.findall(r"^ {4}(.*)$", rest, re.MULTILINE) + re.findall(r"`([^`]+)`", rest)
    found += [part for part in code if TYPED.match(part)]
    return [" ".join(line.split()) for line in found if line.split("#")[0].strip()]


WRITTEN = [(name, line) for name in DOCUMENTS for line in dict.fromkeys(commands((ROOT / name).read_text()))]


def program(argv: list[str]) -> str:
    """What a command line starts: make, pip, pytest, or a script (an installed command stands for its script); training
    by reinforcement learning is told apart."""
    name = Path(argv[0]).name
    if name.startswith("python"):
        learns = argv[1] == "launch/train.py" and any("configs/sparse_rl" in argument for argument in argv)
        return argv[2] if argv[1] == "-m" else argv[1] + " rl" * learns
    return INSTALLED.get(name, name)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder that looks like the clone to a reader who has put there what the documents name."""
    place = tmp_path_factory.mktemp("clone")
    for name in ("launch", "configs", "benchmarks", "lt_jax"):
        (place / name).symlink_to(ROOT / name)
    make(place / "DIR")
    sizes = json.loads((place / "DIR/config.json").read_text())  # a random model does not end by itself
    (place / "DIR/config.json").write_text(json.dumps(sizes | {"max_position_embeddings": 160}))
    lines = lambda records: "".join(json.dumps(record) + "\n" for record in records)
    response = "1) {0}+{0}\n\n2) carry 0\n\n3) so {1}"
    traces = [{"question": f"Sum {i}+{i}", "response": response.format(i, 2 * i)} for i in range(12)]
    (place / "traces.jsonl").write_text(lines(traces))
    (place / "problems.jsonl").write_text(lines({"question": f"{i} + 1?", "answer": str(i + 1)} for i in range(2)))
    return place


@pytest.fixture(scope="module")
def worker(place):
    """Runs an argv in that folder; see `command_worker`."""
    command = [sys.executable, str(ROOT / "tests" / "command_worker.py")]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "COLUMNS": "120"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=place,
                          env=environment) as process:  # fmt: skip

        def run(argv, given=""):
            process.stdin.write(json.dumps({"argv": argv, "given": given}) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run
        process.stdin.close()


@pytest.fixture(scope="module")
def ran(worker):
    """What the scripts in `launch/` did, by line; in the order of the documents, for some need what others left."""
    done = {}
    for _, line in WRITTEN:
        argv = shlex.split(line, comments=True)
        if program(argv) in SMALLER:
            smaller = SMALLER[program(argv)]
            given = {argument.partition("=")[0] for argument in argv}
            assert not given & {each.partition("=")[0] for each in smaller}
            argv = argv[1:] if Path(argv[0]).name.startswith("python") else argv
            done[line] = worker([*argv, *smaller], "Hello\n/quit\n")
    return done


@pytest.mark.slow
@pytest.mark.parametrize("name, line", WRITTEN, ids=[f"{name}: {line}" for name, line in WRITTEN])
def test_a_printed_command_works(name, line, request):
    argv = shlex.split(line, comments=True)
    what = program(argv)
    if what in SMALLER:
        done = request.getfixturevalue("ran")[line]
        assert done["code"] == 0, done["error"][-2000:]
        assert done["out"].strip()
    elif what.startswith(("benchmarks/", "launch/")):
        wanted = [argument.partition("=")[0] for argument in argv[2:]]
        done = request.getfixturevalue("worker")([*argv[1:], "--help"])
        assert done["code"] == 0, done["error"][-2000:]
        assert set(wanted) <= set(re.findall(r"--[\w-]+", done["out"]))
    elif what == "make":
        made = make_without_doing(argv[1:])
        for script in re.findall(r"python (\S+\.py)", made):
            assert (ROOT / script).is_file(), script
    elif what == "pip":
        target, extra = re.fullmatch(r"(\.)(?:\[(\w+)\])?", argv[-1]).groups()
        assert argv[1:-1] == ["install", "-e"] and target == "."
        assert extra is None or extra in PROJECT["project"]["optional-dependencies"]
    elif what == "pytest":
        markers = [each.partition(":")[0] for each in PROJECT["tool"]["pytest"]["ini_options"]["markers"]]
        assert set(argv[argv.index("pytest") + 2].split()) <= {"not", "and", "or", *markers}
    else:
        pytest.fail(f"{name} prints {line!r}, which nothing here runs; add it to this test")


def make_without_doing(arguments: list[str]) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    done = subprocess.run(["make", "-n", *arguments], cwd=ROOT, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_what_the_documents_print_is_found():
    """So that the tests above are about something, and so that the quick ones notice a command of a new kind."""
    started = {name: {program(shlex.split(line, comments=True)) for where, line in WRITTEN if where == name}
               for name in DOCUMENTS}  # fmt: skip
    assert started["README.md"] == {"pip", "make", *SMALLER}
    benchmarks = {each for each in started["docs/performance.md"] if each.startswith("benchmarks/")}
    assert len(benchmarks) > 5 and set().union(*started.values()) <= {"pip", "make", "pytest", *SMALLER, *benchmarks}
    assert {"make demo", "make test"} <= {line.partition("#")[0].strip() for _, line in WRITTEN}
    text = "```bash\nmake a \\\n    b  # c\n# d\nnpm x\n```\nand `pip install x`, `pip`\n\n    lt-train --a\n    no\n"
    assert commands(text) == ["make a b # c", "npm x", "lt-train --a", "pip install x"]
    for name in DOCUMENTS:
        assert {language for language, _ in FENCE.findall((ROOT / name).read_text())} <= {"bash", "python"}


def test_the_python_of_the_readme(place, monkeypatch, capsys):
    """The five lines first; then what else there is, in the same session."""
    blocks = [block for language, block in FENCE.findall((ROOT / "README.md").read_text()) if language == "python"]
    assert len(blocks[0].splitlines()) == 5 and '"DIR"' in blocks[0]
    monkeypatch.chdir(place)
    session = {}
    exec(compile(blocks[0], "README.md", "exec"), session)
    assert len(capsys.readouterr().out.splitlines()) >= 2
    for block in blocks[1:]:
        exec(compile(block, "README.md", "exec"), session)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_what_a_document_points_to_is_there(name):
    for target in re.findall(r"\]\((?!https?:)([^)#]+)\)", (ROOT / name).read_text()):
        assert (ROOT / name).parent.joinpath(target).exists(), target


def test_every_result_has_its_command_in_the_tables():
    text = (ROOT / "docs" / "performance.md").read_text()
    for path in sorted((ROOT / "results").iterdir()):
        assert f"results/{path.name}" in text, path.name
        if path.suffix == ".json":
            command = " ".join(json.loads(path.read_text())["command"].split())
            assert command in commands(text), f"{path.name} was made by {command!r}"
