"""Responses that share a row and their prompt: the mask, and the same updates as with a row for each of them."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from lt_jax.cache.policies import Eviction
from lt_jax.decode import Completion, DecodeConfig, Engine, Request, Sampling
from lt_jax.layout.scheme import Scheme
from lt_jax.lifetimes import NEVER, Lifetimes, dense_mask, draw
from lt_jax.rl import sharing
from lt_jax.rl import step as rl_step
from lt_jax.rl.config import ProblemsConfig, RlConfig, RolloutConfig
from lt_jax.rl.losses import LossConfig
from lt_jax.rl.mismatch_config import PRESETS
from lt_jax.training import mesh as meshes
from lt_jax.training import state as states
from lt_jax.training import step as steps
from lt_jax.training.config import TrainConfig
from tests.test_rl_step import QUICK
from tests.test_score import MODEL, PARAMS, SPECIAL, UNSAID
from tests.test_split import over_eight_devices

BUDGET = {"policy": "rkv", "budget": 20, "buffer": 8}
PROMPTS, GROUP, NEW, LENGTH = 4, 4, 40, 88
SCHEMES = {
    "keys live": Scheme(method="vanilla"),
    "budget": Scheme(method="vanilla"),
    "thoughts": Scheme(n_gist=2, gist_rule="bidirectional"),
    "diagonal": Scheme(n_gist=2, gist_rule="diagonal", exclude_continue=True),
    "anllm": Scheme(method="anllm"),
}


def config(name="keys live", preset="paper", prompts=PROMPTS, group=GROUP, updates=1, accumulate=1, **more) -> RlConfig:
    loss = LossConfig(kl_weight=0.05, entropy_weight=0.02)
    rollout = RolloutConfig(prompts, group, 16, NEW, temperature=0.8, eviction=BUDGET if name == "budget" else None)
    train = TrainConfig(steps=1, accumulate=accumulate, gist_rule=SCHEMES[name].gist_rule, **more)
    return RlConfig("run", "model", ProblemsConfig(embedded=1), rollout, mismatch=PRESETS[preset], updates=updates,
                    loss=loss, train=train)  # fmt: skip


@functools.cache
def groups(name: str) -> tuple[list[Completion], ...]:
    """Four responses to each of four prompts of 5 to 14 tokens; some end early."""
    how = Eviction("rkv", budget=20, buffer=8, window=4, sinks=1) if name == "budget" else None
    options = DecodeConfig(rows=8, block_steps=16, capacity=LENGTH, sampling=Sampling(0.8), eviction=how,
                           max_thought=None if SCHEMES[name].method == "vanilla" else 9)  # fmt: skip
    numbers = np.random.default_rng(0)
    asked = [Request(numbers.integers(0, 40, 5 + 3 * i), NEW, seed=i, id=i, n=GROUP) for i in range(PROMPTS)]
    done = Engine(PARAMS, MODEL, SCHEMES[name], SPECIAL, options).complete(asked)
    return tuple(tuple(c for c in done if c.id == i) for i in range(PROMPTS))


def rollout(name: str, how: RlConfig) -> list[Completion]:
    flat = [c for group in groups(name) for c in group]
    return [flat[place] for place in sharing.order(how)]


def by_hand(responses: list[list[int]], prompt: int, **lifetimes) -> list[Completion]:
    """Completions of the prompt 0, 1 ... with these tokens; what is not given is as if nothing ever died."""
    of = groups("keys live")[0][0]
    made = []
    for i, tokens in enumerate(responses):
        n = prompt + len(tokens)
        arrays = {"death": np.full(n, NEVER), "since": np.zeros(n, int), "block": np.full(n, -1)}
        arrays |= {name: np.asarray(values[i]) for name, values in lifetimes.items()}
        made.append(dataclasses.replace(
            of, prompt=np.arange(prompt), tokens=np.asarray(tokens, int), forced=np.zeros(len(tokens), bool),
            logp=-1.0 - np.arange(len(tokens)), **arrays))  # fmt: skip
    return made


def mask_of(batch: dict, rule="causal") -> np.ndarray:
    life = Lifetimes(*(jnp.asarray(batch[name]) for name in ("death", "since", "gist")), rule)
    return np.asarray(dense_mask(life))[0, 0]


def test_the_mask_is_the_drawing_of_the_docstring():
    how = config(prompts=1, group=2)
    batch = sharing.batch(how, sharing.Sizes(2, 6, 9), by_hand([[2, 3, 4], [5, 6]], 2), pad=7)
    lines = [line[4:] for line in sharing.__doc__.splitlines()]
    start = lines.index("    a b d e f g h - -")
    assert draw(mask_of(batch), "abdefgh--") == "\n".join(line.rstrip() for line in lines[start : start + 10])
    np.testing.assert_array_equal(batch["tokens"], [[0, 1, 2, 3, 4, 5, 6, 7, 7]])
    assert "position  " + " ".join(map(str, batch["positions"][0])) in [line.strip() for line in lines]
    np.testing.assert_array_equal(batch["at"], [[0, 1, 2, 3, 4, -1], [0, 1, 5, 6, -1, -1]])
    np.testing.assert_array_equal(batch["prompt"], [2])
    np.testing.assert_array_equal(batch["response"], [[0, 0, 1, 1, 1, 0], [0, 0, 1, 1, 0, 0]])
    np.testing.assert_array_equal(batch["logp_sampler"], [[0, 0, -1, -2, -3, 0], [0, 0, -1, -2, 0, 0]])


def test_first_tokens_are_given_by_the_prompt_even_behind_responses_without_tokens():
    how = config(prompts=1, group=4)
    batch = sharing.batch(how, sharing.Sizes(4, 6, 10), by_hand([[], [2, 3], [], [4]], 2), pad=7)
    x = jnp.arange(10.0)[None, :, None]
    np.testing.assert_array_equal(sharing.followed(x, batch)[0, :5, 0], [0, 1, 2, 1, 4])
    found = sharing.apart(jnp.arange(10.0)[None] + 100, batch)
    np.testing.assert_array_equal(
        found, [[100, 101, 0, 0, 0, 0], [100, 101, 102, 103, 0, 0], [100, 101, 0, 0, 0, 0], [100, 101, 104, 0, 0, 0]]
    )


@pytest.mark.parametrize("name", SCHEMES)
def test_every_token_sees_in_a_shared_row_what_it_sees_in_its_own(name):
    how = config(name)
    done, rule = rollout(name, how), SCHEMES[name].gist_rule
    most = sharing.longest(how, LENGTH, LENGTH - 14, ways=1)
    sizes = sharing.fitted(how, most, done)
    assert sizes.together == GROUP and len({len(c.row) for c in done}) > 3
    shared = sharing.batch(how, sizes, done, SPECIAL.pad)
    alone = sharing.batch(how, sharing.Sizes(1, sizes.length, sizes.length), done, SPECIAL.pad)
    places = sharing.sharers(len(done), GROUP, 1)
    for row, members in enumerate(places):
        mask = mask_of({key: shared[key][row : row + 1] for key in sharing.READ}, rule)
        seen = np.zeros_like(mask)
        for place in members:
            at = shared["at"][place][shared["at"][place] >= 0]
            n = len(at)
            own = mask_of({key: alone[key][place : place + 1] for key in sharing.READ}, rule)[:n, :n]
            np.testing.assert_array_equal(mask[np.ix_(at, at)], own)
            seen[np.ix_(at, at)] = own
            for key in ("tokens", "positions"):
                np.testing.assert_array_equal(shared[key][row, at], alone[key][place, :n])
        padding = ~seen.any(0)
        np.testing.assert_array_equal(mask, seen | np.diag(padding))  # and nothing else
    np.testing.assert_array_equal(sharing.real(shared), sharing.real(alone))
    for key in ("response", "logp_sampler"):
        np.testing.assert_array_equal(shared[key], alone[key])


def quickly(program, *given):
    return program.lower(*given).compile(compiler_options=QUICK)(*given)


def learned(how: RlConfig, sizes: sharing.Sizes, done, mesh) -> tuple[dict, dict, jax.Array]:
    """(parameters, metrics) of a step, and the log-probs before it."""
    tx = optax.sgd(0.1)
    state, frozen = states.create(PARAMS, MODEL, tx, jax.random.key(0), mesh)
    rewards = np.asarray([np.mean(c.tokens % 3 == 0) for c in done], np.float32)
    number = np.asarray([c.id for c in done], np.int32)
    batch = meshes.place_batch(
        mesh, sharing.batch(how, sizes, done, SPECIAL.pad) | {"group": number, "rewards": rewards}
    )
    old = quickly(rl_step.make_logps(MODEL, how, UNSAID, mesh), PARAMS, batch)
    batch["logp_reference"] = jnp.where(batch["response"], old - 0.3 * jnp.cos(jnp.arange(old.shape[1])), 0)
    if not how.fresh:
        batch["logp_old"] = old
    state, found = quickly(rl_step.make_step(how, UNSAID)(MODEL, how.train, tx, mesh, state), state, frozen, batch)
    return state.trained, found, old


def compare(how: RlConfig, name: str, ways: int, together: int, mesh):
    done = rollout(name, how)
    most = sharing.longest(how, LENGTH, LENGTH - 14, ways)
    sizes = sharing.fitted(how, most, done)
    assert sizes.together == together > 1
    assert sizes.shared * len(done) // together < sharing.row_length(max(len(c.row) for c in done), LENGTH) * len(done)
    ours, found, logps = learned(how, sizes, done, mesh)
    theirs, expected, others = learned(how, sharing.Sizes(1, sizes.length, sizes.length), done, mesh)
    real = np.asarray(sharing.real(sharing.batch(how, sizes, done, SPECIAL.pad)))
    np.testing.assert_allclose(np.asarray(logps)[real], np.asarray(others)[real], atol=1e-5)
    assert real.sum() > 400 and np.abs(np.asarray(logps)[real]).mean() > 1
    assert found.keys() == expected.keys() and found["grad_norm"] > 0.1
    for key in found:
        np.testing.assert_allclose(found[key], expected[key], rtol=5e-5, atol=1e-5, err_msg=key)
    moved = max(jax.tree.leaves(jax.tree.map(lambda a, b: np.abs(a - b).max(), theirs, PARAMS)))
    assert moved > 1e-3
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5 * max(1, moved)), ours, theirs)


@pytest.mark.parametrize(
    "name, preset, updates, accumulate, together",
    [("keys live", "naive", 1, 1, 4), ("budget", "paper", 1, 4, 4), ("budget", "release", 2, 1, 4),
     ("thoughts", "paper", 2, 2, 4), ("anllm", "naive", 1, 8, 2)],
)  # fmt: skip
def test_a_step_is_that_of_a_row_for_each_response(name, preset, updates, accumulate, together):
    mesh = meshes.make(TrainConfig().mesh, jax.devices()[:1])
    compare(config(name, preset, updates=updates, accumulate=accumulate), name, 1, together, mesh)


def test_microbatches_have_whole_groups_and_updates_their_problems():
    how = config(prompts=4, group=4, updates=2, accumulate=2)
    order = sharing.order(how)
    of = steps.cut({"tokens": order}, 2)["tokens"]
    np.testing.assert_array_equal(np.sort(of, axis=1), [np.arange(8), np.arange(8, 16)])
    for update, rows in enumerate(of):
        parts = steps.cut({"tokens": rows}, 2)["tokens"]
        np.testing.assert_array_equal(parts, [np.arange(4) + 8 * update, np.arange(4, 8) + 8 * update])
    np.testing.assert_array_equal(np.sort(order[sharing.sharers(16, 4, 4)]), np.arange(16).reshape(4, 4)[[0, 2, 1, 3]])


def test_when_responses_share_a_row():
    most = lambda ways=1, length=80, **more: sharing.longest(config(**more), length, NEW, ways)
    assert most() == sharing.Sizes(4, 128, 256)  # 40 + 4 x 40 tokens
    assert most(accumulate=8).together == 2 and most(accumulate=16).together == 1  # of one microbatch
    assert most(prompts=3, group=8, accumulate=2).together == 4  # 12 responses: every row has as many
    assert [most(ways=ways).together for ways in (2, 4, 8, 16)] == [4, 4, 2, 1]
    assert most(attention="dense") == sharing.Sizes(1, 128, 128)
    long = lambda new: sharing.longest(config(group=8), 200 + new, new, 1)
    assert long(1024).together == 8 and long(4096) == sharing.Sizes(2, 4352, 8448)  # LONGEST
    replay = dataclasses.replace(config("budget"), replay=True)
    assert sharing.longest(replay, 80, NEW, 1).together == 1
    assert sharing.longest(config(), 64, 64, 1).shared == 256  # a prompt has a token at least


def test_rows_are_as_long_as_a_rollout_needs():
    how = config(prompts=1, group=4)
    most = sharing.Sizes(4, 128, 448)
    fitted = lambda *lengths: sharing.fitted(how, most, by_hand([[1] * n for n in lengths], 20)).shared
    assert fitted(10, 9, 8, 7) == 64 and fitted(100, 100, 100, 100) == 448 and fitted(100, 30, 10, 5) == 192
    assert sharing.shared_length(1500, 9000) == 1536 and sharing.shared_length(2049, 9000) == 2304
    assert sharing.shared_length(2049, 2050) == 2112 and sharing.shared_length(3000, 2000) == 3008


def test_a_key_of_the_prompt_that_dies_in_a_response_is_not_shared():
    how, most = config(prompts=1, group=2), sharing.Sizes(2, 64, 128)
    death = [np.full(5, NEVER), np.full(4, NEVER)]
    own = lambda: sharing.fitted(how, most, by_hand([[2, 3, 4], [5, 6]], 2, death=death))
    death[0][0], death[1][0] = 1, 1  # within the prompt
    assert own().together == 2
    batch = sharing.batch(how, own(), by_hand([[2, 3, 4], [5, 6]], 2, death=death), pad=7)
    np.testing.assert_array_equal(mask_of(batch)[:7, 0], [1, 0, 0, 0, 0, 0, 0])
    death[0][1] = 4
    assert own() == sharing.Sizes(1, 64, 64)
    with pytest.raises(ValueError, match="must share their prompt"):
        others = [*by_hand([[2]], 2), *by_hand([[2]], 3)]
        sharing.batch(how, most, others, pad=7)


@pytest.mark.slow
def test_over_eight_devices_a_step_is_that_of_a_row_for_each_response():
    over_eight_devices(PROGRAM)


PROGRAM = '''
from lt_jax.training import mesh as meshes
from lt_jax.training.config import MeshConfig
from tests.test_rl_sharing import compare, config

compare(config("budget", "release", accumulate=2), "budget", 4, 2, meshes.make(MeshConfig(data=2, fsdp=2, tensor=2)))
'''
