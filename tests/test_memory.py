"""LightThinker++'s memory: the machine, its syntax, and what both semantics make of a trajectory."""

import random

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tokenizers import AddedToken

from lt_jax import lifetimes
from lt_jax.layout.row import Role
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import MEMORY, default_table
from lt_jax.memory import machine
from lt_jax.memory.machine import Call, Commit, Expand, FinalAnswer, Fold, Memory, apply, replay, write
from lt_jax.memory.rows import LifetimesRow, RebuiltRow
from lt_jax.memory.syntax import Malformed, Turn, syntax_of
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.training.score import hidden
from tests.layout_tools import assert_drawn, word_tokenizer

SCHEME = Scheme(method="memory")


@pytest.fixture(scope="module")
def syntax():
    tokenizer = word_tokenizer(" ".join("x a b c d e f z 1 2 3 4 5 6 7 8 9 : ! <end>".split()))
    tokenizer.add_special_tokens([AddedToken("<pad>", special=True)])
    return syntax_of(default_table(tokenizer, SCHEME, eos="<end>", pad="<pad>").special, tokenizer)


def random_actions(draw: random.Random, count: int):
    """A log of legal actions and texts, with the memory after each."""
    memory, log = Memory(), []
    for number in range(count):
        text = f"t{number} "
        expand = [each.number for each in memory.entities if not each.active]
        fold = [each.number for each in memory.entities if each.active]
        choices = [Commit(f"z{number}"), Call(f"c{number}", f"o{number}")]
        choices += [Expand(draw.choice(expand))] if expand else []
        choices += [Fold(draw.choice(fold))] if fold else []
        for entry in (text, draw.choice(choices)):
            memory = replay([entry], memory)
            log.append(entry)
        yield memory, log


def test_what_is_visible_is_raw_or_summary_of_each_entity_and_the_open_step():
    for seed in range(20):
        raw, summaries, active, observed, opened = {}, {}, set(), set(), []
        for memory, log in random_actions(random.Random(seed), 30):
            text, action = log[-2:]
            opened.append(text)
            number = len(raw) + 1
            match action:
                case Commit(summary):
                    raw[number] = "".join(summaries[part] if isinstance(part, int) else part for part in opened)
                    summaries[number] = summary
                    active -= {part for part in opened if isinstance(part, int)}
                    opened = []
                case Call(call, observation):
                    raw[number], summaries[number] = observation, call
                    active.add(number)
                    opened.append(number)
                    observed.add(number)
                case Expand(k):
                    active.add(k)
                case Fold(k):
                    active.remove(k)
            shown = {k: raw[k] if k in active else summaries[k] for k in raw}
            want = [shown[k] for k in raw if k not in opened and (k in active or k not in observed)]
            want += [shown[part] if isinstance(part, int) else part for part in opened]
            assert [getattr(part, "shown", part) for part in memory.visible()] == want
        assert replay(log) == memory


def test_a_fold_undoes_an_expand():
    for seed in range(20):
        for memory, _ in random_actions(random.Random(seed), 20):
            for each in memory.entities:
                there, back = (Fold, Expand) if each.active else (Expand, Fold)
                assert apply(apply(memory, there(each.number)), back(each.number)) == memory


def test_illegal_moves_are_typed_and_say_what_is_possible():
    one = replay(["a", Commit("z")])
    cases = (
        (Memory(), Commit("z"), machine.NothingOpen, "possible here: call, final_answer"),
        (write(Memory(), "a"), Commit(""), machine.EmptySummary, "possible here: commit, call, final_answer"),
        (one, Expand(2), machine.UnknownEntity, "there is no entity 2; possible here: expand of 1, call"),
        (one, Expand(0), machine.UnknownEntity, "there is no entity 0"),
        (one, Fold(1), machine.AlreadyArchived, "expand of 1"),
        (apply(one, Expand(1)), Expand(1), machine.AlreadyActive, "fold of 1"),
        (apply(one, FinalAnswer("4")), Expand(1), machine.Finished, "possible here: nothing"),
    )
    for memory, action, kind, said in cases:
        with pytest.raises(kind, match=said) as caught:
            apply(memory, action)
        assert caught.value.legal == memory.legal
    for memory, _ in random_actions(random.Random(1), 30):  # what is said to be possible is
        for words in memory.legal:
            name, _, numbers = words.partition(" of ")
            made = {"commit": [Commit("z")], "call": [Call("c", "o")], "final_answer": [FinalAnswer("4")]}
            kind = {"expand": Expand, "fold": Fold}.get(name)
            for action in made.get(name) or [kind(number) for number in spelt_out(numbers)]:
                apply(memory, action)


def spelt_out(numbers: str) -> list[int]:
    """What `machine.ranges` puts in words."""
    bounds = [[int(number) for number in run.split("-")] for run in numbers.split(", ")]
    return [number for run in bounds for number in range(run[0], run[-1] + 1)]


def test_numbers_are_said_as_ranges():
    assert machine.ranges([]) == "" and machine.ranges([4]) == "4"
    assert machine.ranges([1, 2, 3, 5, 7, 8]) == "1-3, 5, 7-8"
    assert spelt_out("1-3, 5, 7-8") == [1, 2, 3, 5, 7, 8]


def test_turns_are_read_strictly(syntax):
    read = lambda text: syntax.read(syntax.tokenize(text))
    ids = syntax.ids
    assert read("a b<commit>z</commit>") == Turn(
        ids("a b"), Commit(ids("z")), ids("").__add__(tuple(syntax.tokenize("<commit>z</commit>")))
    )
    assert read("<expand>1 2</expand>").action == Malformed("expand needs the number of an entity")
    assert read("<expand> 12 </expand>").action == Malformed("expand needs the number of an entity")  # two tokens: 1, 2
    assert read("a<expand> 3 </expand>").action == Expand(3)
    assert read("<fold>7</fold>").action == Fold(7)
    assert read("<call>a b</call>").action == Call(ids("a b"), ())
    assert read("<final_answer>9</final_answer>").action == FinalAnswer(ids("9"))
    wrong = {
        "a b": "no action was taken",
        "a</commit>": "commit is closed but was not opened",
        "a<commit>z": "commit is not closed",
        "<commit>z<fold>1</fold>": "commit is not closed before another mark",
        "<commit>z</fold>": "commit is not closed before another mark",
        "<commit>z</commit> a": "something was written behind commit",
        "<commit></commit>": "commit is empty",
        "<fold></fold>": "fold needs the number of an entity",
        "<fold>a</fold>": "fold needs the number of an entity",
        "<memory>1</memory>": "the memory's own marks were written",
    }
    for text, why in wrong.items():
        turn = read(text)
        assert turn == Turn(tuple(syntax.tokenize(text)), Malformed(why))
    assert syntax.read(ids("a"), ended=False).action.why == "the step is too long without an action"


def test_marks_that_a_text_spells_are_none(syntax):
    marks = set(syntax.opens) | set(syntax.closes) | set(syntax.reply)
    for mark in MEMORY:
        assert not marks & set(syntax.ids(f"a {mark} b{mark}"))


def picture(row):
    mask = lifetimes.draw(np.asarray(lifetimes.dense_mask(row.lifetimes()))[0, 0])
    return f"{' '.join(row.letters)}\n{mask}"


def short(syntax):
    """The same syntax with every mark, number and reply of one token, for pictures."""

    class Short:
        def __getattr__(self, name):
            return getattr(syntax, name)

        label = lambda self, number: (1,)
        full = lambda self, number, raw: raw

    return Short()


def test_masks_are_those_drawn(syntax):
    row = LifetimesRow(short(syntax), [5])
    for _ in range(2):
        row.turn(Turn((6, 6), Commit((7,)), (7,)))
    row.turn(Turn((), Expand(1), (8,)))
    row.turn(Turn((9,), Fold(1), (9,)))
    row._open((6,), Role.THOUGHT, True)
    assert_drawn(picture(row.row()), LifetimesRow)
    row = RebuiltRow(rebuilding := short(syntax), [5])
    rebuilding.context = lambda memory: (7, 1)
    row.turn(Turn((6, 6), Commit((7,)), (7,)))
    row.prompt()  # the context is rebuilt when the next turn begins
    row._append((6,), Role.THOUGHT, True)
    laid = row.row()
    assert_drawn(picture(laid), RebuiltRow)
    assert laid.position.tolist() == [0, 1, 2, 3, 1, 2, 3]


def trajectory(syntax):
    """Turns with every action, and one that is wrong."""
    said = lambda text: syntax.read(syntax.tokenize(text))
    return [
        (said("a b c<commit>z</commit>"), ()),
        (said("d<call>e</call>"), syntax.ids("f f f f")),
        (said("a<fold>2</fold>"), ()),
        (said("b<expand>1</expand>"), ()),
        (said("c<expand>9</expand>"), ()),
        (said("c<commit>e</commit>"), ()),
        (said("d<expand>2</expand>"), ()),
        (said("e<fold>1</fold>"), ()),
        (said("f<final_answer>9</final_answer>"), ()),
    ]


def grown(kind, syntax, prompt):
    """The row, and of each turn its prompt and what was written."""
    row, each = kind(syntax, prompt), []
    for turn, observation in trajectory(syntax):
        each.append((row.prompt(), turn.text + turn.marked))
        row.turn(turn, observation)
    return row, each


def test_a_rebuilt_row_is_each_step_by_itself(syntax):
    """Log-odds of all that is trained equal those of separate rows: the context, then what was written."""
    model = DecoderConfig(vocab_size=256, hidden=32, intermediate=64, layers=2, heads=4, kv_heads=2, head_dim=8)
    params = parameters.init(jax.random.key(0), model)
    row, each = grown(RebuiltRow, syntax, syntax.ids("x x"))
    laid = row.row()

    def states(tokens, lived, positions):
        given = jnp.asarray(tokens, jnp.int32)[None]
        return np.asarray(
            hidden(params, model, given, lived, jnp.asarray(positions, jnp.int32)[None], "dense", "none")
        )[0]

    whole = states(laid.tokens, laid.lifetimes(), laid.position)
    written = np.flatnonzero(laid.trained)
    assert [int(each) for each in laid.tokens[written]] == [token for _, said in each for token in said]
    at = 0
    for context, said in each:
        alone = (*context, *said)
        plain = lifetimes.causal(1, len(alone))
        want = states(alone, plain, range(len(alone)))[len(context) :]
        np.testing.assert_allclose(whole[written[at : at + len(said)]], want, atol=1e-5)
        at += len(said)


def test_both_semantics_show_the_same_memory(syntax):
    rows = [grown(kind, syntax, syntax.ids("x x"))[0] for kind in (LifetimesRow, RebuiltRow)]
    assert rows[0].memory == rows[1].memory
    memory = rows[0].memory
    assert memory.answer == syntax.ids("9") and [each.active for each in memory.entities] == [False, True, False]
    trained = [row.row().tokens[row.row().trained].tolist() for row in rows]
    assert trained[0] == trained[1]


def test_what_lives_under_lifetimes_is_what_the_memory_shows(syntax):
    """After each turn the living tokens are the prompt, every summary with its number, active entities and the open
    step. An observation is in full where it came until it is put away, and behind all else when it is shown again: its
    call is part of its step, and is visible as long as that is open."""
    row, came = LifetimesRow(syntax, syntax.ids("x x")), set()
    for turn, observation in trajectory(syntax):
        row.turn(turn, observation)
        laid, memory = row.row(), row.memory
        alive = laid.tokens[(laid.death > len(laid)) & (laid.role != Role.PROMPT)].tolist()
        came |= {len(memory.entities)} if isinstance(turn.action, Call) else set()
        came -= {each.number for each in memory.entities if not each.active}
        want = []
        for part in memory.visible():
            if isinstance(part, tuple):
                want += part
            elif part.number in came:
                want += syntax.shown(part)
            elif part.kind == machine.OBSERVATION and part.number not in memory.open:
                want += syntax.full(part.number, part.raw)
            else:
                want += syntax.summary(part) + (syntax.full(part.number, part.raw) if part.active else ())
        answer = turn.marked if isinstance(turn.action, FinalAnswer) else ()
        assert sorted(alive) == sorted([*want, *answer])
