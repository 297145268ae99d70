"""The loss, the step and the loop."""

import ctypes
import dataclasses
import io
import itertools
import json
import mmap
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax.errors import UserError
from lt_jax.layout.packing import pack_rows
from lt_jax.layout.row import Role, Row
from lt_jax.lifetimes import NEVER
from lt_jax.models import decoder, lora
from lt_jax.models import params as parameters
from lt_jax.models.config import LoraConfig
from lt_jax.training import heap, metrics, optimizer, run, step
from lt_jax.training import loss as losses
from lt_jax.training import mesh as meshes
from lt_jax.training import state as states
from tests.training_tools import LENGTH, MODEL, ROWS, batch, config, data

PARAMS = parameters.init(jax.random.key(0), MODEL)


def one_device():
    return meshes.make(config().mesh, jax.devices()[:1])


def gradients(params, given, model=MODEL, **more):
    trained, frozen = states.split(params, states.trainable_mask(model))
    return jax.jit(lambda t, b: step.gradients(t, frozen, model, config(**more), b))(trained, given)


def plain_loss(trained, frozen, model, given):
    """The definition: all logits at once, autodiff through log_softmax."""
    params = states.merge(trained, frozen)
    lifetimes = step.lifetimes(given, "causal")
    x = decoder.forward(params, model, given["tokens"], given["positions"], lifetimes, implementation="dense")
    logp = jax.nn.log_softmax(decoder.logits(params, model, x))
    chosen = jnp.take_along_axis(logp, given["targets"][..., None], -1)[..., 0]
    return -jnp.sum(chosen * given["weights"]) / given["weights"].sum()


def close(ours, theirs, tolerance=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("chunk", [0, 96])
def test_chunked_loss_is_the_plain_loss_with_its_gradients(tied, chunk):
    model = MODEL.replace(tie_embeddings=tied)
    params = parameters.init(jax.random.key(1), model)
    loss, accuracy, grads = gradients(params, batch(), model, loss_chunk=chunk)
    expected, expected_grads = jax.value_and_grad(plain_loss)(params, {}, model, batch())
    close(loss, expected)
    close(grads, expected_grads)
    assert 0 <= accuracy < 0.3


def test_chunk_never_holds_all_logits_of_a_large_vocabulary():
    real = MODEL.replace(vocab_size=151_936)
    assert losses.chunk_size(32_768, real) == 384
    assert losses.chunk_size(100, real) == 100
    assert losses.chunk_size(32_768, MODEL) == 32_768


def test_no_logits_array_in_the_compiled_step():
    model = MODEL.replace(vocab_size=4096)
    params = parameters.init(jax.random.key(1), model)
    run_step = jax.jit(lambda p, b: step.gradients(p, {}, model, config(loss_chunk=16), b))
    text = run_step.lower(params, batch()).compile().as_text()
    assert "[16,4096]" in text
    assert f"[{ROWS * LENGTH},4096]" not in text and f"[{ROWS},{LENGTH},4096]" not in text


@pytest.mark.parametrize("pieces", [2, 4])
def test_accumulation_equals_the_big_batch(pieces):
    given = batch()
    given["weights"][0] = 0  # microbatches with different numbers of trained tokens
    close(gradients(PARAMS, given, accumulate=pieces), gradients(PARAMS, given))


def layers_and_heads(given, layers=MODEL.layers, heads=MODEL.kv_heads, seed=0):
    """The batch with recorded deaths [B, layers, heads, S] on top of its own, the last four tokens padding."""
    index, shape = np.arange(LENGTH, dtype=np.int32), (len(given["death"]), layers, heads, LENGTH)
    died = (index + np.random.default_rng(seed).geometric(0.1, shape)).astype(np.int32)
    pad = index >= LENGTH - 4
    death = np.where(pad, index + 1, np.minimum(died, given["death"][:, None, None]))
    given = given | {"death": death.astype(np.int32), "weights": given["weights"] * ~pad}
    return given | {"since": np.where(pad, index, given["since"])}


@pytest.mark.parametrize(("layers", "heads"), [(2, 2), (2, 1), (1, 2)])
def test_recorded_deaths_go_through_a_step(layers, heads):
    given = layers_and_heads(batch(), layers, heads)
    expected, expected_grads = jax.jit(jax.value_and_grad(plain_loss), static_argnums=2)(PARAMS, {}, MODEL, given)
    for more in (dict(), dict(attention="blocked", remat="layer", accumulate=2)):
        loss, _, grads = gradients(PARAMS, given, **more)
        close((loss, grads), (expected, expected_grads))
    shared = given | {"death": given["death"][:, 0, 0]}
    assert abs(gradients(PARAMS, shared)[0] - loss) > 1e-4
    assert int(jnp.sum(step.padding(given))) == 4 * ROWS
    found = step.make_eval_step(MODEL, config(), one_device())(PARAMS, {}, meshes.place_batch(one_device(), given))
    close(found["loss"] / found["weights"], expected)


@pytest.mark.parametrize("remat", ["dots", "layer"])
def test_remat_changes_nothing(remat):
    close(gradients(PARAMS, batch(), remat=remat), gradients(PARAMS, batch()), 1e-6)


@pytest.mark.parametrize("more", [dict(), dict(accumulate=2, attention="dense")])
def test_layers_one_after_the_other_are_the_loop_of_them(more):
    split = states.split(PARAMS, states.trainable_mask(MODEL))
    unrolled = jax.jit(lambda *tree: step.gradients(*tree, MODEL, config(**more), batch(), unroll=True))
    close(unrolled(*split), gradients(PARAMS, batch(), **more), 1e-6)


def test_a_step_loops_over_layers_but_for_a_few_on_one_cpu():
    def loops(**more):
        mesh, settings = one_device(), config(loss_chunk=0, attention="dense", **more)
        tx = optimizer.make(settings.optim, 6)
        state, frozen = states.create(PARAMS, MODEL, tx, jax.random.key(0), mesh)
        made = step.make_step(MODEL, settings, tx, mesh, state)
        text = made.lower(state, frozen, meshes.place_batch(mesh, batch())).as_text()
        return text.count("stablehlo.while")

    assert loops() + 2 == loops(remat="layer")  # forward and backward
    assert not step.unrolled(dataclasses.replace(MODEL, layers=step.FEW + 1), config(), one_device())
    mesh = lambda size, platform: types.SimpleNamespace(
        size=size, devices=np.array([types.SimpleNamespace(platform=platform)] * size)
    )
    assert step.unrolled(MODEL, config(), mesh(1, "cpu"))
    assert not step.unrolled(MODEL, config(), mesh(1, "tpu")) and not step.unrolled(MODEL, config(), mesh(2, "cpu"))


def test_packed_rows_have_the_loss_of_padded_ones():
    def row(seed, n):
        draw = np.random.default_rng(seed)
        index, whole = np.arange(n, dtype=np.int32), np.ones(n, np.int32)
        death = np.where(index < n // 2, n // 2 + 1, NEVER).astype(np.int32)
        return Row(draw.integers(1, 60, n).astype(np.int32), (whole * Role.TEXT).astype(np.int8), index > 2, index,
                   death, 0 * whole, -whole, -whole)  # fmt: skip

    rows = [row(1, 12), row(2, 9), row(3, 11)]
    stack = lambda listed: {name: np.stack([each[name] for each in listed]) for name in listed[0]}
    packed = stack([pack_rows(rows, 32, 0)])
    padded = stack([pack_rows([each], 32, 0) for each in rows])
    (loss, accuracy, grads), (loss2, accuracy2, grads2) = gradients(PARAMS, packed), gradients(PARAMS, padded)
    close((loss, accuracy, grads), (loss2, accuracy2, grads2))
    assert int(np.sum(~np.asarray(step.padding(padded)))) == 32 == int(np.sum(~np.asarray(step.padding(packed))))


def test_the_loss_falls_to_nothing_on_one_batch():
    given = batch(rows=2)
    given["weights"][:] = 1
    result = run.train(config(steps=60, log_every=0), MODEL, PARAMS, itertools.repeat(given), mesh=one_device())
    assert result.finished
    values = dict(result.history)[60]
    final = run.eval_loss(
        lambda b: step.make_eval_step(MODEL, config(), one_device())(result.params, {}, b), [given]
    )
    assert final["eval_loss"] < 0.2 and final["eval_accuracy"] > 0.98
    assert values["tokens"] == 60 * 2 * LENGTH == values["trained_tokens"]


def test_muon_learns_and_trains_every_leaf():
    result = run.train(config(steps=20, optim={"name": "muon", "adam_rate": 0.5}), MODEL, PARAMS,
                       itertools.repeat(batch(rows=2)), mesh=one_device())  # fmt: skip
    assert result.history[-1][1]["loss"] < 0.6 * result.history[0][1]["loss"]
    changed = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), result.params, PARAMS)
    assert all(jax.tree.leaves(changed))


def test_start_parameters_survive_the_run():
    run.train(config(steps=1), MODEL, PARAMS, data(), mesh=one_device())
    assert not any(x.is_deleted() for x in jax.tree.leaves(PARAMS))


def test_lora_trains_adapters_only_and_keeps_the_base():
    params = parameters.init(jax.random.key(0), MODEL, jnp.bfloat16)
    adapted, model = lora.add(params, MODEL, LoraConfig(rank=2, rows=(50, 4)), jax.random.key(5))
    result = run.train(config(steps=3), model, adapted, data(), mesh=one_device())
    assert set(result.state.trained) == {"layers", "new_rows"}
    moments = [x.shape for x in jax.tree.leaves(result.state.opt_state) if x.ndim]
    assert (MODEL.vocab_padded, MODEL.hidden) not in moments
    for path, value in jax.tree_util.tree_leaves_with_path(result.params):
        names = tuple(part.key for part in path)
        before = adapted
        for name in names:
            before = before[name]
        trained = names[-1] in ("lora_a", "lora_b") or names[0] == "new_rows"
        assert trained == bool(jnp.any(value != before)), names
        assert value.dtype == (jnp.float32 if trained else jnp.bfloat16)


def test_weights_of_a_step_in_bfloat16_move_as_those_in_float32_do():
    """At a rate of 2e-5: an update is less than half a unit of bfloat16 in most weights, and would be lost there."""
    start = jax.tree.map(lambda x: np.asarray(x.astype(jnp.bfloat16), np.float32), PARAMS)
    optim = {"learning_rate": 2e-5, "warmup": 0.0, "end_fraction": 1.0}
    moved = {}
    for dtype in (jnp.float32, jnp.bfloat16):
        settings = config(steps=100, log_every=0, params_dtype=dtype.dtype.name, optim=optim)
        result = run.train(settings, MODEL, jax.tree.map(dtype, start), itertools.repeat(batch(rows=2)),
                           mesh=one_device(), keep_params=False)  # fmt: skip
        floats = {x.dtype.name for x in jax.tree.leaves(result.state) if jnp.issubdtype(x.dtype, jnp.floating)}
        assert floats == {"float32"}
        difference = jax.tree.map(lambda a, b: np.ravel(a - b), result.params, start)
        moved[dtype] = np.concatenate(jax.tree.leaves(difference))
    ours, exact = moved[jnp.bfloat16], moved[jnp.float32]
    assert np.mean(ours != 0) > 0.99 * np.mean(exact != 0) > 0.5
    assert np.corrcoef(ours, exact)[0, 1] > 0.98 and abs(np.abs(ours).mean() / np.abs(exact).mean() - 1) < 0.02


def test_a_step_in_bfloat16_computes_with_rounded_weights_and_accumulates_in_float32():
    rounded = jax.tree.map(lambda x: x.astype(jnp.bfloat16).astype(jnp.float32), PARAMS)
    loss, _, grads = gradients(PARAMS, batch(), params_dtype="bfloat16")
    expected, _, expected_grads = gradients(rounded, batch())
    close(loss, expected, 1e-6)
    for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
        assert ours.dtype == jnp.float32
        np.testing.assert_allclose(ours, theirs, rtol=2**-8, atol=1e-6)
    cut = gradients(PARAMS, batch(), params_dtype="bfloat16", accumulate=2)[2]
    assert {x.dtype for x in jax.tree.leaves(cut)} == {jnp.dtype("float32")}


def test_the_gradient_of_a_token_at_many_places_is_no_bfloat16_sum():
    given = batch(rows=4, length=256)
    given["tokens"][:] = 7
    ours, exact = (gradients(PARAMS, given, params_dtype=name)[2]["embed"][7] for name in ("bfloat16", "float32"))
    assert np.linalg.norm(ours - exact) < 0.02 * np.linalg.norm(exact)


def test_lora_gradients_are_those_of_the_plain_loss():
    adapted, model = lora.add(PARAMS, MODEL, LoraConfig(rank=2, rows=(50, 4)), jax.random.key(5))
    adapted["layers"] = jax.tree.map(lambda x: x + 0.01, adapted["layers"])  # B is zero at the start
    loss, _, grads = gradients(adapted, batch(), model, loss_chunk=64)
    expected, expected_grads = jax.value_and_grad(plain_loss)(
        *states.split(adapted, states.trainable_mask(model)), model, batch()
    )
    close((loss, grads), (expected, expected_grads))


def test_the_step_compiles_once_and_gives_up_the_old_state():
    mesh, tx = one_device(), optimizer.make(config().optim, 6)
    state, frozen = states.create(PARAMS, MODEL, tx, jax.random.key(0), mesh)
    jitted = step.make_step(MODEL, config(), tx, mesh, state)
    first, given = state, data()
    for _ in range(3):
        state, _ = jitted(state, frozen, meshes.place_batch(mesh, next(given)))
    assert jitted._cache_size() == 1
    assert all(x.is_deleted() for x in jax.tree.leaves(first.trained))
    assert int(state.step) == 3


def test_a_run_compiles_its_step_once(monkeypatch):
    traced = []
    original = step.gradients
    monkeypatch.setattr(step, "gradients", lambda *args: traced.append(1) or original(*args))
    run.train(config(steps=5, attention="blocked"), MODEL, PARAMS, data(), mesh=one_device())
    assert len(traced) == 1


def test_the_schedule_warms_up_and_ends_where_asked():
    rate = optimizer.schedule(config(optim={"learning_rate": 1.0, "warmup": 0.1, "end_fraction": 0.2}).optim, 100)
    assert rate(10) == 1.0 and rate(5) < rate(9) < 1.0
    assert rate(0) > 0, "no step is wasted"
    np.testing.assert_allclose(rate(100), 0.2, atol=1e-6)
    np.testing.assert_allclose(rate(55), 0.6, atol=1e-6)


def test_norms_and_biases_do_not_decay():
    model = MODEL.replace(qkv_bias=True, qk_norm=True)
    mask = optimizer.decay_mask(parameters.specs(model))
    names = {".".join(p.key for p in path) for path, decays in jax.tree_util.tree_leaves_with_path(mask) if decays}
    assert names == {"embed", *(f"layers.{name}.w" for name in ("q", "k", "v", "o", "gate", "up", "down"))}


def test_clipping_and_decay_are_optax_own():
    params = {"layers": {"q": {"w": jnp.ones((1, 2, 2))}}, "final_norm": jnp.ones(2)}
    grads = jax.tree.map(lambda x: 100 * x, params)
    tx = optimizer.make(config(optim={"clip": 1.0, "weight_decay": 0.1, "warmup": 0.0}).optim, 10)
    updates, _ = tx.update(grads, tx.init(params), params)
    expected = optax.adamw(1e-2, b2=0.999, weight_decay=0.0)
    plain, _ = expected.update(optax.tree.scale(1 / optax.tree.norm(grads), grads), expected.init(params), params)
    close(updates["final_norm"], plain["final_norm"])
    close(updates["layers"]["q"]["w"], plain["layers"]["q"]["w"] - 1e-2 * 0.1)


def test_a_loss_that_is_no_number_names_its_step_and_window():
    def poisoned():
        for number in itertools.count(1):
            given = batch(number)
            if number == 3:
                given["weights"][0, 0] = np.nan
            yield given

    with pytest.raises(UserError, match=r"the loss is nan .* at step 3 \(logged window 1..4\)"):
        run.train(config(log_every=4), MODEL, PARAMS, poisoned(), mesh=one_device())


def test_data_that_ends_is_said_so():
    with pytest.raises(UserError, match="training data ended before step 3"):
        run.train(config(), MODEL, PARAMS, iter([batch(0), batch(1)]), mesh=one_device())


def test_evaluation_during_training(tmp_path):
    seen = []
    writer = metrics.Jsonl(tmp_path / "metrics.jsonl")
    result = run.train(
        config(steps=4, eval_every=2), MODEL, PARAMS, data(), mesh=one_device(),
        eval_data=lambda: [batch(100), batch(101)], evaluate=lambda params, done: seen.append(done) or {"solved": done},
        writers=[writer],
    )  # fmt: skip
    assert seen == [2, 4]
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 2, 4, 4] == [done for done, _ in result.history]
    assert {"loss", "accuracy", "grad_norm", "tokens_per_second", "learning_rate"} <= set(lines[0])
    assert lines[3]["eval_solved"] == 4 and lines[1]["eval_loss"] > 0
    both = {name: np.concatenate([batch(100)[name], batch(101)[name]]) for name in batch()}
    close(lines[3]["eval_loss"], plain_loss(result.params, {}, MODEL, both))


def test_the_terminal_shows_lines_where_it_is_none_and_a_bar_where_it_is():
    values = {"loss": 1.25, "accuracy": 0.5, "tokens": 10.0, "tokens_per_second": 12345.6}
    plain, terminal = io.StringIO(), io.StringIO()
    terminal.isatty = lambda: True
    metrics.Terminal(100, plain).write(50, values)
    metrics.Terminal(100, terminal).write(50, values)
    assert plain.getvalue() == "step 50/100  loss 1.25  accuracy 0.5  tokens/s 12,346\n"
    assert "█" * 12 + "·" * 12 in terminal.getvalue() and "left 0:0" in terminal.getvalue()


def test_resumed_metrics_drop_what_will_be_run_again(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 2, "loss": 1}\n{"step": 4, "loss": 1}\n{"step": 6, "lo')
    writer = metrics.Jsonl(path, resume_step=3)
    writer.write(4, {"loss": float("nan")})
    writer.close()
    assert path.read_text() == '{"step": 2, "loss": 1}\n{"step": 4, "loss": null}\n'


@pytest.mark.parametrize(
    "values, said",
    [
        ({"steps": 0}, "train.steps is 0 and train.epochs is 0; give one of them, above 0"),
        ({"epochs": -1.0}, "train.steps is 6 and train.epochs is -1; give one of them, above 0"),
        ({"remat": "some"}, "train.remat is 'some'"),
        ({"optim": {"name": "sgd"}}, "optim.name is 'sgd'"),
        ({"optim": {"learning_rate": 0.0}}, "optim.learning_rate is 0.0"),
        ({"optim": {"adam_rate": 0.5}}, "is for muon only"),
    ],
)
def test_bad_configs_are_refused(values, said):
    with pytest.raises(UserError, match=said):
        config(**values)


def test_the_loop_itself_needs_steps():
    with pytest.raises(UserError, match="train.steps is 0: this loop needs a number of steps"):
        run.train(config(steps=0, epochs=1.0), MODEL, PARAMS, data(), mesh=one_device())


def test_attention_for_a_gpu_is_refused_without_one():
    with pytest.raises(UserError, match="train.attention 'triton' is "):
        run.train(config(attention="triton"), MODEL, PARAMS, data(), mesh=one_device())


class Wandb:
    """As the module `wandb` answers: a run whose id is known there is resumed after its last step."""

    def __init__(self):
        self.runs, self.given = {}, []

    def init(self, *, id, resume, **given):
        assert resume == "allow"
        self.given.append(given)
        logged = self.runs.setdefault(id, [])
        found = types.SimpleNamespace(resumed=bool(logged), finish=lambda: None)
        found.starting_step = logged[-1][0] + 1 if logged else 0
        found.log = lambda values, step: logged.append((step, values))
        return found


def test_a_run_on_weights_and_biases_goes_on_where_training_goes_on(tmp_path, monkeypatch):
    fake = Wandb()
    monkeypatch.setitem(sys.modules, "wandb", fake)
    open_run = lambda step: metrics.WeightsAndBiases("project", "name", {"a": 1}, tmp_path / "wandb_id", step)
    for start, steps in ((0, (1, 2, 3)), (2, (3, 4, 4)), (0, (1,)), (1, (2,))):
        writer = open_run(start)
        for done in steps:
            writer.write(done, {"loss": 1.0 / done})
        writer.close()
    logged = [[done for done, _ in each] for each in fake.runs.values()]
    assert logged == [[1, 2, 3, 4, 4], [1, 2]], "no step twice, and a start from step 0 is another run"
    assert {given["project"] for given in fake.given} == {"project"} and len(fake.given) == 4
    assert (tmp_path / "wandb_id").read_text().strip() == list(fake.runs)[-1]


def test_a_warmup_without_end_is_refused():
    with pytest.raises(UserError, match="optim.warmup is 6 steps of 6"):
        optimizer.schedule(config(optim={"warmup": 6.0}).optim, 6)


def test_accumulation_must_divide_the_batch():
    with pytest.raises(UserError, match="train.accumulate is 3, which does not divide the 8 rows"):
        run.train(config(accumulate=3), MODEL, PARAMS, data(), mesh=one_device())


@pytest.mark.skipif(sys.platform != "linux", reason="of glibc")
def test_what_compiling_freed_is_given_back():
    """Many blocks that are freed below one that is not: as a compiler leaves the heap."""
    libc = ctypes.CDLL(None)
    if not hasattr(libc, "malloc_trim"):
        pytest.skip("another C library")
    libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    size = 100_000
    blocks = [libc.malloc(size) for _ in range(1500)]
    for block in blocks:
        ctypes.memset(block, 1, size)
    for block in blocks[:-1]:
        libc.free(block)
    resident = lambda: int(open("/proc/self/statm").read().split()[1]) * mmap.PAGESIZE
    before = resident()
    heap.give_back()
    after = resident()
    libc.free(blocks[-1])
    assert before - after > 1000 * size
