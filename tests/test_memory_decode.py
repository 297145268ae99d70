"""Trajectories from an engine: what is decoded is what is trained, in both semantics, with tools and with nonsense."""

import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax import lifetimes
from lt_jax.data.problem import Problem
from lt_jax.decode import DecodeConfig, Engine, Sampling, control
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import default_table
from lt_jax.memory.log import from_json, log_of, row_of
from lt_jax.memory.rows import ROWS
from lt_jax.memory.syntax import syntax_of
from lt_jax.memory.trajectories import FINISHES, Limits, Trajectories
from lt_jax.models import decoder
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from tests.layout_tools import with_end, word_tokenizer
from tests.memory_scripts import Script

MODEL = DecoderConfig(vocab_size=64, hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, head_dim=16)
LONGEST = 1024


@pytest.fixture(scope="module")
def table():
    tokenizer = word_tokenizer("x a b c d e f z 1 2 3 4 5 6 7 8 9 : ! search: walk: < /memory> final_answer>9")
    tokenizer = with_end(tokenizer, "<end>", "<pad>")
    special = default_table(tokenizer, Scheme(method="memory"), eos="<end>", pad="<pad>").special
    return special, syntax_of(special, tokenizer)


@pytest.fixture(scope="module")
def params():
    return parameters.init(jax.random.key(0), MODEL)


def engine(params, special, semantics, rows=3, **more):
    scheme = Scheme(method="memory", semantics=semantics)
    return Engine(params, MODEL, scheme, special, DecodeConfig(rows=rows, block_steps=8, **more))


LONG = "a b c d e f " * 6  # longer than what the engine would rather read again than take over

SCRIPTS = [
    [f"{LONG}<commit>z</commit>", f"d {LONG}<commit>e f</commit>", "b<expand>1</expand>", "c d<fold>1</fold>",
     "e<expand>2</expand>", f"f {LONG}<commit>z z</commit>", "a<final_answer>7</final_answer>"],
    [f"{LONG}<call>search: a b</call>", "d e<fold>1</fold>", "f<commit>z</commit>", "b<expand>1</expand>",
     "a<final_answer>8</final_answer>"],
    ["a b", f"{LONG}<expand>4</expand>", f"{LONG}<commit>z</commit>", "c<call>walk: a</call>",
     "<final_answer>9</final_answer>"],
]  # fmt: skip


def slow_search(argument):
    time.sleep(0.05)
    return f"{argument} c d e f 1 2 3 </memory> <final_answer>9</final_answer>"


@pytest.fixture(scope="module", params=list(ROWS))
def decoded(request, table, params):
    """The scripted trajectories in one semantics, one after the other in 3 rows: 6 of them, each script twice."""
    special, syntax = table
    script = Script()
    for seed in range(6):
        script.turns(seed, [[*syntax.tokenize(text), special.eos] for text in SCRIPTS[seed % 3]])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "sample", script.sample)
        one = engine(params, special, request.param)
        runner = Trajectories(one, syntax, Limits(request.param), {"search": slow_search})
        found = runner.complete([(f"q{seed}", syntax.ids(f"x {LONG}x"), seed) for seed in range(6)])
    return request.param, syntax, found, one


def test_every_script_comes_to_its_end(decoded):
    _, syntax, found, _ = decoded
    assert [each.id for each in found] == [f"q{seed}" for seed in range(6)]
    assert [each.finish for each in found] == ["answered"] * 6
    assert [syntax.text(each.answer) for each in found] == ["7", "8", "9"] * 2
    first, second, third = found[:3]
    assert first.counts | {"malformed": 0} == first.counts and first.counts["commit"] == 3
    assert [each.active for each in first.memory.entities] == [False, True, False]
    assert second.memory.entities[0].raw == syntax.ids("a b c d e f 1 2 3 </memory> <final_answer>9</final_answer>")
    assert second.memory.entities[0].active
    assert third.counts["malformed"] == 2 and third.counts["illegal"] == 1
    assert [bool(each.why) for each in third.turns] == [True, True, False, True, False]
    assert "no action" in third.turns[0].why and "there is no entity 4" in third.turns[1].why
    assert "there is no such tool; there are: search" in third.turns[3].why


def test_what_is_trained_is_what_was_decoded(decoded, params):
    """Log-probs of every token that was written equal those of one forward pass over the training row."""
    semantics, _, found, _ = decoded

    @jax.jit
    def logps(tokens, death, positions):
        x = decoder.forward(params, MODEL, tokens, positions, lifetimes.Lifetimes(death), implementation="dense")
        return jax.nn.log_softmax(decoder.logits(params, MODEL, x)[0].astype(jnp.float32))

    for each in found:
        row = each.row.row()
        pad = lambda x, value: np.pad(x, (0, LONGEST - len(x)), constant_values=value)[None].astype(np.int32)  # noqa: B023
        all_of = np.asarray(logps(pad(row.tokens, 0), pad(row.death, lifetimes.NEVER), pad(row.position, 0)))
        written = np.flatnonzero(row.trained)
        want = all_of[written - 1, row.tokens[written]]
        got = np.concatenate([turn.logp for turn in each.turns])
        np.testing.assert_allclose(got, want, atol=1e-5, err_msg=semantics)
        index = np.arange(len(row))
        seen = lifetimes.visible(index, row.death, index)[written].sum(1)
        np.testing.assert_array_equal(np.concatenate([turn.visible for turn in each.turns]), seen)
        assert each.peak >= seen.max() and each.dependency == seen.sum()


def test_what_is_read_again_is_little_under_lifetimes(decoded):
    """An expand's copy and the last token of a row that said nothing new; a rebuilt context from its change on."""
    semantics, syntax, found, one = decoded
    for each in found:
        for before, turn in zip(each.turns, each.turns[1:], strict=False):
            kind = type(before.turn.action).__name__
            if semantics == "lifetimes" and not before.why and kind in ("Commit", "Call", "Fold"):
                assert turn.again <= 1, kind
            if semantics == "rebuild" and not before.why and kind == "Fold":
                assert turn.again > 1
    assert one.usage.reused > one.usage.read


def test_a_log_is_the_trajectory(decoded):
    """Through JSON and back, as the same row and the same memory."""
    semantics, syntax, found, _ = decoded
    for each in found:
        log = log_of(each, syntax, Problem("x", "7"))
        assert from_json(json.loads(json.dumps(log.to_json()))) == log
        again = row_of(log, syntax, syntax.ids(f"x {LONG}x"), semantics).row()
        row = each.row.row()
        np.testing.assert_array_equal(again.tokens, row.tokens)
        np.testing.assert_array_equal(again.death, row.death)
        np.testing.assert_array_equal(again.position, row.position)
        assert log.answer == syntax.text(each.answer) and log.correct == (log.answer == "7")
        assert log.counts == each.counts
        assert (log.extra["peak"], log.extra["dependency"]) == (each.peak, each.dependency)
        shown = [entity.shown for entity in log.states()[-1].entities]
        assert len(shown) == len(each.memory.entities)
    bad = log_of(found[0], syntax, Problem("x", "")).to_json()
    bad["turns"][2]["number"] = 5
    with pytest.raises(UserError, match="line 3: there is no entity 5; possible here: commit, expand of 1-2"):
        from_json(bad, "line 3")
    for change, said in (({"turn": []}, "unknown field 'turn'"), ({"finish": "won"}, "finish is 'won'"),
                         ({"turns": [{"text": "a"}]}, "turn 1: a turn is an object with 'text' and 'action'"),
                         ({"turns": [{"action": "think"}]}, "turn 1: action is 'think'")):  # fmt: skip
        with pytest.raises(UserError, match=said):
            from_json({"id": "1", "question": "x", "turns": [], **change})


def test_the_other_semantics_is_refused(table, params):
    special, syntax = table
    with pytest.raises(UserError, match="trained with semantics 'rebuild' and cannot be decoded with 'lifetimes'"):
        Trajectories(engine(params, special, "rebuild"), syntax, Limits("lifetimes"))


@pytest.mark.parametrize("semantics", list(ROWS))
def test_nonsense_ends_in_a_defined_state_and_disturbs_nobody(table, params, semantics):
    """Random weights: whatever is written, a trajectory ends as one of FINISHES, and does not depend on who else is
    there."""
    special, syntax = table
    limits = Limits(semantics, turn=24, turns=8, tokens=120, sampling=Sampling(temperature=2.0))
    asked = [(seed, syntax.ids("x a b"), seed) for seed in range(60)]
    runner = lambda rows: Trajectories(engine(params, special, semantics, rows), syntax, limits, {"search": str.upper})
    found = runner(12).complete(asked)
    assert {each.finish for each in found} <= set(FINISHES) - {"nan", "refused", "cancelled"}
    assert sum(each.counts["malformed"] for each in found) > 60
    alone = runner(1).complete(asked[:3])
    for one, other in zip(found, alone, strict=False):
        assert one.finish == other.finish
        np.testing.assert_array_equal(one.row.row().tokens, other.row.row().tokens)
