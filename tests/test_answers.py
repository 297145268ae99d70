"""Finding and judging answers."""

import threading
import time

import pytest

from lt_jax.data import answers, latex
from lt_jax.data.latex import LatexJudge
from lt_jax.data.problem import Problem
from lt_jax.errors import UserError


@pytest.mark.parametrize(
    "text, found",
    [
        (r"so \boxed{12}.", "12"),
        (r"\boxed{a{b{c}}}", "a{b{c}}"),  # nested deeper than the reference's pattern reads
        (r"\boxed{1} no, \boxed{\frac{1}{\sqrt{2}}}", r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),
        (r"\boxed {7}", "7"),
        (r"\boxed{3} and then \boxed{4", "3"),  # cut off
        ("work\n#### 1,234", "1,234"),
        ("**Answer: 8**", "8"),
        ("the answer may be 8", None),
        ("", None),
    ],
)
def test_extract(text, found):
    assert answers.extract(text) == found


def test_extract_deep_nesting_is_linear():
    deep = "{" * 20_000 + "1" + "}" * 20_000
    assert answers.extract(rf"\boxed{deep}") == deep[1:-1]


@pytest.mark.parametrize(
    "given, answer, equal",
    [
        ("12", "12", True),
        ("12.0", "12", True),
        ("1,234", "1234", True),
        ("$-0.50$", "-1/2", True),
        ("0.3333", "1/3", False),
        ("+7", "7", True),
        ("007", "7", True),
        ("9007199254740993", "9007199254740992", False),  # equal as floats
        (r"\text{Yes}", "yes", True),
        ("no", "yes", False),
        ("New  York", "new york", True),
        ("", "", False),
        ("1/0", "1/0 ", True),
        ("5.", "5", True),
        (r"\$1{,}000", "1000", True),
    ],
)
def test_same_without_latex(given, answer, equal, monkeypatch):
    monkeypatch.setattr(answers, "_latex", None)  # reaching it would raise
    assert answers.same(given, answer) is equal


@pytest.mark.parametrize(
    "given, answer, equal",
    [
        (r"\frac{1}{2}", "0.5", True),
        (r"\frac12", "1/2", True),
        ("x = 5", "5", True),
        (r"2\sqrt{2}", r"\sqrt{8}", True),
        ("x^2+2x+1", "(x+1)^2", True),
        (r"50\%", "0.5", True),
        (r"5\text{ apples}", "5", True),
        ("3.14", r"\pi", False),
        (r"\frac{1}{3}", "0.5", False),
        ("x+1", "x+2", False),
        ("1,23", "123", False),
    ],
)
def test_same_latex(given, answer, equal):
    assert answers.same(given, answer) is equal


def test_model_text_is_never_run(tmp_path):
    target = tmp_path / "made"
    opened = f"open('{target}','w')"
    for text in (opened, f"[{opened}]+1", f"__import__('pathlib').Path('{target}').touch()"):
        assert not answers.same(text, "5")
        assert not answers.same(rf"\text{{{text}}}+1", "5")
    assert not target.exists()


def test_latex_child_is_killed_when_it_hangs_and_serves_threads():
    judge = LatexJudge(seconds=0.5)
    assert judge.same("x+x", "2x")
    child = judge._child.pid
    started = time.perf_counter()
    assert not judge.same("9^{9^{9^{9}}}", "1")
    assert time.perf_counter() - started < 5
    results = []
    workers = [threading.Thread(target=lambda: results.append(judge.same(r"\frac{2}{4}", "0.5"))) for _ in range(4)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert judge._child.pid != child
    judge.close()
    assert results == [True] * 4


@pytest.mark.parametrize(
    "program, said",
    [
        ("import no_such_module", r"did not start \(ModuleNotFoundError: No module named 'no_such_module'\)"),
        ("print('[]')", "it answered something else"),
        ("import time; time.sleep(60)", "no answer in 0 s"),
        (None, "No such file"),
    ],
)
def test_a_judge_that_cannot_start_is_an_error_and_not_a_wrong_answer(program, said, tmp_path, monkeypatch):
    children, popen = [], latex.subprocess.Popen
    monkeypatch.setattr(latex.subprocess, "Popen", lambda *a, **k: children.append(popen(*a, **k)) or children[-1])
    if program is None:
        monkeypatch.setattr(latex.sys, "executable", str(tmp_path / "no_python"))
    else:
        (tmp_path / "child.py").write_text(program)
        monkeypatch.setattr(latex, "CHILD", tmp_path / "child.py")
    monkeypatch.setattr(latex, "STARTUP_SECONDS", 0.3 if "no answer" in said else 20.0)
    judge = LatexJudge()
    with pytest.raises(UserError, match=said) as caught:
        judge.same(r"\frac{1}{2}", r"\frac{2}{4}")
    assert "\n" not in str(caught.value) and all(child.poll() is not None for child in children)


CITIES = ("Rome", "Paris", "12", "A")


@pytest.mark.parametrize(
    "text, index",
    [
        ("B", 1),
        ("(b)", 1),
        ("B.", 1),
        ("B. Paris", 1),
        (r"\text{B}", 1),
        (r"\textbf{(B) Paris}", 1),
        ("paris", 1),
        ("12.0", 2),
        ("B. Rome", None),  # the letter and the text disagree
        ("A", 3),  # an option's text wins over a letter
        ("E", None),
        ("Berlin", None),
        ("", None),
    ],
)
def test_choice(text, index):
    assert answers.choice(text, CITIES) == index


def test_judge():
    problem = Problem("2 + 2?", "4")
    assert answers.judge(problem, r"\boxed{4}") == ("4", True)
    assert answers.judge(problem, r"\boxed{5}") == ("5", False)
    assert answers.judge(problem, "four") == (None, False)
    capital = Problem("capital of France?", "B", choices=("Rome", "Paris"))
    assert answers.judge(capital, r"\boxed{Paris}") == ("Paris", True)
    assert answers.judge(capital, r"\boxed{A}") == ("A", False)
