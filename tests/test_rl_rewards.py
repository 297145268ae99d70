"""Rewards: every kind on right and wrong answers, and functions that fail in every way they can."""

import concurrent.futures
import dataclasses
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest

from lt_jax.data import suites
from lt_jax.data.problem import Problem
from lt_jax.errors import UserError
from lt_jax.rl.rewards import RewardConfig, RewardPool

SUM = Problem("2 + 2?", "4")
FUNCTIONS = """
    import os, sys, time
    import numpy as np

    def length(problem, text):
        return len(text) / 10

    def answer_of(problem, text):
        return float(text == problem.answer and problem.metadata["n"] == 3 and problem.choices == ("4", "5"))

    def bad(problem, text):
        if text == "raise":
            raise KeyError("no such thing\\nand a second line")
        if text == "exit":
            sys.exit(3)
        if text == "die":
            os._exit(7)
        if text == "print":
            print("seen by the user"), sys.stdin.read()
        return {"nan": float("nan"), "inf": float("inf"), "text": "1.0", "none": None, "list": [1.0, 2.0],
                "large": 1e300, "numpy": np.float32(0.5), "true": True}.get(text, 1.0)

    def hangs(problem, text):
        if text == "hang":
            time.sleep(60)
        if text == "power":
            9 ** 9 ** 9 ** 9  # no Python code runs meanwhile
        return 1.0

    def batch(problems, texts):
        if "raise" in texts:
            raise ValueError("one of these")
        return [float(text) for text in texts][: None if len(texts) < 4 else 3]

    def jax_free(problem, text):
        return float("jax" not in sys.modules and "lt_jax.rl" not in sys.modules)

    def process(problem, text):
        return os.getpid()

    def one(problem):
        return 1.0

    three = 3
"""


@pytest.fixture
def functions(tmp_path, monkeypatch):
    """A user's module, in the working directory."""
    (tmp_path / "my_rewards.py").write_text(textwrap.dedent(FUNCTIONS))
    (tmp_path / "broken_rewards.py").write_text("import no_such_package")
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the working directory stands in for a package')")
    monkeypatch.chdir(tmp_path)


def pool(*kinds, told=None, workers=1, seconds=10.0, **more) -> RewardPool:
    config = RewardConfig(tuple((kind, 1.0) for kind in kinds), workers=workers, seconds=seconds, **more)
    return RewardPool(config, warn=[].append if told is None else told.append)


def test_math_and_format_on_right_and_wrong_answers():
    cases = [
        ("so \\boxed{4}", 1, 1),
        ("<think>hm, \\boxed{5}?</think>\n\n\\boxed{4}", 1, 1),
        ("\\boxed{5}", 0, 1),
        ("<think>\\boxed{4}</think> I do not know.", 1, 0),
        ("<think>so it is \\boxed{4}", 1, 0),  # cut off
        ("\\boxed{\\frac{8}{2}}", 1, 1),
        ("\\boxed{", 0, 0),
        ("", 0, 0),
    ]
    config = RewardConfig((("math", 1.0), ("format", 0.25)), workers=1)
    with RewardPool(config) as rewarded:
        rewarded.check([SUM])
        found = rewarded([SUM] * len(cases), [text for text, _, _ in cases])
    np.testing.assert_array_equal(found.parts["math"], [right for _, right, _ in cases])
    np.testing.assert_array_equal(found.parts["format"], [formed for _, _, formed in cases])
    np.testing.assert_array_equal(found.rewards, [right + formed / 4 for _, right, formed in cases])
    assert found.rewards.dtype == np.float32 and not found.failed.any()
    assert found.timed_out == found.raised == {"math": 0, "format": 0}


def test_choice_and_reasoning_gym():
    cities = Problem("capital of France?", "B", choices=("Rome", "Paris"))
    letter = Problem("Which? (A) Rome (B) Paris", "(B)")
    gcd = Problem("gcd of 12 and 18?", "6", "gcd")
    products = Problem("500 * 2?", "1000", "products")
    with pool("choice", workers=1) as rewarded:
        rewarded.check([cities, letter])
        texts = ["\\boxed{B}", "The answer is (b) Paris.", "\\boxed{Paris}", "A", "\\boxed{C}", "Paris or Rome"]
        np.testing.assert_array_equal(rewarded([cities] * 6, texts).rewards, [1, 1, 1, 0, 0, 0])
        np.testing.assert_array_equal(rewarded([letter] * 3, ["\\boxed{B}", "(b)", "\\boxed{A}"]).rewards, [1, 1, 0])
        with pytest.raises(UserError, match="has no choices and its answer, '12', is no letter; reward 'math'"):
            rewarded.check([cities, Problem("6 + 6?", "12")])
    with pool("reasoning_gym") as rewarded:
        rewarded.check([gcd, products])
        texts = ["\\boxed{6}", "\\boxed{6, or so}", "\\boxed{7}", "hm", "<answer>1,000.0</answer>"]
        found = rewarded([gcd] * 4 + [products], texts)
        np.testing.assert_allclose(found.rewards, [1, 1 / 8, 0, 0, 1], rtol=1e-6)  # its own part marks
        named = dataclasses.replace(gcd, family="math", metadata={"source_dataset": "gcd"})  # as a file may call it
        rewarded.check([products, named])
        assert rewarded([named], ["\\boxed{6}"]).rewards.tolist() == [1]
        queens = Problem("Place queens", "_ Q", "n_queens", metadata={"valid_answers": ["_ Q"]})
        with pytest.raises(UserError, match="problem 1 .* scorer of 'n_queens' runs text as Python code"):
            rewarded.check([gcd, queens])
        with pytest.raises(UserError, match="family 'sums': its own answer is not right .*'sums' not registered"):
            rewarded.check([Problem("1 + 1?", "2", "sums")])
        with pytest.raises(UserError, match="wrong answers cannot be scored .KeyError: 'matrix'"):
            rewarded.check([Problem("Where?", "1,1", "shortest_path")])
        rewarded.check([Problem("?", "2 × 3", "prime_factorization")])  # its scorer raises on some wrong answers
        with pytest.raises(UserError, match="has no answer, which reward 'reasoning_gym' needs"):
            rewarded.check([Problem("?", " ", "gcd")])


def test_no_answer_is_run_as_code(tmp_path):
    target = tmp_path / "made"
    text = f"<answer>open({str(target)!r}, 'w')</answer>"
    names = ("n_queens", "countdown", "binary_matrix", "string_insertion", "spiral_matrix", "puzzle24",
             "polynomial_multiplication", "simple_integration", "intermediate_integration")  # fmt: skip
    meta = {"valid_answers": [], "numbers": [1], "target": 1, "integrand": "x", "variable": "x"}
    told = []
    with pool("reasoning_gym", told=told) as rewarded:
        found = rewarded([Problem("?", "1", name, metadata=meta) for name in names], [text] * len(names))
    assert not target.exists()
    assert found.raised == {"reasoning_gym": len(names)} and not found.rewards.any() and len(told) == 1


def test_problems_of_reasoning_gym_from_a_file_keep_their_data_set_and_metadata(tmp_path):
    line = '{"question": "gcd?", "answer": "6", "metadata": {"source_dataset": "gcd", "numbers": [12, 18]}}\n'
    (tmp_path / "problems.jsonl").write_text(line)
    (problem,) = suites.from_files(tmp_path / "problems.jsonl", name="gym").problems
    assert problem == Problem("gcd?", "6", "gcd", metadata={"source_dataset": "gcd", "numbers": [12, 18]})
    assert isinstance(hash(problem), int)


def test_a_function_of_the_users_gets_the_problem_and_the_order_is_kept(functions):
    problem = Problem("2 + 2?", "4", choices=("4", "5"), metadata={"n": 3})
    texts = [str(place) * (place % 7) for place in range(60)]
    with pool("my_rewards:length", "my_rewards:answer_of", "my_rewards:jax_free", workers=2, chunk=4) as rewarded:
        waits = [rewarded.submit([problem] * 60, texts), rewarded.submit([problem], ["4"])]
        found, last = [wait() for wait in waits]
        nothing = rewarded([], [])
    np.testing.assert_allclose(found.parts["my_rewards:length"], [len(text) / 10 for text in texts], rtol=1e-6)
    assert last.parts["my_rewards:answer_of"] == [1] and found.parts["my_rewards:jax_free"].all()
    assert nothing.rewards.shape == nothing.failed.shape == (0,) and nothing.rewards.dtype == np.float32


def test_what_fails_gets_nothing_is_counted_and_told_once(functions, capfd):
    texts = ["raise", "fine", "exit", "nan", "inf", "text", "none", "list", "large", "die", "numpy", "true", "print"]
    told = []
    with pool("my_rewards:bad", "my_rewards:length", told=told) as rewarded:
        found, again = rewarded([SUM] * len(texts), texts), rewarded([SUM], ["raise"])
    right = {"fine": 1, "numpy": 0.5, "true": 1, "print": 1}
    np.testing.assert_array_equal(found.parts["my_rewards:bad"], [right.get(text, 0) for text in texts])
    np.testing.assert_array_equal(found.failed, [text not in right for text in texts])
    assert found.parts["my_rewards:length"].all()  # the other kind lost nothing
    assert found.raised == {"my_rewards:bad": 9, "my_rewards:length": 0} and not any(found.timed_out.values())
    assert again.raised["my_rewards:bad"] == 1
    (line,) = told
    assert "\n" not in line and "'my_rewards:bad': KeyError: 'no such thing" in line and "2 + 2?" in line
    assert "seen by the user" in capfd.readouterr().err


def test_what_hangs_is_killed_and_its_worker_replaced(functions):
    texts, told = ["a", "hang", "b", "power", "c"], []
    with pool("my_rewards:hangs", "my_rewards:process", told=told, seconds=1.0) as rewarded:
        started = time.perf_counter()
        found = rewarded([SUM] * 5, texts)
        assert time.perf_counter() - started < 20
        os.kill(int(found.parts["my_rewards:process"][-1]), signal.SIGKILL)  # by somebody else, between two calls
        time.sleep(0.1)
        assert rewarded([SUM], ["a"]).parts["my_rewards:hangs"] == [1]
    np.testing.assert_array_equal(found.parts["my_rewards:hangs"], [1, 0, 1, 0, 1])
    assert found.timed_out == {"my_rewards:hangs": 2, "my_rewards:process": 0} and not any(found.raised.values())
    assert len(told) == 1 and "no verdict within 1 s" in told[0]


def test_a_function_of_lists(functions):
    texts = ["1", "2", "raise", "3"]
    with pool("my_rewards:batch", listed=("my_rewards:batch",), chunk=3) as rewarded:
        found = rewarded([SUM] * 4, texts)  # the call of three is made again, one by one
        np.testing.assert_array_equal(found.rewards, [1, 2, 0, 3])
        assert found.raised == {"my_rewards:batch": 1}
    with pool("my_rewards:batch", listed=("my_rewards:batch",), chunk=8) as rewarded:
        with pytest.raises(UserError, match="'my_rewards:batch': it gave 3 numbers for 5 responses"):
            rewarded([SUM] * 5, ["1"] * 5)
        np.testing.assert_array_equal(rewarded([SUM] * 2, ["1", "2"]).rewards, [1, 2])


@pytest.mark.parametrize(
    "kind, said",
    [
        ("no_such_module:f", "module 'no_such_module' cannot be imported .ModuleNotFoundError: No module named"),
        ("broken_rewards:f", "module 'broken_rewards' cannot be imported .*'no_such_package'"),
        ("my_rewards:nothing", r"my_rewards.py has no function 'nothing'"),
        ("my_rewards:three", r"my_rewards.py has no function 'three'"),
        ("my_rewards:one", r"one\(problem\) must take a problem and a text"),
    ],
)
def test_a_function_that_cannot_be_had_is_one_line(kind, said, functions):
    with pytest.raises(UserError, match=said) as caught:
        pool(kind, workers=2)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "config, said",
    [
        ({"kinds": ()}, "must be pairs"),
        ({"kinds": ("math",)}, "must be pairs"),
        ({"kinds": (("maths", 1.0),)}, "no kind 'maths'; there are math, choice, format, reasoning_gym, and module"),
        ({"kinds": (("print('x')", 1.0),)}, "no kind"),
        ({"kinds": (("math", float("nan")),)}, "'math': its weight is nan"),
        ({"kinds": (("math", 1.0), ("math", 0.5))}, "named twice"),
        ({"listed": ("math",)}, "'math' in listed is no function of yours"),
        ({"seconds": 0}, "must be above 0"),
    ],
)
def test_settings_that_cannot_be(config, said):
    with pytest.raises(UserError, match=said):
        RewardConfig(**config)


def running(group: int) -> bool:
    """Whether a process of the group is left that is no zombie."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, its_group = (folder / "stat").read_text().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        found += [state] if int(its_group) == group else []
    return any(state != "Z" for state in found)


def gone(*groups: int) -> bool:
    """Whether nothing is left of the groups in a while: what was killed takes a moment to go."""
    until = time.monotonic() + 15
    while any(map(running, groups)) and time.monotonic() < until:
        time.sleep(0.05)
    return not any(map(running, groups))


def test_workers_are_gone_after_close_even_in_a_call(functions):
    with pool("my_rewards:process", "my_rewards:hangs", "math", workers=2) as rewarded:
        pids = {int(pid) for pid in rewarded([SUM] * 64, ["a"] * 64).parts["my_rewards:process"]}
        assert pids and all(map(running, pids))
        wait = rewarded.submit([SUM] * 4, ["hang"] * 4)
        time.sleep(0.3)
        started = time.perf_counter()
    assert time.perf_counter() - started < 5
    assert gone(*pids)  # and what compares LaTeX for them
    with pytest.raises(concurrent.futures.CancelledError):
        wait()


def test_workers_end_with_their_parent_even_in_a_call(functions, tmp_path):
    """Killed, it can end nobody: one that waits sees its input close, one in a call has a clock of its own."""
    program = tmp_path / "elsewhere" / "parent.py"
    program.parent.mkdir()
    program.write_text(textwrap.dedent("""
        import time
        from lt_jax.data.problem import Problem
        from lt_jax.rl.rewards import RewardConfig, RewardPool

        kinds = (("my_rewards:process", 1.0), ("my_rewards:hangs", 1.0))
        pools = [RewardPool(RewardConfig(kinds, workers=1, seconds=1.0)) for _ in range(2)]
        print(*(int(pool([Problem("?", "1")], ["a"]).parts["my_rewards:process"][0]) for pool in pools), flush=True)
        pools[0].submit([Problem("?", "1")], ["power"])
        print("asked", flush=True)
        time.sleep(100)
    """))
    parent = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    busy, idle = map(int, parent.stdout.readline().split())
    parent.stdout.readline(), time.sleep(0.2)
    assert running(busy) and running(idle)
    os.kill(parent.pid, signal.SIGKILL), parent.wait(), parent.stdout.close()
    assert gone(busy, idle)
