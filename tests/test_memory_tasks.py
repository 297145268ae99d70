"""The embedded problems that need a memory, and the expert that solves them: right, legal, and fit to learn from."""

import itertools
import re

import pytest

from lt_jax.data import answers
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import default_table
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.memory import tasks
from lt_jax.memory.expert import expert, steps_of_a_unit
from lt_jax.memory.log import from_json, row_of, turns_of
from lt_jax.memory.modes import LONGEST_STEP, MODES, asked, mode
from lt_jax.memory.rows import ROWS
from lt_jax.memory.syntax import syntax_of
from lt_jax.memory.tasks import Lookbacks, solved
from tests.tiny_folder import TOKENIZER

BUDGET = 640
ARMS = {"throughput": ("throughput", 0, True), "budget": ("budget", BUDGET, True), "no edits": ("throughput", 0, False)}


@pytest.fixture(scope="module")
def problems():
    return list(Lookbacks(60, seed=5))


@pytest.fixture(scope="module")
def syntax():
    tokenizer = load_tokenizer(TOKENIZER)
    return syntax_of(default_table(tokenizer, Scheme(method="memory"), "<|end|>", "<|pad|>").special, tokenizer)


LINE = re.compile(r"0(\d{3})\+(\d{3}) (\S+=\S+ \S+=\S+ \S+=\S+ \S+=\S+) (\d{4})")


def test_every_step_is_true(problems):
    """Reads each step back from its text and redoes it with plain arithmetic."""
    for problem in problems:
        start, plain, steps = re.fullmatch(r"Mix (\d{3}) (\d) (\d)", problem.question).groups()
        assert len(problem.steps) == int(steps) and problem.looks == int(steps) - int(plain)
        total, details = int(start), {}
        for number, step in enumerate(problem.steps, 1):
            second = int(3 * str(number))
            sign = "." if number == int(steps) else ":"
            assert step.text.startswith(f"{number}{plain}{steps}{sign}")
            if number > int(plain):
                back = 1 + total % 10 % (number - 1)
                assert step.text[3:].startswith(f"{sign}{total % 10}>{back}\nD{back} {details[back]:03d}\n")
                second = details[back]
            (a, b, _, c), (d, e, _, f) = LINE.findall(step.text)
            assert (int(a), int(b), int(c)) == (total, second, total + second)
            details[number] = int(c) % 1000
            assert f"D{number} {details[number]:03d}\n" in step.text
            assert int(d) == details[number] and e == d[1:] + d[0] and int(f) == int(d) + int(e)
            total = int(f) % 1000
        assert problem.answer == f"{total:03d}"


def test_as_drawn():
    problem = solved(417, 5, 2)
    drawn = [line.strip().split("  ")[0] for line in tasks.__doc__.splitlines()]
    lines = [*problem.steps[0].text.splitlines(), *problem.steps[3].text.splitlines()[:3]]
    assert set(lines) | {problem.question} <= set(drawn)


def test_problems_depend_on_seed_and_index_and_training_never_sees_the_held_out():
    assert Lookbacks(10**9, seed=5)[17] == Lookbacks(60, seed=5)[17] != Lookbacks(60, seed=6)[17]
    train, test = ({each.question for each in Lookbacks(300, held_out=out)} for out in (False, True))
    assert len(train) > 280 and len(test) > 250 and not train & test
    assert {each.looks for each in Lookbacks(100)} == {1, 2, 3, 4}
    for wrong, said in (({"steps": (2, 5)}, "steps are 2 to 5"), ({"steps": (5, 12)}, "between 3 and 9"),
                        ({"looks": (3, 4)}, "looks are 3 to 4; the least must be from 0 to 2")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            Lookbacks(10, **wrong)


def lcs(a, b):
    """The length of the longest common subsequence."""
    row = [0] * (len(b) + 1)
    for x in a:
        row = list(itertools.accumulate(range(1, len(b) + 1), lambda best, j: row[j - 1] + 1 if x == b[j - 1]  # noqa: B023
                                        else max(best, row[j]), initial=0))  # noqa: B023  # fmt: skip
    return row[-1]


def test_every_trajectory_is_legal_and_right_and_worth_keeping(problems):
    """The pruning rules of the paper's data (full suite, symmetry, no jitter); the full suite where there are edits."""
    assert lcs("abcde", "xbdye") == 3
    for (name, budget, edits), (number, problem) in itertools.product(ARMS.values(), enumerate(problems)):
        log = expert(problem, str(number), name, budget, edits)
        assert from_json(log.to_json()) == log, "no turn is impossible"
        assert answers.judge(problem.problem, log.answer)[1] is True and log.correct
        operations = [(turn.action, turn.number) for turn in log.turns]
        count = lambda wanted: sum(action == wanted for action, _ in operations)  # noqa: B023
        assert count("final_answer") == 1 and operations[-1][0] == "final_answer"
        assert count("expand") == count("fold") == (0 if not edits else count("expand"))
        if name == "throughput":
            assert count("expand") == edits * problem.looks <= count("commit") == len(problem.steps) - 1
        for (action, of), (then, other) in itertools.pairwise(operations):
            assert action != "expand" or (then, other) == ("fold", of)
            assert (action, of) != (then, other) or action == "commit"
        summaries = [turn.content for turn in log.turns if turn.action == "commit"]
        assert all(lcs(a, b) / max(len(a), len(b)) <= 0.9 for a, b in itertools.pairwise(summaries))


def look_backs(log):
    """(the detail as it is written down, what is visible before that) of each look-back of a trajectory."""
    before = ""
    for turn, state in zip(log.turns, log.states(), strict=True):
        pattern = r"(D\d \d{3})" if turn.action == "fold" else r"^\d{3}[:.]\d>\d\n(D\d \d{3})\n"
        for match in re.finditer(pattern, turn.text, re.M):
            yield match[1], before + "\n" + turn.text[: match.start(1)]
        before = "".join(part if isinstance(part, str) else part.shown + "\n" for part in state.visible())


def test_a_look_back_sees_its_detail_only_with_edits(problems):
    for problem in problems:
        for name, (way, budget, edits) in ARMS.items():
            found = list(look_backs(expert(problem, "0", way, budget, edits)))
            assert len(found) == problem.looks
            for recall, visible in found:
                assert (f"\n{recall}\n" in visible) == edits, name
                assert (f"\n{recall[:3]}" in visible) == edits, "nor has anybody guessed it"


def test_modes_are_cues_and_limits(problems, syntax):
    """In budget mode units are larger, and what is visible stays within the budget."""
    prompt = lambda name, problem: [1, *syntax.ids(asked(name, problem.question)), 2]
    fewer = 0
    for problem in problems[:30]:
        logs = {name: expert(problem, "0", name, BUDGET) for name in MODES}
        commits = {name: sum(turn.action == "commit" for turn in log.turns) for name, log in logs.items()}
        unit = steps_of_a_unit(problem, BUDGET)
        assert commits["budget"] == -(-len(problem.steps) // unit) - 1 > 0 and unit > 1
        fewer += sum(turn.action == "expand" for turn in logs["budget"].turns) < problem.looks
        for semantics, kind in ROWS.items():
            row, most = kind(syntax, prompt("budget", problem)), 0
            for turn, _ in turns_of(logs["budget"], syntax):
                most = max(most, row.visible + len(turn.text) + len(turn.marked))
                assert row.turn(turn) is None
            assert most <= BUDGET, semantics
    assert fewer > 3
    assert steps_of_a_unit(problems[0], 10) == 1
    assert mode("throughput").limits("rebuild").turn == LONGEST_STEP
    assert mode("budget").limits("lifetimes", 500, turns=7).context == 500
    for name, budget, said in (("budget", None, "needs a context"), ("throughput", 5, "has no context")):
        with pytest.raises(UserError, match=said):
            mode(name).limits("rebuild", budget)
    with pytest.raises(UserError, match="mode is 'fast'; it must be one of throughput, budget"):
        mode("fast")
    assert asked(None, "x") == "x" and asked("budget", "x") == "[late] x"


def test_the_same_problem_for_all_methods(problems, syntax):
    """The plain trace says what the trajectory says; every character of it is at most a token."""
    for problem in problems[:10]:
        log = expert(problem, "0")
        plain = problem.trace
        assert plain.segments[:-1] == tuple(step.text for step in problem.steps)
        joined = "\n".join(turn.text.strip("\n") for turn in log.turns if turn.text)
        assert joined.split() == " ".join(plain.segments[:-1]).split()
        assert answers.judge(problem.problem, plain.response)[1] is True
        assert len(syntax.ids(plain.response)) <= len(plain.response)
        ids = syntax.ids(problem.steps[-1].text)
        assert syntax.text(ids) == problem.steps[-1].text


def test_what_the_semantics_cost_to_train(problems, syntax):
    """A row under lifetimes is shorter than one of a rebuilt context with shared prefixes."""
    lengths = {}
    for semantics in ROWS:
        rows = [row_of(expert(each, "0"), syntax, [1, *syntax.ids(each.question), 2], semantics) for each in problems]
        lengths[semantics] = sum(len(row.row()) for row in rows)
    assert lengths["lifetimes"] < lengths["rebuild"]
