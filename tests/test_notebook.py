"""The notebook: what its first cell installs, and that the cells after it run."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
CELLS = json.loads((ROOT / "notebooks" / "lightthinker.ipynb").read_text())["cells"]
CODE = ["".join(cell["source"]) for cell in CELLS if cell["cell_type"] == "code"]
NEEDS = ["jax>=0.10,<0.11; python_version < '3'", "jax>=0.11; python_version >= '3'", "flax>=0.12.12", "tokenizers",
         "ml_dtypes>=0.5"]  # fmt: skip
ALL = {"jax": "0.11.2", "jaxlib": "0.11.1", "jax-cuda13-plugin": "0.11.2", "jaxtyping": "0.3", "flax": "0.12.12",
       "tokenizers": "0.22", "ml-dtypes": "0.5.1", "lt_jax": "0.1.0"}  # fmt: skip


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Runs the first cell where these distributions are installed; what it started, and what it constrained pip to."""
    ran, constraints = [], []

    def start(command, check):
        assert check
        ran.append(command[4:] if command[1:4] == ["-m", "pip", "install"] else command)
        if "--constraint" in command:
            constraints.append(Path(command[command.index("--constraint") + 1]).read_text().split())

    def install(here, folder="clone/notebooks"):
        dists = [types.SimpleNamespace(name=name, version=version) for name, version in here.items()]
        monkeypatch.setattr(importlib.metadata, "distributions", lambda: dists)
        monkeypatch.chdir(tmp_path / folder)
        exec(compile(CODE[0], "the first cell", "exec"), {})
        return ran, constraints

    for name in ("clone", "elsewhere/lt_jax"):  # the second as `git clone` would make it
        (tmp_path / name / "lt_jax").mkdir(parents=True)
        (tmp_path / name / "pyproject.toml").write_text(f"[project]\ndependencies = {json.dumps(NEEDS)}\n")
    (tmp_path / "clone" / "notebooks").mkdir()
    (tmp_path / "clone" / "lt_jax" / "lifetimes.py").touch()
    monkeypatch.setattr(subprocess, "run", start)
    monkeypatch.setattr(sys, "path", list(sys.path))
    return install


def test_where_nothing_is_missing_nothing_is_installed(install, tmp_path):
    assert install(ALL) == ([], [])
    assert Path.cwd() == tmp_path / "clone" and sys.path[0] == str(tmp_path / "clone")


def test_only_what_is_missing_is_installed_and_jax_stays(install, capsys):
    """A flax that is too old for the project, and a jax that fits."""
    ran, constraints = install(ALL | {"flax": "0.10", "tokenizers": "0.1"} | {"ml-dtypes": "0.1"})
    assert ran == [["--quiet", "--constraint", ran[0][2], "flax>=0.12.12", "ml_dtypes>=0.5"]]
    assert constraints == [["jax==0.11.2", "jaxlib==0.11.1", "jax-cuda13-plugin==0.11.2"]]
    assert capsys.readouterr().out == ""


def test_a_jax_of_another_version_stays_too_and_is_told_of(install, capsys):
    here = {name: version for name, version in ALL.items() if name not in ("tokenizers", "lt_jax")}
    ran, constraints = install(here | {"jax": "0.7.2", "flax": "0.11"})
    assert ran[0][3:] == ["tokenizers"] and "jax==0.7.2" in constraints[0]
    assert ran[1:] == [["--quiet", "--no-deps", "--editable", "."]]
    assert capsys.readouterr().out == "jax 0.7.2 is kept, but lt_jax is tested with jax>=0.11\n"


def test_without_jax_it_is_installed_like_the_rest(install):
    ran, constraints = install({"lt_jax": "0.1.0"})
    assert ran[0][3:] == ["jax>=0.11", "flax>=0.12.12", "tokenizers", "ml_dtypes>=0.5"] and constraints == [[]]


def test_where_there_is_no_clone_one_is_made(install, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr("builtins.input", lambda question: asked.append(question) or "https://example.org/lt_jax")
    ran, _ = install(ALL, "elsewhere")
    assert len(asked) == 1 and Path.cwd() == tmp_path / "elsewhere" / "lt_jax"
    assert ran == [["git", "clone", "--quiet", "--depth=1", "https://example.org/lt_jax", "lt_jax"]]


def test_the_badge_opens_colab():
    """On the notebook itself where the project names its repository, else where Colab asks for one."""
    address = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"].get("urls", {}).get("Repository", "")
    place = address.removeprefix("https://github.com/").rstrip("/")
    place += "/blob/main/notebooks/lightthinker.ipynb" if place else ""
    assert f"(https://colab.research.google.com/github/{place})" in "".join(CELLS[0]["source"])


@pytest.mark.slow
def test_the_cells_run(tmp_path, monkeypatch, capsys):
    """All but the first, with less training and a shorter answer."""
    monkeypatch.chdir(tmp_path)
    session = {"SVG": lambda text: text}
    smaller = {"from IPython.display import SVG": "", "steps=300": "steps=2", "length=2048": "length=1024",
               "max_new=600": "max_new=30"}  # fmt: skip
    for cell in CODE[1:]:
        for old in [old for old in smaller if old in cell]:
            cell = cell.replace(old, smaller.pop(old))
        exec(compile(cell, "a cell", "exec"), session)
    assert not smaller and (tmp_path / "runs/notebook/final/lt_jax.json").is_file()
    assert session["done"][0].text and session["done"][0].text.strip() in capsys.readouterr().out
