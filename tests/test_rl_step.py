"""Updates of a tiny model against the same in float64 (tests/rl_reference.py): every preset with every loss."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax.lifetimes import NEVER
from lt_jax.models import lora
from lt_jax.models import params as parameters
from lt_jax.models.config import LINEAR_MAPS, DecoderConfig, LoraConfig
from lt_jax.rl import step as rl_step
from lt_jax.rl.config import ProblemsConfig, RlConfig, RolloutConfig
from lt_jax.rl.losses import LossConfig
from lt_jax.rl.mismatch_config import PRESETS
from lt_jax.training import mesh as meshes
from lt_jax.training import optimizer
from lt_jax.training import state as states
from lt_jax.training.config import OptimizerConfig, TrainConfig
from tests import rl_reference as plain
from tests.test_rl_mismatch import plain_advantage, reference

MODEL = DecoderConfig(vocab_size=29, vocab_rows=32, hidden=16, intermediate=24, layers=2, heads=4, kv_heads=2,
                      head_dim=4, qkv_bias=True)  # fmt: skip
NEVER_DRAWN = (27, 28)
SIZES = plain.Sizes(4, 2, 4, MODEL.rope_theta, MODEL.norm_eps, tuple(range(27)))
ROWS, LENGTH, GROUP, TEMPERATURE = 16, 24, 4, 0.8
LONGEST = 20  # of dr_grpo
RATE = 0.02
CLIPS = {"grpo": (0.2, 0.2), "dr_grpo": (0.2, 0.2), "dapo": (0.2, 0.28), "gspo": (3e-4, 4e-4), "rloo": None}
EMPTY, SINGLE, REJECTED, NEAR = 5, 6, (2, 9), (0, 3, 4, 7, 8, 11, 12)  # rows; near: hardly moved, for gspo's clip


@dataclasses.dataclass(frozen=True)
class Case:
    """An arm and a loss, and what may not change anything (accumulate) or is spread over the cases."""

    preset: str
    kind: str
    updates: int = 1
    accumulate: int = 1
    kl: str = "k3"
    kl_weight: float = 0.05
    entropy_weight: float = 0.02
    group_counts: bool = True
    loss_counts: bool = True
    advantage: str = "grpo"

    @property
    def config(self) -> RlConfig:
        replay = self.preset == "replay"
        length = LONGEST if self.kind == "dr_grpo" else None
        eviction = {"policy": "rkv", "budget": 16, "buffer": 4} if replay else None
        return RlConfig(
            "run", "model", ProblemsConfig(embedded=1), updates=self.updates, advantage=self.advantage,
            rollout=RolloutConfig(ROWS // GROUP, GROUP, temperature=TEMPERATURE, eviction=eviction),
            mismatch=PRESETS["naive" if replay else self.preset], replay=replay, dense_kl=0.1 if replay else 0.0,
            count_rejected=self.group_counts, loss=LossConfig(
                self.kind, None, self.kl, self.kl_weight, self.entropy_weight, length, self.loss_counts),
            train=TrainConfig(steps=1, accumulate=self.accumulate, attention="dense", loss_chunk=100),
        )  # fmt: skip

    @property
    def loss(self) -> plain.Loss:
        dense = 0.1 if self.preset == "replay" else 0.0
        return plain.Loss(self.kind, CLIPS[self.kind], self.kl, self.kl_weight, self.entropy_weight, LONGEST, dense,
                          TEMPERATURE)  # fmt: skip


def every_case():
    """Presets x losses; the rest takes turns, so that each of its values meets every preset and every loss."""
    for i, preset in enumerate((*PRESETS, "replay")):
        for j, kind in enumerate(CLIPS):
            on = lambda n, place=5 * i + j: place // n % 2 == 0
            yield Case(preset, kind, 1 + on(1), 1 + on(2), "k3" if on(3) else "k1", group_counts=on(4),
                       loss_counts=(i + j) % 2 == 0, advantage=("grpo", "dr_grpo", "rloo")[(i + j) % 3])  # fmt: skip


@functools.cache
def start():
    """The parameters in float32, and the same values in float64."""
    params = parameters.init(jax.random.key(0), MODEL)
    for number, name in enumerate("qkv"):  # attention that is not flat, so that it matters who is visible
        bias = 0.5 * jax.random.normal(jax.random.key(number), params["layers"][name]["b"].shape)
        params["layers"][name] = {"w": 3 * params["layers"][name]["w"], "b": bias}
    return params, jax.tree.map(lambda x: np.asarray(x, np.float64), params)


@functools.cache
def rows(evicted: bool) -> dict:
    """A rollout of four groups, whose responses take turns: forced tokens, an empty response, one of one token, two
    with an impossible token, a group whose rewards are all equal."""
    draw = np.random.default_rng(7)
    index = np.arange(LENGTH)
    prompt = 4 + np.arange(ROWS) % 3
    end = np.where(np.arange(ROWS) % 4 == 3, LENGTH, draw.integers(16, LENGTH, ROWS))
    end[EMPTY], end[SINGLE] = prompt[EMPTY], prompt[SINGLE] + 1
    inside = index < end[:, None]
    response = inside & (index >= prompt[:, None])
    forced = response & (index % 7 == 6) & (np.arange(ROWS) != SINGLE)[:, None]
    response &= ~forced
    tokens = np.where(forced, NEVER_DRAWN[0], draw.integers(0, 27, (ROWS, LENGTH)))
    method = np.where(index % 8 == 2, np.minimum(index + 9, LENGTH), NEVER)  # some keys die by the method itself
    dense = np.where(inside, method, index + 1)
    dies = index + draw.geometric(0.15, (ROWS, MODEL.layers, MODEL.kv_heads, LENGTH))
    recorded = np.minimum(np.where(draw.random(dies.shape) < 0.3, NEVER, dies), dense[:, None, None])
    deaths = recorded if evicted else np.broadcast_to(dense[:, None, None], recorded.shape)
    since = np.where(inside, 0, index)
    mask = plain.visible(deaths, since)
    logp = plain.of_tokens(np, plain.distributions(np, start()[1], SIZES, TEMPERATURE, tokens, mask), SIZES, tokens)
    near = np.isin(np.arange(ROWS), NEAR)[:, None]
    moved = lambda size: np.where(near, 1e-3, size) * draw.normal(size=logp.shape)
    old = logp + moved(0.3)
    sampler = old + np.where(near, 0.05, 0.0) * draw.normal(size=logp.shape) + moved(0.4)
    further = logp + 0.5 * draw.normal(size=logp.shape)
    for row in REJECTED:
        sampler[row, np.flatnonzero(response[row])[1]] = old[row, np.flatnonzero(response[row])[1]] + 12
    further[1, np.flatnonzero(response[1])[2]] += 4  # whose k3 is cut to 10
    group = np.arange(ROWS) % 4
    rewards = np.where(group == 3, 0.25, draw.integers(0, 3, ROWS) / 2 + 0.125 * group)
    only = lambda x: np.where(response, x, np.nan).astype(np.float32)  # what is elsewhere must not be read
    return {
        "tokens": tokens.astype(np.int32), "positions": np.tile(index, (ROWS, 1)).astype(np.int32),
        "death": (recorded if evicted else dense).astype(np.int32), "since": since.astype(np.int32),
        "gist": np.full((ROWS, LENGTH), -1, np.int32), "response": response, "group": group.astype(np.int32),
        "rewards": rewards.astype(np.float32), "logp_old": only(old), "logp_reference": only(further),
        "logp_sampler": only(old if evicted else sampler),
        "dense_death": dense.astype(np.int32), "logp": logp,
    }  # fmt: skip


def rollout(case) -> dict:
    return rows(case.preset == "replay")


ARRAYS = ("tokens", "positions", "death", "since", "gist", "response", "group", "rewards", "logp_old", "logp_sampler")
PROGRAMS = {}
# Compiled in a fifth of the time: a program that runs once on a few hundred tokens need not be fast.
QUICK = {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}


def stepped(case, batch, optim=None):
    """(trained leaves, metrics) after one step on a rollout."""
    config, mesh = case.config, meshes.make(TrainConfig().mesh, jax.devices()[:1])
    tx = optimizer.make(optim, 4) if optim else optax.sgd(RATE)
    state, frozen = states.create(start()[0], MODEL, tx, jax.random.key(0), mesh)
    names = ARRAYS + ("logp_reference",) * (case.kl_weight > 0) + ("dense_death",) * (case.preset == "replay")
    given = state, frozen, {name: jnp.asarray(batch[name]) for name in names if name in batch}
    key = case, optim, "logp_old" in batch
    if key not in PROGRAMS:
        step = rl_step.make_step(config, NEVER_DRAWN)(MODEL, config.train, tx, mesh, state)
        PROGRAMS[key] = step.lower(*given).compile(compiler_options=QUICK)
    state, found = PROGRAMS[key](*given)
    assert state.step == 1
    return state.trained, found


def updates(case, batch):
    """The updates of a rollout as `rl_reference.whole_loss` takes them: what is known before any is made."""
    response, old = batch["response"], batch["logp_old"]
    arm = "naive" if case.preset == "replay" else case.preset
    accepted = reference(arm, old, batch["logp_sampler"], response)[2]
    advantages = np.zeros(ROWS)
    for group in np.unique(batch["group"]):
        of = np.flatnonzero(batch["group"] == group)
        counted = [True] * len(of) if case.group_counts else accepted[of].tolist()
        advantages[of] = plain_advantage(case.advantage, batch["rewards"][of].astype(float).tolist(), counted)
    for update in range(case.updates):
        b = {name: x[update :: case.updates] for name, x in (batch | {"advantages": advantages}).items()}
        # The batch normalisation of weights is over an update: the batch of one step of the optimizer.
        weights, kept, accepted = reference(arm, b["logp_old"], b["logp_sampler"], b["response"])
        b |= {"weights": weights, "kept": kept, "accepted": accepted, "learned": kept & accepted[:, None]}
        each_head = lambda death: np.broadcast_to(death if death.ndim == 4 else death[:, None, None],
                                                  (len(death), MODEL.layers, MODEL.kv_heads, LENGTH))  # fmt: skip
        for name, death in (("mask", "death"), ("dense_mask", "dense_death")):
            b[name] = plain.visible(each_head(b[death]), b["since"])
        for name in ("logp_old", "logp_reference"):
            b[name] = b[name].astype(np.float64)
        yield b | {"divisor": plain.divisor(case.loss, b, case.loss_counts)}


@functools.partial(jax.jit, compiler_options=QUICK)
def pulled(params, tokens, mask, cotangent):
    """What a gradient to the distributions is to the parameters; in float64."""
    find = lambda params: plain.distributions(jnp, params, SIZES, TEMPERATURE, tokens, mask)
    return jax.vjp(find, params)[1](cotangent)[0]


def views(params, b):
    """What the policy says of the rows of an update as it sees them, and without evictions; numpy."""
    find = lambda name: plain.distributions(np, params, SIZES, TEMPERATURE, b["tokens"], b[name])
    return find("mask"), find("dense_mask")


@functools.partial(jax.jit, static_argnames="loss", compiler_options=QUICK)
def sloped(said, b, loss):
    """The loss of an update, and its gradients to what the two views say; in float64."""
    return jax.value_and_grad(lambda said: plain.whole_loss(jnp, *said, SIZES, loss, b))(said)


USED = ("tokens", "advantages", "logp_old", "logp_reference", "weights", "learned", "replay", "divisor")


def slope(loss, params, b):
    """The loss of an update by numpy, and its gradient by jax.numpy in float64, whose loss is the same."""
    said = views(params, b)
    used = {name: np.asarray(x) for name, x in (b | {"replay": said[0]}).items() if name in USED}
    value = plain.whole_loss(np, *said, SIZES, loss, used)
    with jax.enable_x64(True):
        same, slopes = sloped(said, used, loss)
        masks = ("mask", "dense_mask") if loss.dense else ("mask",)
        parts = [pulled(params, b["tokens"], b[name], to) for name, to in zip(masks, slopes, strict=False)]
        grad = jax.tree.map(lambda *parts: sum(map(np.asarray, parts)), *parts)
    np.testing.assert_allclose(same, value, rtol=1e-12, atol=1e-14)
    assert all(leaf.dtype == np.float64 for leaf in jax.tree.leaves(grad))
    return value, grad


def sgd(case, batch):
    """(parameters after the step, losses, gradients) of a case, in float64."""
    params, values, grads = start()[1], [], []
    for b in updates(case, batch):
        value, grad = slope(case.loss, params, b)
        params = jax.tree.map(lambda p, g: p - RATE * g, params, grad)
        values, grads = [*values, value], [*grads, grad]
    return params, values, grads


def norm(tree):
    return math.sqrt(sum(float((leaf**2).sum()) for leaf in jax.tree.leaves(tree)))


def close(found, expected, largest):
    """Leaves that have made a step, within 2e-5 of its largest entry, and what their own float32 rounds off."""
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=2e-7, atol=2e-5 * largest)


def same_start(trained):
    jax.tree.map(np.testing.assert_array_equal, trained, start()[0])


CASES = list(every_case())
named = functools.partial(pytest.mark.parametrize, "case", ids=lambda case: f"{case.preset}-{case.kind}")


@named(CASES)
def test_a_step_is_that_of_float64(case):
    batch = rollout(case)
    expected, values, grads = sgd(case, batch)
    trained, found = stepped(case, batch)
    assert found["tokens_learned"] == sum(b["learned"].sum() for b in updates(case, batch))
    np.testing.assert_allclose(found["loss"], np.mean(values), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["grad_norm"], np.mean([norm(grad) for grad in grads]), rtol=1e-5)
    largest = RATE * max(np.abs(leaf).max() for grad in grads for leaf in jax.tree.leaves(grad))
    close(trained, expected, largest)
    parts = [found[f"{name}_loss"] for name in ("policy", "kl", "entropy", "dense_kl") if f"{name}_loss" in found]
    np.testing.assert_allclose(sum(parts), found["loss"], rtol=1e-5, atol=1e-6)
    assert len(parts) == 3 + (case.preset == "replay") and all(part != 0 for part in parts)
    assert all(np.isfinite(value) for value in found.values())


@named([case for case in CASES if case.preset in ("release", "replay")])
def test_the_gradient_of_the_reference_is_the_slope_of_its_numpy_loss(case):
    """Along a random direction of all parameters at once: the model, and every part of the loss."""
    params, draw = start()[1], np.random.default_rng(1)

    def found(b, step, ahead):
        moved = jax.tree.map(lambda p, way: p + step * way, params, ahead)
        return plain.whole_loss(np, *views(moved, b), SIZES, case.loss, b | {"replay": views(params, b)[0]})

    for b in updates(case, rollout(case)):
        _, grad = slope(case.loss, params, b)
        ahead = jax.tree.map(lambda p: draw.normal(size=p.shape), params)
        wanted = sum(float((g * way).sum()) for g, way in zip(*map(jax.tree.leaves, (grad, ahead)), strict=True))
        np.testing.assert_allclose((found(b, 1e-7, ahead) - found(b, -1e-7, ahead)) / 2e-7, wanted, rtol=1e-4)


def test_the_rollout_has_all_that_a_step_must_get_right():
    batch = rows(False)
    response, group = batch["response"], batch["group"]
    assert not response[EMPTY].any() and response[SINGLE].sum() == 1
    forced = np.isin(batch["tokens"], NEVER_DRAWN)
    assert forced.any(1).sum() > 8 and not (forced & response).any()
    assert [len(set(batch["rewards"][group == g])) > 1 for g in range(4)] == [True, True, True, False]
    for case in CASES:  # nothing is so near to a bound that float32 could find it on the other side
        seen = clipped = outside = 0
        for b in updates(case, rollout(case)):
            xi = np.exp(b["logp_old"] - b["logp_sampler"])[b["response"]]
            assert min(np.abs(xi / bound - 1).min() for bound in (0.5, 1.5, 1e-4)) > 1e-5
            outside += int(b["response"].sum() - b["kept"].sum())
            logp = plain.of_tokens(np, views(start()[1], b)[0], SIZES, b["tokens"])
            r = plain.ratio(np, case.loss, logp, b)[b["learned"]]
            seen += len(r)
            if low_high := CLIPS[case.kind]:
                low, high = 1 - low_high[0], 1 + low_high[1]
                assert min(np.abs(r - low).min(), np.abs(r - high).min()) > 1e-5
                clipped += int(((r < low) | (r > high)).sum())
            assert case.preset in ("naive", "replay") or 0 < (~b["accepted"]).sum() < len(b["accepted"])
        assert (0 < clipped < seen) == (case.kind != "rloo") and (outside > 0) == (case.preset == "release")


@pytest.mark.parametrize("kind", CLIPS)
def test_whether_the_rejected_count_matters_to_the_float64_loss(kind):
    """So that the cases above tell the two ways apart, in the mean of a group and in what the loss is divided by."""
    find = lambda group, loss: [
        float(plain.whole_loss(np, *views(start()[1], b), SIZES, case.loss, b))
        for case in (Case("paper", kind, group_counts=group, loss_counts=loss),) for b in updates(case, rows(False))
    ]  # fmt: skip
    values = sum((find(group, loss) for group in (True, False) for loss in (True, False)), [])
    assert np.diff(np.sort(values)).min() > 1e-4 * np.abs(values).max()


@pytest.mark.parametrize("case, pieces", [(Case("release", "dapo"), 4), (Case("release", "gspo", updates=2), 2)])
def test_cutting_a_batch_changes_nothing(case, pieces):
    whole, found = stepped(case, rows(False))
    trained, others = stepped(dataclasses.replace(case, accumulate=pieces), rows(False))
    for ours, theirs in zip(*map(jax.tree.leaves, (trained, whole)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-6)
    assert others.keys() == found.keys()
    for name in found:
        np.testing.assert_allclose(others[name], found[name], rtol=2e-5, atol=1e-6, err_msg=name)


@named([case for case in CASES if case.preset == "paper"])
def test_a_rejected_response_has_no_gradient_and_no_kl(case):
    """Nothing that it says matters; if all are rejected, nothing is learned at all."""
    batch = rows(False)
    response, rejected = batch["response"], np.isin(np.arange(ROWS), REJECTED)[:, None]
    trained, found = stepped(case, batch)
    others = batch | {
        "tokens": np.where(response & rejected, 1 + batch["tokens"] % 20, batch["tokens"]),
        "logp_reference": np.where(rejected, batch["logp_reference"] - 3, batch["logp_reference"]),
    }
    again, same = stepped(case, others)
    jax.tree.map(np.testing.assert_array_equal, again, trained)
    assert same["loss"] == found["loss"] and same["kl_loss"] == found["kl_loss"]
    np.testing.assert_allclose(found["rejected"], len(REJECTED) / (ROWS - 1), rtol=1e-6)  # of responses with tokens
    nothing, none = stepped(case, batch | {"logp_sampler": batch["logp_old"] + 15})
    # The response without tokens is accepted, and has nothing to learn from either.
    same_start(nothing)
    assert none["rejected"] == 1 and none["loss"] == none["grad_norm"] == none["kl_loss"] == 0


@pytest.mark.parametrize("kind", ["grpo", "rloo"])
def test_where_all_rewards_are_equal_only_kl_and_entropy_move_the_policy(kind):
    equal = rows(False) | {"rewards": rows(False)["group"].astype(np.float32)}
    trained, found = stepped(Case("release", kind, kl_weight=0.0, entropy_weight=0.0), equal)
    same_start(trained)
    assert found["without_signal"] == 1 and found["grad_norm"] == found["loss"] == found["advantage_abs"] == 0
    case = next(case for case in CASES if case.preset == "release" and case.kind == kind)
    trained, found = stepped(case, equal)
    expected, values, grads = sgd(case, equal)
    close(trained, expected, RATE * max(np.abs(leaf).max() for grad in grads for leaf in jax.tree.leaves(grad)))
    np.testing.assert_allclose(found["loss"], np.mean(values), rtol=1e-5)
    assert found["policy_loss"] == 0 and found["grad_norm"] > 0


def test_a_step_of_adam_is_that_of_float64():
    """The paper's optimizer, but for an eps that does not blow up what float32 rounds off."""
    case, rate, b1, b2, eps, decay = Case("paper", "grpo", updates=2), 0.02, 0.9, 0.98, 0.1, 0.1
    optim = OptimizerConfig("adamw", rate, 0.0, 1.0, b1, b2, eps, decay, clip=0.5)
    params = start()[1]
    mean = square = jax.tree.map(np.zeros_like, params)
    for count, b in enumerate(updates(case, rows(False)), 1):
        _, grad = slope(case.loss, params, b)
        size = norm(grad)
        assert size > 0.5  # so that it is clipped
        grad = jax.tree.map(lambda g, by=0.5 / size: by * g, grad)
        mean = jax.tree.map(lambda m, g: b1 * m + (1 - b1) * g, mean, grad)
        square = jax.tree.map(lambda v, g: b2 * v + (1 - b2) * g * g, square, grad)

        def moved(path, p, m, v, count=count):
            decays = not any(word in jax.tree_util.keystr(path) for word in ("norm", "'b'"))
            step = m / (1 - b1**count) / (np.sqrt(v / (1 - b2**count)) + eps)
            return p - rate * (step + decay * p * decays)

        params = jax.tree_util.tree_map_with_path(moved, params, mean, square)
    trained, _ = stepped(case, rows(False), optim)
    close(trained, params, rate)


@pytest.mark.parametrize("evicted", [False, True])
def test_log_probs_before_a_step_are_those_of_float64(evicted):
    """By weights that are given, in as many pieces as a step is cut into; 0 for what cannot be drawn, and at first."""
    batch = rows(evicted)
    config, mesh = Case("replay", "grpo", 2, 2).config, meshes.make(TrainConfig().mesh, jax.devices()[:1])
    given = start()[0], {name: jnp.asarray(batch[name]) for name in ARRAYS}
    found = rl_step.make_logps(MODEL, config, NEVER_DRAWN, mesh).lower(*given).compile(compiler_options=QUICK)(*given)
    inside = (batch["tokens"] < NEVER_DRAWN[0]) & (batch["since"] == 0) & (np.arange(LENGTH) > 0)
    np.testing.assert_allclose(np.asarray(found)[inside], batch["logp"][inside], atol=1e-5)
    assert not np.asarray(found)[:, 0].any() and not np.asarray(found)[batch["tokens"] == NEVER_DRAWN[0]].any()
    if evicted:  # what was evicted matters
        assert np.abs(batch["logp"] - rows(False)["logp"])[batch["response"]].max() > 0.1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_finds_the_log_probs_before_it_by_itself(accumulate):
    """Where they are not given and it need not know them sooner (`RlConfig.fresh`): the same step, the same metrics."""
    case = Case("paper", "grpo", 1, accumulate)
    assert case.config.fresh and Case("naive", "dapo", group_counts=False).config.fresh
    for other in (Case("release", "grpo"), Case("paper", "dapo"), Case("paper", "grpo", 2),
                  Case("paper", "grpo", group_counts=False), Case("paper", "grpo", loss_counts=False)):  # fmt: skip
        assert not other.config.fresh
    batch = dict(rows(False))
    batch["logp_old"] = np.where(batch["response"], batch["logp"], np.nan).astype(np.float32)
    given, said = stepped(case, batch)
    del batch["logp_old"]
    own, found = stepped(case, batch)
    assert said["rejected"] > 0 and said["clip_fraction"] == 0
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-6), given, own)
    for name in found.keys() & said.keys():
        np.testing.assert_allclose(found[name], said[name], rtol=1e-4, atol=1e-6, err_msg=name)


def test_adapters_learn_what_float64_says_of_the_weights_they_make():
    """Under LoRA the gradient to A is that of A B's sum with the weights times B, and the other way round."""
    case, draw = Case("release", "grpo"), np.random.default_rng(5)
    params, model = lora.add(start()[0], MODEL, LoraConfig(rank=2, alpha=3.0), jax.random.key(3))
    for name in LINEAR_MAPS:
        shape = params["layers"][name]["lora_b"].shape
        params["layers"][name]["lora_b"] = jnp.asarray(0.1 * draw.normal(size=shape), jnp.float32)
    whole = jax.tree.map(lambda x: np.asarray(x, np.float64), start()[0])
    doubled = lambda name, leaf: np.asarray(params["layers"][name][leaf], np.float64)
    for name in LINEAR_MAPS:
        w, a, b = (doubled(name, leaf) for leaf in ("w", "lora_a", "lora_b"))
        whole["layers"][name]["w"] = w + 1.5 * a @ b
    (b,) = updates(case, rows(False))
    value, grad = slope(case.loss, whole, b)
    config, mesh = case.config, meshes.make(TrainConfig().mesh, jax.devices()[:1])
    trained, frozen = states.split(params, states.trainable_mask(model))
    given = {name: jnp.asarray(rows(False)[name]) for name in (*ARRAYS, "logp_reference")}
    given |= {"advantages": jnp.asarray(b["advantages"], jnp.float32)}
    find = lambda trained, frozen, batch: rl_step.gradients(trained, frozen, model, config, NEVER_DRAWN, batch, mesh)
    found, sums, _ = jax.jit(find, compiler_options=QUICK)(trained, frozen, given)
    np.testing.assert_allclose(sums["loss"], value, rtol=1e-5)
    expected = {}
    for name in LINEAR_MAPS:
        g = grad["layers"][name]["w"]
        expected[name] = {"lora_a": 1.5 * g @ doubled(name, "lora_b").swapaxes(1, 2),
                          "lora_b": 1.5 * doubled(name, "lora_a").swapaxes(1, 2) @ g}  # fmt: skip
    assert found.keys() == {"layers"}
    close(found["layers"], expected, max(np.abs(leaf).max() for leaf in jax.tree.leaves(expected)))
