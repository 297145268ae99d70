"""Finding and judging answers."""

import subprocess
import sys
import threading
import time

import pytest

from lt_jax.data import answers, latex
from lt_jax.data.answers import right
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
        (r"\boxed{42}. (I was told to write it inside \boxed{}.)", "42"),
        (r"\boxed{42}, as in \boxed{...} or \boxed{\text{your answer}}", "42"),
        (r"\boxed{} and no more", None),
        (r"\boxed 7", "7"),
        (r"so $\boxed 12$.", "12"),
        (r"\boxed\frac12", r"\frac12"),
        (r"\boxed\frac{1}{2}.", r"\frac{1}{2}"),
        (r"put it in \boxed and be done", None),
        (r"\boxed{x = \boxed{5}}", "5"),
        ("The answer is 5.", "5"),
        ("So the final answer is $3.5$. I hope it is correct.", "$3.5$"),
        ("The answer is 3.5 because half of 7 is that", "3.5"),
        ("The answer to the question is:\n\n**5**", "5"),
        ("Answer:\n\\[\n5\n\\]\n", "5"),
        ("The answer is 4. No, the answer is 5.", "5"),
        ("The answer is not 5.", None),
        ("### Answer: 5", "5"),
        ("## Final Answer\n\n5 km\n", "5 km"),
        ("Answer: B. Paris", "B. Paris"),
        ("#### 12\n\n#### Remarks\nThat was easy.", "12"),  # a heading of the fourth level
        ("#### yes", "yes"),
        ("<answer>5</answer>", "5"),
        (r"<answer>\boxed{6}, surely</answer>", "6"),
        ("<answer>The answer is 5.</answer>", "5"),
        (r"\boxed{3}, or rather <answer>4</answer>", "4"),  # of strong ones the later
        (r"<answer>4</answer>, or rather \boxed{3}", "3"),
        (r"\boxed{3} Put it between <answer> and </answer>.", "3"),
        (r"\boxed{5}. The answer is in the box.", "5"),  # a box is stronger than a sentence
        (r"<think>\boxed{3}? No.</think>The answer is 5.", "5"),
        (r"<think>\boxed{3}</think>", "3"),
        ("10", "10"),
        ("\n10.\n", "10."),
        ("$x=5$", "$x=5$"),
        ("5 km", "5 km"),
        ("four", None),
        ("Step 1", None),
        ("10 friends went to the park", None),
        (r"\boxed{4", None),
    ],
)
def test_extract(text, found):
    assert answers.extract(text) == found


@pytest.mark.parametrize(
    "text, found",
    [
        (r"\boxed{3}, \boxed{5} and \boxed{7}", "3, 5, 7"),
        ("\\[\\boxed{3}\\]\n\\[\\boxed{5}\\]\n\\[\\boxed{7}\\]", "3, 5, 7"),
        (r"\boxed{2}" + " which was the first step." * 5 + r"\boxed{3}, \boxed{5}, \boxed{7}", "3, 5, 7"),
        (r"\boxed{3}, \boxed{5}, \boxed{5}, \boxed{7}", "3, 5, 7"),
        (r"\boxed{3}, \boxed{5}" + " and, as was to be found last of all, in the third place," * 3 + r"\boxed{7}", "7"),
        (r"\boxed{3}, no, \boxed{5}, wait, \boxed{7}", "7"),  # taken back
        (r"\boxed{5}, \boxed{7}", "7"),  # too few
    ],
)
def test_boxes_that_stand_together_are_one_answer_where_a_list_is_asked_for(text, found):
    assert answers.extract(text, parts=3) == found and answers.extract(text) == "7"
    assert answers.extract(text + r"; in short \boxed{4, 6, 8}", parts=3) == "4, 6, 8"


@pytest.mark.parametrize(
    "piece",
    [r"\boxed{", r"\boxed{}", r"\boxed{a}, ", r"\boxed\frac{", r"\boxed ", r"\boxed{\text{", "{", "}", "\\", "answer ",
     "answer is ", "answer to ", "answer:\n", "#### ", "####\n", "#### a b\n", "<answer>", "<answer></answer>", " *",
     " ", "\n", "1", "1,", "$", "</think>"],
)  # fmt: skip
def test_extract_is_linear(piece):
    def seconds(size):
        text = piece * (size // len(piece))
        started = time.process_time()
        answers.extract(text, parts=3)
        return time.process_time() - started

    seconds(1000)
    short, long = min(seconds(25_000) for _ in range(3)), seconds(200_000)
    assert long < 0.1 or long / short < 30  # 8 if linear, 64 if quadratic


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
        ("0.333333", "1/3", True),  # to six figures, as math-verify has it
        ("333333/1000000", "1/3", False),  # no decimal number
        ("0.999999999", "1", False),
        ("1000000.5", "1000000", False),
        ("1234567.89", "1234567.88", False),
        ("0.333333", "0.33333333", False),
        ("3/4", "0.75", True),
        (r"1.6\times10^{-19}", r"3.2\times10^{-19}", False),
        (r"1.6\times10^{-19}", "1.6e-19", True),
        (r"1.6 \cdot 10^{-19}", "1.6 x 10^-19", True),
        ("10^{-19}", "10^{-20}", False),
        ("1e3", "1000", True),
        ("1e3", "13", False),
        ("0.0000001", "0", False),
        (r"11,\! 111,\! 111,\! 100", "11111111100", True),
        (r"1\ 234", "1234", True),
        (r"1\,234", "1,234", True),
        ("1\u202f234", "1 234", True),
        ("1 1/2", "3/2", True),
        ("-1½", "-1.5", True),
        (r"1\frac12", "1 1/2", True),
        ("1 1/2", "11/2", False),
        ("4 10/3", "14/3", False),  # sum or product?
        ("½", "0.5", True),
        ("–2", "-2", True),
        ("3–5", "3-5", True),
        (r"\[5\]", "5", True),
        (r"\(5\)", "5", True),
        ("$$5$$", "5", True),
        ("**5**", "5", True),
        ("5**", "5", True),
        ("`5`", "5", True),
        ("5,", "5", True),
        ("84", "The answer is 84.", True),
        ("48", "The answer is 84.", False),
        ("84", "\n 84 \n", True),
        ("84 apples", "**Answer:** 84", True),
        ("Room  12", "room 12", True),
        ("٣", "٣.", True),
        ("36 dollars", "36", True),
        ("€36", "36", True),
        ("$36", "36 USD", True),
        ("€36", "$36", False),
        ("$2.5 million", "2500000", True),
        ("5 million", "5", False),
        ("5 km", "5 m", False),
        ("5 km", "5", True),
        ("5 kilometres", "5km", True),
        ("5 km", "5000 m", False),  # nothing is converted
        ("5 apples", "5 oranges", False),
        ("5 apple", "5 apples", True),
        ("60 mph", "60 miles per hour", True),
        (r"5\,\mathrm{cm}^2", "5 square centimeters", True),
        (r"5\text{ cm}^2", r"5\text{ cm}", False),
        ("16 square units", "16", True),
        ("90°", "90", True),
        (r"90^\circ", "90 degrees", True),
        ("20 °C", "20 °F", False),
        ("5m", "5 m", True),
        ("5%", "5", True),
        ("5%", "0.05", True),
        (r"12.5\%", "12.5 percent", True),
        ("5%", "500", False),
        ("5%", "0.5", False),
        ("4210_5", "4210_{6}", False),
        ("3,5,7", "7, 5, 3", True),
        ("3 and 5", "3,5", True),
        ("1,2,3", "1,2", False),
        ("1,1,2", "1,2", False),
        ("100, 200, 300", "100,200,300", True),
        ("3,500 and 4,500", "4500, 3500", True),
        ("3 cm, 4 cm", "3, 4", True),
        ("3 cm, 4 cm", "3 m, 4 m", False),
        ("2", r"2,\ldots", False),
        ("2,4", r"2,4,\ldots", False),
        ("2,4,...", r"2,4,\ldots", True),
        ("(1,2)", "1,2", True),  # as math-verify has it
        ("(1,2)", "2,1", False),
        ("(1,2)", "[1,2]", False),
        ("[1,2)", "1,2", False),
        ("[1,2]", "1,2", False),
        ("(1,2)", r"\{1,2\}", False),
        (r"\{1,2\}", "2, 1", True),
        (r"\pm 2", "2, -2", True),
        ("red and blue", "red, blue", True),
        ("blue, red", "red, blue", False),
        ("∞", r"\infty", True),
        ("infinity", "∞", True),
        ("x²", "x^{2}", True),
        ("√2", r"\sqrt{2}", True),
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
        ("1,2", "12", False),
        ("12 34", "1234", False),
        ("8 4", "84", False),
        ("3–5", "-2", False),  # a range
        ("five", "5.", False),
        ("5 June", "5", False),
        ("3.141593", "π", True),
        ("3.1415", "π", False),
        ("√2", r"\sqrt2", True),
        ("√2", "2", False),
        ("x²", "x^2", True),
        ("x²", "x_2", False),
        (r"2\sqrt3", "√(12)", True),
        ("2x", "2", False),
        ("2t", "2", False),  # math-verify takes it for a unit
        ("2m", "2", False),
        ("5!", "5", False),
        ("f'(x)", "f(x)", False),
        (r"-\infty", r"\infty", False),
        ("1/0", "1", False),
        (r"10^{-19}\sqrt2", r"10^{-20}\sqrt2", False),
        (r"x=1.6\times10^{-19}", r"x=3.2\times10^{-19}", False),
        (r"1.6\times10^{-19}x", r"3.2\times10^{-19}x", False),
        ("0.1x+0.2x", "0.3x", True),
        (r"\begin{pmatrix}0.333333\\2\end{pmatrix}", r"\begin{pmatrix}1/3\\2\end{pmatrix}", True),
        (r"\begin{pmatrix}10^{-19}\end{pmatrix}", r"\begin{pmatrix}10^{-20}\end{pmatrix}", False),
        (r"10\pi\text{ cm}", r"10\pi", True),
        (r"10\pi\text{ cm}", r"10\pi\text{ m}", False),
        (r"1\pm\sqrt2", r"1-\sqrt2, 1+\sqrt2", True),
        (r"1\pm\sqrt2", r"1+\sqrt2", False),
        (r"1+2+\ldots+n", "1+2+n", False),
        ("x=1, y=2", "x=2, y=1", False),
        ("x=1, x=2", "1, 2", True),
        ("y=5", "x=5", False),
        ("x < 5", r"x \le 5", False),
        ("(-∞, 3)", r"(-\infty,3)", True),
        ("(-∞, 3]", r"(-\infty,3)", False),
        ("not 5", "5", False),
        ("5 or 6", "5", False),
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
    child = judge._child.process.pid
    started = time.perf_counter()
    assert judge.same("9^{9^{9^{9}}}", "1") is None  # nobody knows
    assert time.perf_counter() - started < 5
    results = []
    workers = [threading.Thread(target=lambda: results.append(judge.same(r"\frac{2}{4}", "0.5"))) for _ in range(4)]
    [w.start() for w in workers], [w.join() for w in workers]
    assert judge._child.process.pid != child
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
    children, popen = [], subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: children.append(popen(*a, **k)) or children[-1])
    if program is None:
        monkeypatch.setattr(sys, "executable", str(tmp_path / "no_python"))
    else:
        (tmp_path / "child.py").write_text(program)
        monkeypatch.setattr(latex, "CHILD", tmp_path / "child.py")
    monkeypatch.setattr(latex, "STARTUP_SECONDS", 0.3 if "no answer" in said else 20.0)
    judge = LatexJudge()
    with pytest.raises(UserError, match=said) as caught:
        judge.same(r"\frac{1}{2}", r"\frac{2}{4}")
    assert "\n" not in str(caught.value) and all(child.poll() is not None for child in children)


def test_packages_that_only_the_parent_finds_are_found_by_the_judge(tmp_path, monkeypatch):
    """As with PYTHONPATH, which `python -I` ignores; a file of the working directory stands in for no package."""
    extra, here = tmp_path / "extra", tmp_path / "here"
    extra.mkdir(), here.mkdir()
    (extra / "only_there.py").write_text("")
    (here / "random.py").write_text("raise SystemExit('the working directory was read')")
    child = tmp_path / "child.py"
    program = latex.CHILD.read_text()
    assert "    compare = comparer()\n" in program
    child.write_text(program.replace("    compare = comparer()\n", "    import only_there\n    compare = comparer()\n"))
    monkeypatch.setattr(latex, "CHILD", child)
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", ["", str(here), str(extra), *sys.path])
    judge = LatexJudge()
    judge.check()
    assert judge.same("x+x", "2x")
    judge.close()


def test_a_judge_that_dies_is_replaced_and_one_that_cannot_be_gives_no_verdict(tmp_path, monkeypatch):
    judge, starts = LatexJudge(), []
    judge.check()
    judge._child.process.kill(), judge._child.process.wait()
    assert judge.same("x+x", "2x") is True  # another one
    judge.close()
    real = latex._start
    monkeypatch.setattr(latex, "CHILD", tmp_path / "gone.py")
    monkeypatch.setattr(latex, "_start", lambda: starts.append(1) or real())
    assert [judge.same("x+x", "2x") for _ in range(6)] == [None] * 6
    assert len(starts) == latex.STARTS  # it is not waited for again and again
    with pytest.raises(UserError, match="cannot be compared"):
        judge.check()


def test_without_a_verdict(monkeypatch):
    class Dead:
        def same(self, *_):
            return None

    monkeypatch.setattr(answers, "_latex", Dead())
    assert answers.judge(Problem("?", r"\sqrt2"), r"\boxed{\sqrt3}") == (r"\sqrt3", None)
    assert answers.judge(Problem("?", r"1, \sqrt2"), r"\boxed{1, \sqrt3}") == (r"1, \sqrt3", None)
    assert answers.judge(Problem("?", r"(1, \sqrt2)"), r"\boxed{(2, \sqrt3)}")[1] is False  # 1 is not 2, whatever else


@pytest.mark.parametrize(
    "piece", ["1", "1,", "9 ", "\\", "{", "(1,", r"\frac{", r"\text{", "%", "°", "km ", r"\pm", "√"]
)
def test_judging_ends_whatever_the_length(piece, monkeypatch):
    """Nothing is asked of the child about more than MAX_CHARS, and the parent's own work on less is bounded."""
    monkeypatch.setattr(answers, "_latex", None)  # reaching it would raise
    long = "5" + piece * 100_000
    started = time.process_time()
    assert answers.judge(Problem("?", "5"), rf"Answer: {long}")[1] is not True
    assert answers.same(long, "5") is False and answers.same("5", long) is False and answers.same(long, long) is True
    monkeypatch.setattr(answers, "_latex", type("Never", (), {"same": lambda *_: None})())
    answers.same("5" + piece * (1990 // len(piece)), "5, 6")
    assert time.process_time() - started < 5


CITIES = ("Rome", "Paris", "12", "A")


@pytest.mark.parametrize(
    "text, index",
    [
        ("B", 1),
        ("(b)", 1),
        ("B.", 1),
        ("B. Paris", 1),
        (r"\text{B}", 1),
        ("option B", 1),
        ("The answer is B.", 1),
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
    assert answers.judge(capital, "B") == ("B", True)  # a bare reply
    assert answers.judge(capital, "(a) Rome.") == ("(a) Rome.", False)
    assert answers.judge(capital, "I know it") == (None, False)


def test_judge_bare_replies_and_lists():
    assert answers.judge(Problem("2 + 8?", "10"), "10") == ("10", True)
    assert answers.judge(Problem("2 + 8?", "10"), "The answer is 11.") == ("11", False)
    assert answers.judge(Problem("is it?", "yes"), "Yes.") == ("Yes.", True)
    assert answers.judge(Problem("is it?", "yes"), "I do not know that yet, sorry") == (None, False)
    primes = Problem("odd primes below 10?", "3,5,7")
    assert answers.judge(primes, r"\boxed{3}, \boxed{5} and \boxed{7}") == ("3, 5, 7", True)
    assert answers.judge(primes, r"\boxed{3}, \boxed{5} and \boxed{9}") == ("3, 5, 9", False)
    assert answers.judge(Problem("which?", "7"), r"\boxed{3}, \boxed{5} and \boxed{7}") == ("7", True)
    assert answers.judge(Problem("how many?", "1,234"), r"\boxed{1}, \boxed{234}") == ("234", False)


def test_a_final_answer_is_nothing_but_that():
    """Read as a text is, and as it stands where nothing is found in it; without a reference nobody knows."""
    problem = Problem("?", "9")
    assert right(problem, "9") and right(problem, "The answer is 9.") and right(problem, "\\boxed{9}")
    assert right(problem, "8") is False and right(problem, " ") is False
    assert right(Problem("?", "Berlin"), "berlin") and right(Problem("?", "1/2"), "0.5")
    assert right(Problem("?", "rice lake"), "answer: rice lake") and not right(Problem("?", "rice lake"), "rice hill")
    choices = Problem("?", "B", choices=("rice", "lake"))
    assert right(choices, "lake") and right(choices, "(b)") and not right(choices, "rice")
    assert right(Problem("?", ""), "9") is None
