"""The front door: a folder that is loaded, asked in every way, scored with and saved again."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import lt_jax
from lt_jax.decode import DecodeConfig
from lt_jax.errors import UserError
from lt_jax.layout.build import build_row
from lt_jax.layout.scheme import Scheme
from lt_jax.models import huggingface
from lt_jax.training.score import Given, score_rows
from tests.tiny_folder import make

ROOT = Path(__file__).parents[1]
ASKED = "Sum 1)+006"
LONG = "Sum " + "1)+006 2)+01 " * 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "light", Scheme(n_gist=2))


@pytest.fixture(scope="module")
def model(folder):
    return lt_jax.load(folder)


def test_importing_the_library_is_quick():
    """JAX comes with `lt_jax.load`, not before."""
    code = "import sys, lt_jax; dir(lt_jax); print({'jax', 'numpy', 'transformers'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
    with pytest.raises(AttributeError, match="no attribute 'lode'"):
        _ = lt_jax.lode


def test_one_prompt_is_a_text_and_several_are_a_list(model):
    text = model.generate(ASKED, max_new=8)
    assert isinstance(text, str) and text
    assert model.generate([{"role": "user", "content": ASKED}], max_new=8) == text
    several = model.generate([ASKED, [{"role": "user", "content": ASKED}], "1"], max_new=8)
    assert several[0] == several[1] and [type(each) for each in several] == [str] * 3
    samples = model.generate(ASKED, n=3, max_new=8, temperature=1.0, seed=4)
    assert len(set(samples)) == 3 and samples == model.generate(ASKED, n=3, max_new=8, temperature=1.0, seed=4)
    nested = model.answer([ASKED, "1"], n=2, max_new=8, temperature=1.0)
    assert [[each.finish for each in pair] for pair in nested] == [["length"] * 2] * 2
    assert model.generate([]) == []
    for wrong in (3, {"role": "user", "content": "a"}, ["a", 3]):
        with pytest.raises(UserError, match="a prompt is a text, or a list of chat messages"):
            model.generate(wrong)


def test_an_answer_says_what_it_cost(model):
    answer = model.answer(ASKED, max_new=24, max_thought=9)
    assert str(answer) == answer.text == model.text(answer.tokens) and answer.finish == "length"
    assert answer.counts.generated + answer.counts.forced == len(answer.completion.tokens)
    assert answer.counts.compressions > 0 and len(answer.tokens) == len(answer.logp)
    token = model.text(answer.tokens[2:3])
    stopped = model.answer(ASKED, max_new=24, stop=token)
    assert stopped.finish == "stop" and stopped.text.endswith(token) and len(stopped.tokens) <= 3


def test_streamed_pieces_are_the_text(model):
    how = dict(max_new=40, max_thought=9)
    answer = model.answer(ASKED, **how)
    pieces = list(model.stream(ASKED, **how))
    assert "".join(pieces) == answer.text and len(pieces) > 1 and answer.counts.compressions > 0
    heard = []
    assert model.generate(ASKED, stream=heard.append, **how) == "".join(heard)
    first = model.stream(ASKED, **how)
    next(first)
    with pytest.raises(UserError, match="belongs to a `run` that is not finished"):
        model.generate(ASKED, **how)
    first.close()
    assert model.generate(ASKED, **how) == answer.text
    with pytest.raises(UserError, match=r"stream\(\) answers one prompt"):
        next(model.stream([ASKED, ASKED]))
    with pytest.raises(UserError, match="n is 2; streaming shows one answer"):
        model.generate(ASKED, n=2, temperature=1.0, stream=heard.append)


def test_a_next_turn_goes_on_from_what_the_row_holds(model):
    """Vanilla: nothing was compressed, so the whole conversation is there. No second engine is made for it."""
    said = [{"role": "user", "content": LONG}]
    first = model.answer(said, method="vanilla", max_new=6)
    made = list(model.engines.values())
    said += [{"role": "assistant", "content": "1)+02"}, {"role": "user", "content": "And 3)+04?"}]
    second = model.answer(said, method="vanilla", max_new=6)
    assert second.completion.reused >= first.counts.prompt - 1 > 32 and second.counts.prompt > first.counts.prompt
    assert list(model.engines.values()) == made
    fresh = lt_jax.load(model.origin).answer(said, method="vanilla", max_new=6)
    assert fresh.completion.reused == 0 and fresh.text == second.text


def test_engines_are_few_and_share_their_weights(model, monkeypatch):
    model.generate([ASKED] * 3, max_new=2)
    model.generate(ASKED, max_new=2)
    kept = list(model.engines.values())
    assert [each.config.rows for each in kept[-2:]] == [4, 1] and len({id(each.weights) for each in kept}) == 1
    monkeypatch.setattr("lt_jax.model.ENGINES", 2)
    model.generate(ASKED, max_new=2, capacity=200)
    assert [each.config.capacity == 200 for each in model.engines.values()] == [False, True]
    assert kept[-1] in model.engines.values() and all(each.closed for each in kept[:-1])


def test_an_engine_that_was_interrupted_is_let_go_of(model, monkeypatch):
    text = model.generate(ASKED, max_new=4)
    engine = list(model.engines.values())[-1]
    monkeypatch.setattr(engine, "_send", lambda *given: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        model.generate(ASKED, max_new=4)
    assert engine.closed and engine not in model.engines.values()
    assert model.generate(ASKED, max_new=4) == text


def test_a_kv_budget(model):
    answer = model.answer(LONG, method="vanilla", kv="rkv", budget=32, buffer=16, max_new=60)
    assert answer.counts.peak <= 48 < answer.counts.prompt + answer.counts.generated
    with pytest.raises(UserError, match="budget is given, but no kv policy"):
        model.generate(ASKED, budget=32)
    with pytest.raises(UserError, match="capacity and kv are both given"):
        model.generate(ASKED, kv="rkv", capacity=99)
    with pytest.raises(UserError, match="kv is 'lru'; it is one of full, streaming, h2o"):
        model.generate(ASKED, kv="lru")


@pytest.mark.parametrize("how, line", [
    (dict(max_new=0), "max_new is 0; it must be a whole number, 1 or more"),
    (dict(n=0), "n is 0; it must be a whole number, 1 or more"),
    (dict(n=1.5), "n is 1.5; it must be a whole number"),
    (dict(n=2), "n is 2, but at temperature 0 all answers to a prompt are the same"),
    (dict(rows=2.5), "rows is 2.5; it must be a whole number, 1 or more"),
    (dict(capacity=-1), "capacity is -1; it must be a whole number, 0 or more"),
    (dict(seed=1.5), "seed is 1.5; it must be a whole number, or None"),
    (dict(max_thought=0), "max_thought is 0; it must be a whole number, 1 or more, or None"),
    (dict(temperature=-1), "temperature is -1; it must be a number, 0 [(]greedy[)] or more"),
    (dict(temperature=float("nan")), "temperature is nan; it must be a number"),
    (dict(temperature="hot"), "temperature is 'hot'; it must be a number"),
    (dict(temperature=1, top_k=1.5), "top_k is 1.5; it must be a whole number"),
    (dict(temperature=1, top_p=0), "top_p is 0; it must be a number above 0"),
    (dict(stop=["a", ""]), "stop is .'a', ''.; it must be a text or a list of texts, none of them empty"),
    (dict(stop=3), "stop is 3; it must be a text"),
    (dict(kv="rkv", budget=0), "budget is 0; it must be a number of keys, 1 or more"),
    (dict(kv="rkv", buffer=0), "buffer is 0; at least one token"),
    (dict(temprature=1.0), "unknown setting 'temprature'; did you mean temperature[?]"),
    (dict(colour=1), "unknown setting 'colour'; it is one of method, max_new"),
])  # fmt: skip
def test_settings_that_cannot_be_are_one_line_before_anything_is_decoded(model, how, line):
    for ask in (model.generate, model.answer, lambda *given, **more: next(model.stream(*given, **more))):
        with pytest.raises(UserError, match="^" + line):
            ask(ASKED, **how)


def test_a_model_that_manages_its_memory_is_not_asked_as_a_plain_one(tmp_path):
    one = lt_jax.load(make(tmp_path / "memory", Scheme(method="memory")))
    with pytest.raises(UserError, match="manages its memory by actions, which something must answer"):
        one.generate(ASKED)
    assert isinstance(one.generate(ASKED, method="vanilla", max_new=4), str)


def test_what_cannot_be_answered_is_refused_with_its_reason(model):
    with pytest.raises(UserError, match="^a prompt of .* tokens does not fit; the capacity is 20 keys"):
        model.answer(LONG, capacity=20)
    with pytest.raises(UserError, match="^prompt 1: a prompt of .* tokens does not fit"):
        model.generate(["1", LONG], capacity=20, max_new=2)
    good, bad, control = model.answer(["1", LONG, "<|o_0|>"], capacity=20, max_new=2)
    assert (good.finish, bad.finish, control.finish, bad.text) == ("length", "refused", "refused", "")
    assert "does not fit" in bad.why and "a gist or output token" in control.why
    with pytest.raises(UserError, match="decoded as lightthinker or vanilla, not as anllm"):
        model.generate(ASKED, method="anllm")
    for messages, line in [
        ([{"role": "assistant", "content": "a"}], "the last message must be the user's"),
        ([{"role": "boss", "content": "a"}], "turn 0 of 'messages': unknown role 'boss'"),
        ([{"role": "user", "content": "a"}, {"role": "system", "content": "a"}], "a system message must be the first"),
    ]:
        with pytest.raises(UserError, match=line):
            model.generate(messages)


BUDGETED = dict(kv="rkv", budget=32, buffer=16, records=True)


@pytest.mark.parametrize("how", [
    dict(max_thought=9),
    dict(method="vanilla", temperature=1.5, seed=1),
    dict(method="vanilla", kv="full", records=True),
    dict(method="vanilla", temperature=1.5, seed=3, **BUDGETED),
    dict(method="vanilla", **BUDGETED | dict(kv="sepllm", budget=(40, 24))),
    dict(max_thought=9, temperature=0.8, seed=1, **BUDGETED | dict(budget=48)),
])  # fmt: skip
def test_an_answer_gets_the_log_probs_it_was_drawn_with(model, how):
    """Under what its sampler saw, evictions included; `dense` is what full attention says where nothing else ends."""
    answer = model.answer(LONG, max_new=60, **how)
    done, budget = answer.completion, "budget" in how
    assert answer.finish == "length" and (done.lifetimes().death.ndim == 4) == budget
    scored, dense = model.score(answer), model.score(answer, dense=True)
    assert len(scored) == len(dense) == len(done.row) and scored[done.prompt_length - 1] < 0
    np.testing.assert_allclose(scored[done.prompt_length :], done.logp, atol=1e-4)
    differ = np.abs(dense - scored)[done.prompt_length :].max()
    assert differ > 1e-2 if budget else differ < 1e-4
    if how.get("method") == "vanilla":
        full = Given(done.row, temperature=how.get("temperature", 1.0), never=model.rules(DecodeConfig()).never)
        np.testing.assert_allclose(dense, score_rows(model.params, model.config, [full])[0], atol=1e-4)


def test_answers_are_scored_as_they_are_nested(model):
    """Two samples of two prompts, one of them longer than the budget and one that never reaches it."""
    how = dict(method="vanilla", n=2, temperature=1.0, seed=3, max_new=8, **BUDGETED)
    answers = model.answer([LONG, "1"], **how)
    scored = model.score(answers)
    for pair, logps in zip(answers, scored, strict=True):
        for answer, logp in zip(pair, logps, strict=True):
            np.testing.assert_allclose(logp[answer.completion.prompt_length :], answer.completion.logp, atol=1e-4)
    one = answers[0][1]
    np.testing.assert_allclose(model.score(one.completion), scored[0][1], atol=1e-5)  # temperature 1: the same
    assert model.score([]) == []
    long, light = len(model.ask(LONG)), model.horizon([model.ask(LONG)], 100)
    vanilla = lambda n: model.decoding_as("vanilla").horizon([model.ask(LONG), model.ask("1")], n)
    assert [vanilla(n) for n in (20, 255 - long, 256 - long, 10**6)] == [256, 256, 384, model.config.max_positions]
    assert light == 768, "any of the 100 tokens may close a thought, and be followed by gists and the output token"


def test_what_cannot_be_scored_as_it_was_drawn_is_refused(model, tmp_path):
    how = dict(method="vanilla", kv="rkv", budget=32, buffer=16, max_new=30)
    forgotten = model.answer(LONG, **how)
    with pytest.raises(UserError, match="were not recorded: ask with records=True, or score it with dense=True"):
        model.score([ASKED, forgotten])
    assert (model.score(forgotten, dense=True)[1:] < 0).all()
    with pytest.raises(UserError, match="request 0: its evictions were not recorded"):
        model.score(forgotten.completion)
    narrow = model.answer(ASKED, method="vanilla", temperature=0.9, top_k=5, max_new=4)
    with pytest.raises(UserError, match="drawn with top_k=5, which score does not know: give it a temperature"):
        model.score(narrow)
    assert (model.score(narrow, temperature=0.9)[1:] < 0).all()
    (refused, _) = model.answer([LONG, "1"], capacity=20, max_new=2)
    with pytest.raises(UserError, match="the prompt was refused, so there is nothing to score: a prompt of"):
        model.score(refused)
    recorded = model.answer(LONG, **how, records=True)
    other = dataclasses.replace(model, config=model.config.replace(kv_heads=4))
    with pytest.raises(UserError, match="for 2 layers and 2 kv heads, and this model has 2 and 4: score it with the"):
        other.score(recorded)
    for wrong in (3, None, [ASKED, 3.5], {"a": 1}):
        with pytest.raises(UserError, match="score takes a text, token ids, a Row, an Answer"):
            model.score(wrong)
    with pytest.raises(UserError, match="temperature is -1"):
        model.score(ASKED, temperature=-1)


def test_scores_of_texts_ids_and_rows(model):
    text, other = model.score([ASKED, LONG])
    assert text[0] == 0 and (text[1:] < 0).all() and len(other) == len(model.tokenize(LONG))
    np.testing.assert_allclose(model.score(model.tokenize(ASKED)), text, atol=1e-5)
    assert not np.allclose(model.score(ASKED, temperature=2.0), text)
    thoughts = [model.tokenize(each) for each in ("1)+0 ", "2)+1 ")]
    row = build_row(model.scheme, model.special, "Sum", thoughts, model.tokenize)
    plain = model.score(row.tokens)
    dies = int(row.death.min())
    scored = model.score(row)
    np.testing.assert_allclose(scored[: dies + 1], plain[: dies + 1], atol=1e-5)
    assert np.abs(scored[dies + 1 :] - plain[dies + 1 :]).max() > 1e-3, "under the row's lifetimes"
    for wrong, line in (("", "there is nothing to score"), ([9999], "token id 9999 is outside")):
        with pytest.raises(UserError, match=line):
            model.score(wrong)


def test_a_saved_model_is_the_same(model, tmp_path):
    again = lt_jax.load(model.save(tmp_path / "again"))
    assert (again.card, again.scheme, again.stop) == (model.card, model.scheme, model.stop)
    assert again.generate(ASKED, max_new=8, max_thought=9) == model.generate(ASKED, max_new=8, max_thought=9)
    with pytest.raises(UserError, match="a checkpoint is there already"):
        model.save(tmp_path / "again")
    model.decoding_as("vanilla").save(tmp_path / "again", overwrite=True, dtype="bfloat16")
    assert lt_jax.load(tmp_path / "again").scheme == model.scheme, "what it was trained for, however it is decoded"
    plain = lt_jax.load(make(tmp_path / "plain"))
    assert not (plain.save(tmp_path / "copy") / "lt_jax.json").exists()
    huggingface.read_config(tmp_path / "copy")
