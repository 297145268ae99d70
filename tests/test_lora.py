"""LoRA and vocabulary growth: adapters start as nothing, merge to the same logits, and train only what they should."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.errors import UserError
from lt_jax.models import decoder, lora, params, vocabulary
from lt_jax.models.config import DecoderConfig, LoraConfig

SIZES = dict(vocab_size=120, hidden=32, intermediate=48, layers=2, heads=4, kv_heads=2, head_dim=8)
TIED = DecoderConfig(**SIZES, qkv_bias=True, model_type="qwen2")
UNTIED = DecoderConfig(**SIZES, tie_embeddings=False)
NEW = ((120, "first"), (121, "second"), (122, "third"))
PIECES = ((3, 4), (5,), (6, 7, 8))


@functools.partial(jax.jit, static_argnums=1)
def logits(tree, config, tokens):
    hidden = decoder.forward(tree, config, tokens, implementation="dense")
    return decoder.logits(tree, config, hidden)[..., : config.vocab_size]


def make(config):
    return jax.jit(params.init, static_argnums=1)(jax.random.key(0), config)


def grown(config):
    tree = make(config)
    return vocabulary.grow(tree, config, NEW, PIECES)


def stir(tree, seed=5):
    """Random values in every adapter, so that nothing is zero."""
    mask = lora.trainable(tree)
    draw = np.random.default_rng(seed)
    noise = lambda x, on: x + draw.normal(0, 0.2, x.shape).astype(np.float32) if on else x
    return jax.tree.map(noise, tree, mask)


TOKENS = jnp.array([[1, 120, 5, 121, 122, 3]], jnp.int32)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_growth(config):
    """New rows are the mean of their descriptions in embedding and head; old logits do not move; padding is 128s."""
    tree = make(config)
    before = logits(tree, config, TOKENS[:, :1])
    tree, config = grown(config)
    assert (config.vocab_size, config.vocab_padded) == (123, 128) and tree["embed"].shape == (128, 32)
    for (i, _), parts in zip(NEW, PIECES, strict=True):
        np.testing.assert_allclose(tree["embed"][i], tree["embed"][np.array(parts)].mean(0), atol=1e-7)
        if "head" in tree:
            np.testing.assert_allclose(tree["head"][:, i], tree["head"][:, np.array(parts)].mean(1), atol=1e-7)
    np.testing.assert_array_equal(logits(tree, config, TOKENS[:, :1])[..., :120], before)


def test_growth_over_a_multiple_and_on_rows_that_exist():
    """Past 128 the table grows by 128; a new token below `vocab_size` takes over its row and nothing grows."""
    tree = make(TIED)
    many = [(120 + i, "x") for i in range(20)]
    big, config = vocabulary.grow(tree, TIED, many, [(1,)] * 20)
    assert config.vocab_padded == 256 and big["embed"].shape == (256, 32) and config.vocab_size == 140
    assert not big["embed"][140:].any()
    same, config = vocabulary.grow(tree, TIED, [(100, "x")], [(1, 2)])
    assert config == TIED
    np.testing.assert_allclose(same["embed"][100], tree["embed"][1:3].mean(0), atol=1e-7)
    np.testing.assert_array_equal(same["embed"][:100], tree["embed"][:100])


@pytest.mark.parametrize(
    ("new", "pieces", "message"),
    [
        ([(120, "a")], [()], "new token 120: its description 'a' has no tokens"),
        ([(120, "a")], [(500,)], "token 500, which is not in the vocabulary of 120"),
        ([(121, "a")], [(1,)], "nothing says what id 120 stands for"),
    ],
)
def test_growth_refuses(new, pieces, message):
    with pytest.raises(UserError) as error:
        vocabulary.grow(make(TIED), TIED, new, pieces)
    assert message in str(error.value)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_adapters_start_as_nothing_and_merge_to_the_same(config):
    tree, config = grown(config)
    plain = logits(tree, config, TOKENS)
    setting = LoraConfig(rank=4, alpha=8.0, rows=(120, 3))
    adapted, with_lora = lora.add(tree, config, setting, jax.random.key(1))
    assert jax.tree.structure(adapted) == jax.tree.structure(params.abstract(with_lora))
    assert adapted["layers"]["up"]["w"] is tree["layers"]["up"]["w"]
    np.testing.assert_allclose(logits(adapted, with_lora, TOKENS), plain, atol=1e-6)
    adapted = stir(adapted)
    moved = logits(adapted, with_lora, TOKENS)
    assert np.abs(moved - plain).max() > 0.1
    merged, without = lora.merge(adapted, with_lora)
    assert without == config and jax.tree.structure(merged) == jax.tree.structure(tree)
    np.testing.assert_allclose(logits(merged, without, TOKENS), moved, atol=2e-5)


def test_targets_and_scale():
    """Only the named maps get adapters, and alpha / rank scales what they add."""
    tree = make(TIED)
    adapted, config = lora.add(tree, TIED, LoraConfig(rank=2, alpha=6.0, targets=("q", "v")), jax.random.key(1))
    names = {name for name, p in adapted["layers"].items() if isinstance(p, dict) and "lora_a" in p}
    assert names == {"q", "v"} and "new_rows" not in adapted
    adapted = stir(adapted)
    p = adapted["layers"]["q"]
    want = tree["layers"]["q"]["w"] + 3.0 * np.einsum("lir,lro->lio", p["lora_a"], p["lora_b"])
    np.testing.assert_allclose(lora.merge(adapted, config)[0]["layers"]["q"]["w"], want, atol=1e-6)


@pytest.mark.parametrize("config", [TIED, UNTIED], ids=["tied", "untied"])
def test_gradients_reach_adapters_and_new_rows_through_both_ends(config):
    """The new rows get gradients as inputs and as outputs of the head; the mask names exactly the adapters."""
    tree, config = grown(config)
    assert all(jax.tree.leaves(lora.trainable(tree)))
    tree, config = lora.add(tree, config, LoraConfig(rank=4, rows=(120, 3)), jax.random.key(1))
    tree = stir(tree)
    mask = lora.trainable(tree)
    flat = jax.tree_util.tree_leaves_with_path(mask)
    trained = {jax.tree_util.keystr(path) for path, on in flat if on}
    assert all("lora_" in name or "new_rows" in name for name in trained)
    assert len(trained) == 14 + (1 if config.tie_embeddings else 2)

    def loss(tree, tokens, target):
        return -jax.nn.log_softmax(logits(tree, config, tokens))[0, -1, target]

    grad = jax.jit(jax.grad(loss))
    as_input = grad(tree, jnp.array([[1, 121, 2]]), 4)["new_rows"]["embed"]
    head = "embed" if config.tie_embeddings else "head"
    as_output = grad(tree, jnp.array([[1, 2, 3]]), 121)["new_rows"][head]
    assert np.abs(as_input[1]).max() > 1e-4
    assert np.abs(as_output[1] if config.tie_embeddings else as_output[:, 1]).max() > 1e-4
    table = grad(tree, jnp.array([[1, 121, 2]]), 121)
    assert not np.any(table["embed"][120:123])


def test_half_precision_base():
    """A bf16 base keeps float32 adapters; merging gives bf16 back, and the tables' other rows keep their bytes."""
    tree, config = grown(TIED)
    tree = jax.tree.map(lambda x: x.astype(jnp.bfloat16), tree)
    adapted, config = lora.add(tree, config, LoraConfig(rank=4, rows=(120, 3)), jax.random.key(1))
    assert jax.tree.map(lambda x: x.dtype, adapted) == jax.tree.map(
        lambda x: x.dtype, params.abstract(config, jnp.bfloat16)
    )
    merged, _ = lora.merge(stir(adapted), config)
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    np.testing.assert_array_equal(merged["embed"][:120], tree["embed"][:120])
    assert (merged["embed"][120:123] != tree["embed"][120:123]).any()


def test_order_of_calls_is_checked():
    tree, config = lora.add(make(TIED), TIED, LoraConfig(rank=2), jax.random.key(1))
    with pytest.raises(UserError, match="grow before LoRA"):
        vocabulary.grow(tree, config, NEW, PIECES)
    with pytest.raises(UserError, match="already has LoRA"):
        lora.add(tree, config, LoraConfig(rank=2), jax.random.key(1))
    with pytest.raises(UserError, match="unknown \\['wq'\\]"):
        LoraConfig(targets=("wq",))
