"""Log-probs of given tokens: against log_softmax of all logits, against what was sampled, and their gradients."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.cache.policies import Eviction
from lt_jax.decode import DecodeConfig, Engine, Request, Sampling
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER, Lifetimes
from lt_jax.models import decoder, lora
from lt_jax.models import params as parameters
from lt_jax.models.config import LoraConfig
from lt_jax.rl import batch_of
from lt_jax.training import loss as losses
from lt_jax.training import state as states
from lt_jax.training import step
from lt_jax.training.divergence import token_kl
from lt_jax.training.score import score
from tests.training_tools import MODEL

SPECIAL = SpecialTokens(eos=59, pad=58, trigger=57, output=56, gists=(50, 51))
LENGTH, ROWS = 64, 4
PARAMS = parameters.init(jax.random.key(0), MODEL)
for _name in "qk":  # attention that is not flat, so that it matters who is visible
    PARAMS["layers"][_name]["w"] *= 4


def close(ours, theirs, tolerance=2e-5):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), ours, theirs)


def plain(params, model, x, targets, temperature, never):
    """The definition: all logits at once; log-probs [N] and entropies [N]."""
    logits = decoder.logits(params, model, x) / jnp.reshape(temperature, (-1, 1))
    logits = logits.at[:, list(never)].set(-jnp.inf) if never else logits
    logp = jax.nn.log_softmax(logits)
    entropy = -jnp.sum(jnp.where(jnp.isfinite(logp), jnp.exp(logp) * jnp.where(jnp.isfinite(logp), logp, 0), 0), -1)
    return jnp.take_along_axis(logp, targets[:, None], -1)[:, 0], entropy


def tokens_of(n=50, model=MODEL):
    draw = np.random.default_rng(3)
    x = jnp.asarray(draw.normal(size=(n, model.hidden)), jnp.float32)
    targets = jnp.asarray(draw.integers(0, 40, n), jnp.int32)
    factors = jnp.asarray(draw.normal(size=(2, n)), jnp.float32)
    return x, targets, factors, jnp.asarray(draw.uniform(0.4, 1.6, n), jnp.float32)


@pytest.mark.parametrize("kind", ["tied", "untied", "lora"])
@pytest.mark.parametrize("never", [(), (50, 41, 57)])
def test_log_probs_and_entropies_of_tokens_with_their_gradients(kind, never):
    model = MODEL.replace(tie_embeddings=kind != "untied")
    params = parameters.init(jax.random.key(1), model)
    if kind == "lora":
        params, model = lora.add(params, model, LoraConfig(rank=2, rows=(40, 4)), jax.random.key(5))
    head = lambda part: losses.head_params(part, model)
    trained, frozen = map(head, states.split(params, states.trainable_mask(model)))
    x, targets, factors, each = tokens_of()
    for temperature in (each, 0.7, 1.0):
        ours = lambda t, x, scale=temperature: losses.token_logps(model, 16, t, frozen, x, targets, scale, never)
        theirs = lambda t, x, scale=temperature: plain({**frozen, **t}, model, x, targets, scale, never)
        close(jax.jit(ours)(trained, x), theirs(trained, x))
        grads = [
            jax.jit(jax.grad(lambda t, x, f=f: jnp.vdot(jnp.stack(f(t, x)), factors), argnums=(0, 1)))(trained, x)
            for f in (ours, theirs)
        ]
        close(*grads)
    assert set(trained) == ({"new_rows"} if kind == "lora" else {"embed"} if kind == "tied" else {"head"})


def test_temperature_0_is_that_of_greedy_log_probs_and_what_is_never_drawn_spoils_nothing():
    x, targets, factors, _ = tokens_of()
    logps = lambda x, temperature, never=(): losses.token_logps(MODEL, 16, {}, PARAMS, x, targets, temperature, never)
    close(logps(x, 0), logps(x, 1.0))
    banned = int(targets[0])
    kept = np.asarray(targets) != banned
    logp, _ = logps(x, 1.0, (banned,))
    assert np.all(np.isneginf(logp) == ~kept) and not kept.all()
    grad = jax.grad(lambda x: jnp.sum(jnp.where(kept, logps(x, 1.0, (banned,))[0], 0)))(x)
    assert np.isfinite(grad).all() and not np.any(grad[~kept]) and np.any(grad[kept])


def test_no_logits_array_forward_or_backward():
    model = MODEL.replace(vocab_size=4096)
    params = parameters.init(jax.random.key(1), model)
    tokens = jnp.zeros((4, 32), jnp.int32)
    total = lambda p: sum(map(jnp.sum, score(p, model, tokens, chunk=16, attention="dense")))
    text = jax.jit(jax.value_and_grad(total)).lower(params).compile().as_text()
    assert "[16,4096]" in text
    assert "[128,4096]" not in text and "[4,32,4096]" not in text


def recorded_deaths(layers=MODEL.layers, heads=MODEL.kv_heads):
    draw = np.random.default_rng(1)
    death = np.arange(LENGTH) + draw.geometric(0.1, (ROWS, layers, heads, LENGTH))
    return np.where(draw.random(death.shape) < 0.2, NEVER, death).astype(np.int32)


def test_score_is_log_softmax_of_dense_logits_with_its_gradients():
    tokens = jnp.asarray(np.random.default_rng(0).integers(0, 60, (ROWS, LENGTH)), jnp.int32)
    factors = jnp.asarray(np.random.default_rng(2).normal(size=(2, ROWS, LENGTH)), jnp.float32)
    life, temperature = Lifetimes(jnp.asarray(recorded_deaths())), jnp.linspace(0.5, 1.5, LENGTH) + jnp.zeros((ROWS, 1))

    def theirs(params):
        x = decoder.forward(params, MODEL, tokens, None, life, implementation="dense")[:, :-1].reshape(-1, MODEL.hidden)
        found = plain(params, MODEL, x, tokens[:, 1:].reshape(-1), temperature[:, 1:], ())
        return jnp.stack([jnp.pad(a.reshape(ROWS, -1), [(0, 0), (1, 0)]) for a in found])

    ours = lambda params: jnp.stack(score(params, MODEL, tokens, life, temperature=temperature, attention="blocked"))
    close(jax.jit(ours)(PARAMS), jax.jit(theirs)(PARAMS), 1e-4)
    mean = lambda f: jax.jit(jax.grad(lambda params: jnp.vdot(f(params), factors) / tokens.size))(PARAMS)
    close(mean(ours), mean(theirs))


@functools.cache
def sampled(name: str):
    """Completions of three prompts at temperature 0.8: the scheme, the rule and where deaths are recorded."""
    scheme = Scheme(n_gist=2, gist_rule="bidirectional") if "thoughts" in name else Scheme(method="vanilla")
    share = {"rkv layers": "layers", "rkv heads": "heads"}.get(name)
    how = None
    if "rkv" in name:
        how = Eviction("rkv", budget=20, buffer=8, window=4, sinks=1, share=share)
    options = DecodeConfig(
        rows=2, block_steps=16, capacity=LENGTH, sampling=Sampling(0.8), eviction=how, horizon=80 if how else 0,
        max_thought=9 if "thoughts" in name else None,
    )  # fmt: skip
    special = dataclasses.replace(SPECIAL, eos=-1)
    draw = np.random.default_rng(0)
    asked = [Request(draw.integers(0, 40, 5 + 3 * i), 40, seed=i) for i in range(3)]
    return tuple(Engine(PARAMS, MODEL, scheme, special, options).complete(asked))


UNSAID = (*SPECIAL.gists, SPECIAL.output, SPECIAL.pad)  # what an engine never samples has no part in log-probs
SYSTEMS = ("vanilla", "thoughts", "rkv", "rkv layers", "rkv heads", "rkv thoughts")


@functools.partial(jax.jit, static_argnames="rule")
def score_of(batch, rule):
    life = step.lifetimes(batch, rule)
    how = dict(temperature=0.8, never=UNSAID, attention="blocked")
    return score(PARAMS, MODEL, batch["tokens"], life, batch["positions"], **how)


@pytest.mark.parametrize("name", SYSTEMS)
def test_scores_of_completions_are_the_log_probs_they_were_sampled_with(name):
    done = sampled(name)
    batch = batch_of(done, 80, SPECIAL.pad, rows=4)
    logp, entropy = map(np.asarray, score_of(batch, done[0].gist_rule))
    response = batch["response"]
    np.testing.assert_allclose(logp[response], batch["logp_sampler"][response], atol=1e-4)
    assert response[:3].sum() == sum((~c.forced).sum() for c in done) and not response[3].any()
    assert not logp[:, 0].any() and not entropy[:, 0].any() and (entropy[response] > 0).all()
    forgotten = batch | {"death": np.where(batch["death"] > np.arange(80) + 1, NEVER, batch["death"])}
    changed = np.abs(np.asarray(score_of(forgotten, done[0].gist_rule)[0]) - logp)[response].max()
    assert changed < 1e-4 if name == "vanilla" else changed > 1e-2, "lifetimes say nothing"
    for c, row in zip(done, logp, strict=False):  # one by one, under their own lifetimes
        alone, _ = score(PARAMS, MODEL, c.row[None], c.lifetimes(), temperature=0.8, never=UNSAID, attention="dense")
        np.testing.assert_allclose(alone[0], row[: len(c.row)], atol=1e-4)
        assert c.forced.any() == ("thoughts" in name)


def plain_kl(of_p, of_q):
    """KL(p || q) [N] of scores [N, V] in float64, over the whole vocabulary, and its gradient to those of p."""
    p, q = (scores - np.log(np.exp(scores).sum(-1, keepdims=True)) for scores in (of_p, of_q))
    kl = (np.exp(p) * (p - q)).sum(-1)
    return kl, np.exp(p) * (p - q - kl[:, None])


@pytest.mark.parametrize("kind", ["tied", "untied", "lora", "lora untied"])
@pytest.mark.parametrize("never", [(), (50, 41, 57)])
def test_the_divergence_of_two_views_with_its_gradients(kind, never):
    model = MODEL.replace(tie_embeddings="untied" not in kind)
    params, name = parameters.init(jax.random.key(1), model), "embed" if model.tie_embeddings else "head"
    trained = params
    if "lora" in kind:  # rows 40 to 43 are trained beside adapters, and stand in for the table's
        params, model = lora.add(params, model, LoraConfig(rank=2, rows=(40, 4)), jax.random.key(5))
        params["new_rows"][name] += 0.3
        trained = params["new_rows"]
    table = np.asarray(lora.merge(params, model)[0][name], np.float64)
    table = table if name == "embed" else table.T
    draw = np.random.default_rng(4)
    x, other = (draw.normal(size=(3, 7, MODEL.hidden)).astype(np.float32) for _ in range(2))
    factors = draw.normal(size=(3, 7)).astype(np.float32)
    ids = [i for i in range(MODEL.vocab_size) if i not in never]
    flat = lambda x: x.reshape(-1, MODEL.hidden).astype(np.float64)
    kl, slope = plain_kl(*(flat(view) @ table[ids].T / 0.7 for view in (x, other)))
    slope *= np.pad(factors[:, 1:], [(0, 0), (0, 1)]).reshape(-1, 1) / 0.7  # nothing is drawn after the last token
    to_table = np.zeros_like(table)
    to_table[ids] = slope.T @ flat(x)
    to_table = to_table[40:44] if "lora" in kind else to_table
    for chunk in (0, 8):
        find = functools.partial(token_kl, model=model, temperature=0.7, never=never, chunk=chunk)
        total = lambda params, x, other, find=find: jnp.vdot(find(params, x=x, other=other), factors)
        close(find(params, x=x, other=other), np.pad(kl.reshape(3, 7)[:, :-1], [(0, 0), (1, 0)]))
        to_params, to_x, to_other = jax.jit(jax.grad(total, argnums=(0, 1, 2)))(params, x, other)
        close(flat(np.asarray(to_x)), slope @ table[ids])
        assert not np.any(to_other), "the other view is to be held still"
        found = (to_params["new_rows"] if "lora" in kind else to_params)[name]
        assert found.shape == trained[name].shape and (kind == "tied" or not np.any(to_params["embed"]))
        close(found if name == "embed" else found.T, to_table)
        assert "lora" not in kind or not np.any(to_params[name])
    assert kl.min() > 0.1 and not np.abs(find(params, x=x, other=x)).max() > 1e-6
