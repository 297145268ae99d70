"""Tools of agents: what they find, that nothing leads them outside the corpus, and that no failure is an exception."""

import builtins
import json
import os
import platform
import sys

import pytest

from lt_jax.errors import UserError
from lt_jax.memory.corpus import Corpus, Page, read_corpus, words
from lt_jax.memory.tools import ToolsConfig, described, search, tools, visit

LONG = " ".join(f"word{place}" for place in range(300))
PAGES = [
    Page("1", "Red Fox", "The fox lives at the lake and eats rice."),
    Page("2", "Blue Owl", "The owl lives on the hill. Rice, rice and soup."),
    Page("3", "Blue Owl", "Another owl."),
    Page("doc-4", "", LONG),
    Page("5", "Tokyo, 2", "東京は日本の首都です"),
]
KEPT_IN = sys.platform == "linux" and platform.machine() in ("x86_64", "aarch64")


@pytest.fixture(scope="module")
def corpus():
    return Corpus(PAGES)


def test_search_ranks_as_bm25(corpus):
    assert [page.id for page in corpus.search("RICE soup", 5)] == ["2", "1"]
    assert [page.id for page in corpus.search("owl", 1)] == ["3"], "the shorter page"
    assert corpus.search("nowhere", 5) == [] == corpus.search("", 5)
    assert [page.id for page in corpus.search("首都", 5)] == ["5"]
    assert words("Ärger, 日本 x1") == ["ärger", "日", "本", "x1"]
    found = search(corpus, ToolsConfig(snippet=12))
    assert found("rice") == "1. 2 (Blue Owl): The owl live ...\n2. Red Fox: The fox live ..."
    assert "no page has any of these words" == found("nowhere") and "search needs words" in found(" ")


def test_visit_shows_pages_in_pieces(corpus):
    show = visit(corpus, ToolsConfig(piece=500))
    assert show("red  FOX") == PAGES[0].text and show("1") == PAGES[0].text
    pieces = [show(f"doc-4, {number}").partition("\n") for number in range(1, 99)]
    count = next(place for place, piece in enumerate(pieces) if not piece[1])
    assert [piece[0] for piece in pieces[:count]] == [f"page {n} of {count}" for n in range(1, count + 1)]
    assert "".join(piece[2] for piece in pieces[:count]) == LONG and all(len(piece[2]) <= 500 for piece in pieces)
    assert all(piece[2].endswith(" ") for piece in pieces[: count - 1]), "no word is cut"
    assert show("doc-4") == show("doc-4, page 1") == show("doc-4 # 1")
    assert show("doc-4, 99") == f"doc-4 has no page 99; its pages are 1 to {count}"
    assert show("Tokyo, 2") == PAGES[4].text, "a title goes before the number of a piece"
    assert show("blue owl") == "2 pages have this title; visit one by its id: 2, 3"


def test_nothing_leads_outside_the_corpus(corpus, monkeypatch, tmp_path):
    """What a model writes is never opened: with no way to open a file the tools say the same."""
    secret = tmp_path / "secret.txt"
    secret.write_text("rice")
    tried = [str(secret), f"file://{secret}", "../../../etc/passwd", "/etc/passwd, 1", "http://localhost/", "1\0", "~",
             "", f"{secret}\n1", "*", "x" * 10**6, "\udc80"]  # fmt: skip
    both = visit(corpus), search(corpus)

    def refuse(*arguments, **more):
        raise AssertionError(f"opened {arguments}")

    with monkeypatch.context() as patch:
        for holder, name in ((builtins, "open"), (os, "open"), (os, "stat"), (os, "listdir")):
            patch.setattr(holder, name, refuse)
        said = [tool(text) for tool in both for text in tried]
    assert all("there is no page" in each for each in said[: len(tried)])
    assert "rice" not in "".join(said)


def test_a_corpus_is_read_from_files(tmp_path):
    path = tmp_path / "pages.jsonl"
    path.write_text("".join(json.dumps(vars(page)) + "\n" for page in PAGES))
    assert read_corpus(path).pages == PAGES
    for line, said in (('{"id": "1", "text": "x"}', "the id '1' comes twice"), ('{"id": "9"}', "a text in 'text'"),
                       ('{"id": true, "text": "x"}', "a text in 'id'"),
                       ('{"id": "9", "title": 3, "text": "x"}', "pages.jsonl:2: a page .* needs a text in 'title'"),
                       ("{", "pages.jsonl:2: broken JSON")):  # fmt: skip
        path.write_text(f'{{"id": 1, "text": "x"}}\n{line}\n')
        with pytest.raises(UserError, match=said):
            read_corpus(path)
    with pytest.raises(UserError, match="no page with a word"):
        Corpus([Page("1", "", "...")])


def test_tools_of_the_user_run_in_processes(corpus):
    functions = [f"tests.memory_tools:{name}" for name in ("shout", "fails", "hangs", "long")]
    config = ToolsConfig(functions=tuple(functions), seconds=1.0, most=40, processes=1)
    with tools(config, corpus) as found:
        assert list(found) == ["search", "visit", "shout", "fails", "hangs", "long"]
        assert described(found).splitlines()[2:] == ["shout: says it louder (shout: words)", "fails", "hangs", "long"]
        assert found["fails"]("way") == "ValueError: no way"
        assert found["hangs"]("") == "no answer in 1 s; it was ended"
        assert found["long"]("") == "x" * 40 + " ... (960 characters were cut)"
        assert found["shout"]("hear me") == "HEAR ME" == found["shout"]("hear me"), "what it prints is no answer"
        assert found["hangs"]("") == "no answer in 1 s; it was ended", "and the next process too"
    for name, said in (("none", "has no function 'none'"), ("nothing", "must take one text")):
        with pytest.raises(UserError, match=said), tools(ToolsConfig(functions=(f"tests.memory_tools:{name}",))):
            pass
    with pytest.raises(UserError, match="module 'tests.nowhere' cannot be imported"):
        with tools(ToolsConfig(functions=("tests.nowhere:f",))):
            pass


@pytest.mark.skipif(not KEPT_IN, reason="needs Linux on x86_64 or aarch64; elsewhere the tool is refused")
def test_programs_are_kept_in(tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("plum")
    config = ToolsConfig(python=True, seconds=2.0, memory=256, processes=1)
    with tools(config) as found:
        run = found["python"]
        assert run("import math\nprint(math.factorial(20))\nprint(1 + 1)") == "2432902008176640000\n2"
        assert run("x = 5") == "nothing was printed" and "NameError" in run("print(x)"), "a new process every time"
        assert run("print(1)\n1 / 0") == "1\nZeroDivisionError: division by zero (line 2)"
        assert run("def f(:").startswith("SyntaxError") and run("raise SystemExit(3)").startswith("SystemExit: 3")
        for program in (
            f"print(open({str(secret)!r}).read())", f"open({str(secret)!r}, 'w')",
            f"import os; os.stat({str(secret)!r})", f"import os; os.remove({str(secret)!r})",
            "import os; os.listdir('/')", "import os; os.fork()",
            "import os; os.kill(os.getppid(), 9)", f"import os; os.mkfifo({str(tmp_path / 'pipe')!r})",
            "import _io; _io.open_code('/etc/passwd')", "import os; os.execv('/bin/true', ['x'])",
        ):  # fmt: skip
            assert run(program).startswith("PermissionError"), program
        for program in ("import socket", "import subprocess", "import http.client"):
            assert "Error: " in run(program), program
        calls = f"libc.open({str(secret)!r}.encode(), 0), libc.socket(2, 1, 0)"
        native = f"import ctypes; libc = ctypes.CDLL(None); print({calls})"
        assert run(native) == "-1 -1", "not by way of the C library either"
        assert run("while True: pass") == "no answer in 2 s; it was ended"
        assert "MemoryError" in run("x = bytearray(10**9)")
        assert run("import os; os._exit(3)").startswith("the tool ended without an answer")
        assert run("print('x' * 10**5)").endswith("(96000 characters were cut)")
        assert run("print(2)") == "2"
    assert secret.read_text() == "plum" and [path.name for path in tmp_path.iterdir()] == ["secret.txt"]


def test_what_is_no_config():
    for settings, said in (({"results": 0}, "tools.results is 0"), ({"seconds": 0.0}, "tools.seconds is 0.0"),
                           ({"functions": ("f",)}, "module:function"), ({"functions": ("a:visit",)}, "'visit' already"),
                           ({"functions": ("a:f", "b:f")}, "there is a tool 'f' already")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            ToolsConfig(**settings)
    with tools(ToolsConfig()) as found:
        assert found == {}, "programs only where they are asked for"
