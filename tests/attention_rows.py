"""Lifetimes for the attention tests and benchmarks, written down from the rules and not by `lt_jax.layout`."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from lt_jax.cache.policies import published
from lt_jax.decode import DecodeConfig, Engine, Request
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER, Lifetimes
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig

THOUGHTS = 12, 10, 4  # tokens of the prompt, of a thought, gists of a thought; one output token follows the gists


def lightthinker(length, see_current=False, rule="causal", exclude_continue=False, parts=THOUGHTS, dead_tail=0):
    """One LightThinker row [1, length]; its last `dead_tail` tokens are padding that sees only itself."""
    prompt, thought, gists = parts
    death, since, gist = np.full(length, NEVER, np.int32), np.zeros(length, np.int32), np.full(length, -1, np.int32)
    before, block = None, 0
    for start in range(prompt, length, thought + gists + 1):
        end = start + thought
        output = end + gists
        death[start:end] = output
        gist[end:output] = block
        if see_current:
            since[end:output] = start
        if exclude_continue and before is not None and output < length:
            death[before] = output
        before, block = output, block + 1
    if dead_tail:
        tail = np.arange(length - dead_tail, length)
        death = np.minimum(death, length - dead_tail)
        death[tail], since[tail], gist[tail] = tail + 1, tail, -1
    return Lifetimes(
        jnp.asarray(death)[None],
        jnp.asarray(since)[None] if see_current or dead_tail else None,
        None if rule == "causal" else jnp.asarray(gist)[None],
        rule,
    )


def anllm(length, step=9):
    """Anchors see only their own thought, which then dies: [1, length]."""
    index = np.arange(length)
    anchor = index % step == step - 1
    death = np.where(anchor, NEVER, (index // step + 1) * step).astype(np.int32)
    since = np.where(anchor, index // step * step, 0).astype(np.int32)
    return Lifetimes(jnp.asarray(death)[None], jnp.asarray(since)[None])


def packed(length, rule="causal"):
    """Two rows, each of two LightThinker documents of different lengths, the second starting where the first dies."""
    rows = []
    for cut in (length // 3, length // 2 + 1):
        first, second = (lightthinker(n, rule=rule) for n in (cut, length - cut))
        death = np.concatenate([np.minimum(first.death[0], cut), np.minimum(second.death[0], length - cut) + cut])
        gist = None
        if rule != "causal":
            second_gist = np.asarray(second.gist[0])
            gist = np.concatenate([first.gist[0], np.where(second_gist < 0, -1, second_gist + 1000)])
        rows.append((death, gist))
    stack = lambda i: jnp.asarray(np.stack([row[i] for row in rows]), jnp.int32)
    return Lifetimes(stack(0), gist=None if rule == "causal" else stack(1), gist_rule=rule)


def evicted(rows, heads, length, seed=0):
    """Every kv head ends its keys at random times of its own: [rows, heads, length]. Some are never seen at all."""
    rng = np.random.default_rng(seed)
    death = np.arange(length) + rng.geometric(0.03, (rows, heads, length)) - 1
    death = np.where(rng.random(death.shape) < 0.1, NEVER, death)
    return Lifetimes(jnp.asarray(death, jnp.int32))


@functools.cache
def recorded(policy, length=150):
    """Deaths [2, 2, length] that a policy gave to the keys of two rollouts of a random model (budget 24, buffer 16)."""
    model = DecoderConfig(vocab_size=64, hidden=32, intermediate=32, layers=1, heads=4, kv_heads=2, head_dim=16)
    config = DecodeConfig(rows=2, eviction=published(policy, 24, 16), horizon=length)
    params = parameters.init(jax.random.key(0), model)
    engine = Engine(params, model, Scheme(method="vanilla"), SpecialTokens(eos=-1, pad=0), config)
    random = np.random.default_rng(0)
    done = engine.run([Request(random.integers(1, 64, 20), length - 20, seed=i) for i in range(2)])
    death = jnp.concatenate([row.lifetimes().death[:, 0] for row in done])
    assert death.shape == (2, 2, length) and jnp.mean(death < NEVER) > 0.5
    return Lifetimes(death)


def joined(*lifetimes):
    """Rows of the same length and rule, one above the other."""
    stack = lambda name: None if getattr(lifetimes[0], name) is None else jnp.concatenate(
        [getattr(x, name) for x in lifetimes]
    )
    return Lifetimes(stack("death"), stack("since"), stack("gist"), lifetimes[0].gist_rule)
