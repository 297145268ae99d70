"""Lifetimes for the TPU benchmarks: LightThinker rows with random thoughts, and deaths recorded under R-KV."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.deaths import PROMPT, thoughts
from lt_jax.cache.policies import published
from lt_jax.decode import DecodeConfig, Engine, Request
from lt_jax.decode.sample import Sampling
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import Lifetimes
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig

THOUGHTS = 40, 80, 150
BUDGET, BUFFER = 512, 128


def layouts(length: int, kv_heads: int):
    """[(name, Lifetimes)]: four rows of each thought length, and one row of R-KV with deaths for each kv head."""
    rows = [(f"thoughts of {mean}", lightthinker(length, mean)) for mean in THOUGHTS]
    return (*rows, (f"R-KV {BUDGET} + {BUFFER}", recorded(length, kv_heads)))


def lightthinker(length: int, mean: int, rows: int = 4) -> Lifetimes:
    """See `deaths.thoughts`."""
    return Lifetimes(jnp.asarray(thoughts(rows, length, mean)))


def recorded(length: int, kv_heads: int) -> Lifetimes:
    """Deaths [1, Hkv, S] of a rollout of a small random model under R-KV, of its middle layer."""
    model = DecoderConfig(vocab_size=256, hidden=128, intermediate=128, layers=3, heads=kv_heads, kv_heads=kv_heads,
                          head_dim=32)  # fmt: skip
    params = parameters.init(jax.random.key(0), model)
    for name in "qk":  # attention that is not flat
        params["layers"][name]["w"] *= 4
    config = DecodeConfig(rows=1, block_steps=BUFFER, eviction=published("rkv", BUDGET, BUFFER), horizon=length,
                          sampling=Sampling(temperature=1.0))  # fmt: skip
    engine = Engine(params, model, Scheme(method="vanilla"), SpecialTokens(eos=-1, pad=0), config)
    prompt = np.random.default_rng(0).integers(1, 256, PROMPT)
    done = next(iter(engine.run([Request(prompt, length - PROMPT, seed=0)])))
    death = np.asarray(done.lifetimes().death)
    return Lifetimes(jnp.asarray(death[:, 1, :, :length]))
