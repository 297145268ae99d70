"""What `pip install` brings: a wheel that is built, installed apart and used from an empty folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from lt_jax.layout.scheme import Scheme
from tests.tiny_folder import make

ROOT = Path(__file__).parents[1]
PLACES = {"lt_jax": "lt_jax", "launch": "lt_jax/commands/launch", "configs": "lt_jax/commands/configs"}
COMMANDS = (
    "lt-train",
    "lt-generate",
    "lt-evaluate",
    "lt-convert",
    "lt-curves",
    "lt-rl-demo",
    "lt-synthesize",
    "lt-agent",
    "lt-trajectory",
)


def pip(*arguments):
    """Runs pip offline, with the setuptools that is there (extra `dev`)."""
    command = [sys.executable, "-m", "pip", *arguments, "--no-index", "--no-deps", "--quiet"]
    done = subprocess.run([*command, "--disable-pip-version-check"], capture_output=True, text=True)
    assert not done.returncode, done.stderr[-3000:]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Of a copy: what an earlier build left in build/ would come along."""
    copy = tmp_path_factory.mktemp("clone")
    for name in PLACES:
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    pip("wheel", "--no-build-isolation", "--wheel-dir", str(copy / "dist"), str(copy))
    (found,) = (copy / "dist").iterdir()
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    target = tmp_path_factory.mktemp("site")
    pip("install", "--no-compile", "--target", str(target), str(wheel))
    return target


@pytest.fixture
def run(installed, tmp_path):
    """Runs one of the installed commands, or a text of Python, in an empty folder: (exit code, stdout, stderr)."""
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "PYTHONPATH": str(installed)}

    def run(command, *arguments):
        what = [installed / "bin" / command, *arguments] if command in COMMANDS else [sys.executable, "-c", command]
        done = subprocess.run(what, cwd=empty, env=environment, capture_output=True, text=True)
        assert not list(empty.iterdir())
        return done.returncode, done.stdout, done.stderr

    code = "import lt_jax, lt_jax.commands.launch.main as main; print(lt_jax.__file__); print(main.CONFIGS)"
    assert run(code) == (0, f"{installed}/lt_jax/__init__.py\n{installed}/lt_jax/commands/configs\n", "")
    return run


def test_every_file_of_the_library_is_in_the_wheel_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    ours = {
        f"{place}/{path.relative_to(ROOT / folder)}"
        for folder, place in PLACES.items()
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert {name for name in names if ".dist-info/" not in name} == ours
    for name in ("assets/base/model.safetensors", "assets/base/tokenizer.json", "native/library.cc", "native/pool.h",
                 "evaluation/report.css", "evaluation/report.js", "commands/configs/demo.py"):  # fmt: skip
        assert f"lt_jax/{name}" in ours


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_a_command(run, command):
    code, out, error = run(command, "--help")
    assert (code, error) == (0, "")
    assert f"    {command} --" in out and "launch/" not in out and "configs/" not in out, "as it is called here"


def test_a_config_is_found_by_its_name(run):
    code, out, error = run("lt-train", "--config=lightthinker_qwen")
    assert (code, out) == (2, "") and "data.path is empty" in error and error.count("\n") == 1
    code, out, error = run("lt-evaluate", "--config=eval_meth")
    assert code == 2 and "there is no config of that name (there are agent, base, defaults, demo, eval_budget" in error
    code, out, error = run("lt-evaluate")
    assert (code, error) == (2, "error: --config=FILE is needed, for example --config=eval_math\n")


@pytest.mark.slow
def test_the_commands_work_on_a_folder(run, tmp_path):
    folder = make(tmp_path / "light", Scheme(n_gist=2))
    code, out, error = run("lt-generate", f"--model={folder}", "--prompt=Sum 1)+006", "--max_new=12", "--max_thought=9")
    assert (code, error) == (0, "") and "[2 gists for " in out and " compressed, peak " in out
    code, out, error = run("lt-convert", f"--from={folder}", f"--to={tmp_path / 'copy'}", "--dtype=bfloat16")
    assert (code, out, error) == (0, f"written to {tmp_path / 'copy'}\n", "")
    assert (tmp_path / "copy" / "model.safetensors").stat().st_size < (folder / "model.safetensors").stat().st_size
