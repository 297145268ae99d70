"""The decoder: one definition of the parameters, logits equal to transformers', functions and module agree."""

from __future__ import annotations

import functools
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lt_jax.decode import DecodeConfig, Engine, Request
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.lifetimes import NEVER, Lifetimes
from lt_jax.models import decoder, huggingface, lora, params, rope
from lt_jax.models.config import DecoderConfig, Llama3Scaling, LoraConfig, YarnScaling
from lt_jax.models.presets import PRESETS

TINY = PRESETS["tiny"]
SIZES = dict(vocab_size=200, hidden=48, intermediate=80, layers=2, heads=6, kv_heads=2, head_dim=8, rope_theta=1e4)
WIDER = {**SIZES, "head_dim": 16}
FAMILIES = {
    "qwen2": DecoderConfig(**SIZES, model_type="qwen2", qkv_bias=True),
    "qwen2 untied": DecoderConfig(**SIZES, model_type="qwen2", qkv_bias=True, tie_embeddings=False),
    "qwen3": DecoderConfig(**{**SIZES, "head_dim": 16}, model_type="qwen3", qk_norm=True, tie_embeddings=False),
    "llama": DecoderConfig(**SIZES, model_type="llama", rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 128), norm_eps=1e-5),
    # 150 tokens are more than the original length, and more than the factor makes of it
    "qwen3 yarn": DecoderConfig(**WIDER, model_type="qwen3", qk_norm=True, rope_scaling=YarnScaling(4.0, 32)),
    "qwen2 yarn": DecoderConfig(
        **WIDER, model_type="qwen2", qkv_bias=True, rope_scaling=YarnScaling(2.0, 64, 0.9, 16.0, 2.0, truncate=False)
    ),
    "llama yarn": DecoderConfig(
        **WIDER, model_type="llama", rope_scaling=YarnScaling(8.0, 16, mscale=1.0, mscale_all_dim=0.3)
    ),
}


def noisy(config: DecoderConfig, seed: int = 0) -> dict:
    """Random parameters whose norms and biases are random too, so that a swapped or forgotten one shows."""
    draw = np.random.default_rng(seed)
    tree = jax.jit(params.init, static_argnums=1)(jax.random.key(seed), config)
    return jax.tree.map(lambda x: x + draw.normal(0, 0.1, x.shape).astype(np.float32), tree)


def draw_tokens(config: DecoderConfig, shape, seed: int = 2):
    return jax.random.randint(jax.random.key(seed), shape, 0, config.vocab_size)


@functools.partial(jax.jit, static_argnums=1, static_argnames="remat")
def run(tree, config, tokens, **options):
    hidden = decoder.forward(tree, config, tokens, implementation="dense", **options)
    return decoder.logits(tree, config, hidden)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_transformers(family, tmp_path):
    """<= 1e-4 in fp32, through an export that `transformers` itself reads."""
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    config, tree = FAMILIES[family], noisy(FAMILIES[family])
    huggingface.save(tmp_path / "model", tree, config)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model", dtype=torch.float32, attn_implementation="eager")
    assert model.config.vocab_size == config.vocab_size
    tokens = draw_tokens(config, (2, 150))
    with torch.no_grad():
        want = model(torch.tensor(np.asarray(tokens))).logits.numpy()
    got = run(tree, config, tokens)
    assert np.ptp(want) > 5
    np.testing.assert_allclose(got[..., : config.vocab_size], want, atol=1e-4, rtol=0)


@pytest.mark.parametrize("attention_factor, truncate", [(None, True), (0.8, False)])
def test_yarn_of_published_sizes_is_that_of_transformers(attention_factor, truncate):
    """Qwen2.5 and Qwen3 with 131,072 positions, and R1-0528-Qwen3-8B: frequencies and the factor of cos and sin."""
    pytest.importorskip("torch")
    from transformers import Qwen3Config
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaling = YarnScaling(4.0, 32768, attention_factor, truncate=truncate)
    config = PRESETS["qwen3-8b"].replace(rope_scaling=scaling, max_positions=131_072)
    theirs = Qwen3Config.from_dict(huggingface.to_hf(config, "bfloat16"))
    want, factor = ROPE_INIT_FUNCTIONS["yarn"](theirs)
    np.testing.assert_allclose(rope.frequencies(config), want.numpy(), rtol=1e-6)
    plain = rope.frequencies(config.replace(rope_scaling=None))
    assert 10 < (rope.frequencies(config) == plain).sum() < 50  # some are kept, some slowed
    assert rope.attention_factor(config) == factor != 1


@pytest.mark.real_model
@pytest.mark.slow
def test_real_model_logits_and_greedy_tokens(real_model):
    """Real weights: logits within 2e-3 of torch's and the same 64 greedy tokens, both in fp32.

    The greedy tokens are our engine's and are checked by one pass: if every one of them is torch's argmax after those
    before it, torch's own greedy run is the same by induction. (Run, it would take longer than all else here.)
    """
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(real_model)
    chat = [{"role": "user", "content": "Write a Python function that merges two sorted lists, then explain it."}]
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    tree, config = huggingface.load(real_model)  # bfloat16 as it is stored, which the engine multiplies in float32
    special = SpecialTokens(eos=-1, pad=tokenizer.convert_tokens_to_ids("<|endoftext|>"))  # is never sampled
    engine = Engine(tree, config, Scheme("vanilla"), special, DecodeConfig(rows=1, capacity=128))
    (made,) = engine.complete([Request(prompt, 64)])
    assert len(made.tokens) == 64
    got = np.asarray(run(tree, config, jnp.asarray(made.row[None])))[..., : config.vocab_size]
    del tree, engine
    model = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    with torch.no_grad():
        want = model(torch.tensor(made.row[None])).logits.numpy()
    assert np.abs(got - want).max() <= 2e-3
    for logits in (want, got):
        np.testing.assert_array_equal(logits[0, len(prompt) - 1 : -1].argmax(-1), made.tokens)


def test_one_definition_of_the_parameters():
    """Shapes, axes and values have the same tree, and values do not depend on what else is in it."""
    config = FAMILIES["qwen3"].replace(lora=LoraConfig(rank=4, targets=("q", "down"), rows=(190, 5)))
    tree, shapes, axes = params.init(jax.random.key(0), config), params.abstract(config), params.logical_axes(config)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), tree) == jax.tree.map(lambda x: (x.shape, x.dtype), shapes)
    ranks = jax.tree.map(lambda s, a: len(a), shapes, axes)
    assert ranks == jax.tree.map(lambda s: len(s.shape), shapes)
    plain = params.init(jax.random.key(0), FAMILIES["qwen3"])
    np.testing.assert_array_equal(plain["layers"]["v"]["w"], tree["layers"]["v"]["w"])
    half = params.abstract(config, jnp.bfloat16)
    assert half["embed"].dtype == jnp.bfloat16 and half["layers"]["q"]["lora_a"].dtype == jnp.float32


def test_counts():
    """Published parameter counts, in millions as the model cards give them."""
    cards = {"qwen2.5-0.5b": 494, "qwen2.5-1.5b": 1544, "qwen2.5-7b": 7616, "qwen3-0.6b": 596, "qwen3-8b": 8191}
    cards |= {"llama-3.2-1b": 1236, "llama-3.1-8b": 8030, "r1-distill-qwen-1.5b": 1777}
    for name, millions in cards.items():
        assert round(params.count(PRESETS[name]) / 1e6) == millions, name
    config = FAMILIES["qwen2"]
    tree = params.init(jax.random.key(0), config)
    assert params.count(config, padded=True) == sum(x.size for x in jax.tree.leaves(tree))
    assert params.nbytes(params.abstract(config, jnp.bfloat16)) * 2 == params.nbytes(tree)


def test_module_is_the_functions():
    """The NNX module gives the same logits, needs no mesh, knows its axes, and splits into the same plain tree."""
    config, tree = FAMILIES["llama"], noisy(FAMILIES["llama"])
    module = decoder.Decoder(config, tree)
    tokens = draw_tokens(config, (1, 9))
    got = module(tokens, implementation="dense")
    np.testing.assert_allclose(got, run(tree, config, tokens), atol=1e-5)
    graph, state = nnx.split(module)
    assert jax.tree.structure(module.tree()) == jax.tree.structure(tree)
    np.testing.assert_array_equal(nnx.merge(graph, state)(tokens, implementation="dense"), got)
    assert state["params"]["layers"]["q"]["w"].get_metadata("logical_axes") == ("layers", "embed", "heads")
    fresh = decoder.Decoder(config, rngs=nnx.Rngs(0)).tree()
    assert jax.tree.map(jnp.shape, fresh) == jax.tree.map(jnp.shape, tree)


def test_steps_of_decoding_are_the_forward_pass():
    """embed, qkv, finish and logits with an attention of one's own give what `forward` gives, and positions matter."""
    config, tree = FAMILIES["qwen3"], noisy(FAMILIES["qwen3"])
    tokens = draw_tokens(config, (2, 12))
    positions = jnp.stack([jnp.arange(12), jnp.arange(12) + 5]).astype(jnp.int32)
    x = decoder.embed(tree, config, tokens)
    for i in range(config.layers):
        layer = jax.tree.map(lambda a, i=i: a[i], tree["layers"])
        q, k, v = decoder.qkv(layer, config, x, positions)
        q = q.reshape(2, 12, config.kv_heads, -1, config.head_dim)
        scores = jnp.einsum("btkgd,bskd->bkgts", q, k) * config.head_dim**-0.5
        scores = jnp.where(jnp.tril(jnp.ones((12, 12), bool)), scores, -jnp.inf)
        attended = jnp.einsum("bkgts,bskd->btkgd", jax.nn.softmax(scores), v)
        x = decoder.finish(layer, config, x, attended.reshape(2, 12, config.heads, config.head_dim))
    want = decoder.logits(tree, config, decoder.final_norm(tree, config, x))
    got = run(tree, config, tokens, positions=positions)
    np.testing.assert_allclose(got, want, atol=1e-5)
    stretched = run(tree, config, tokens, positions=2 * positions)
    assert np.nanmax(np.abs(np.where(np.isfinite(got), got - stretched, 0))) > 1e-2


def test_lifetimes_reach_the_attention():
    """A key that died leaves the logits after its death untouched, and per-layer deaths [B, L, Hkv, S] are obeyed."""
    config, tree = FAMILIES["qwen2"], noisy(FAMILIES["qwen2"])
    tokens = draw_tokens(config, (1, 16))
    other = tokens.at[0, 3].set((tokens[0, 3] + 1) % config.vocab_size)
    death = jnp.full((1, 16), NEVER, jnp.int32).at[0, 3].set(4)
    a, b = (run(tree, config, t, lifetimes=Lifetimes(death))[0, 4:, :200] for t in (tokens, other))
    np.testing.assert_array_equal(a, b)
    assert np.abs(run(tree, config, tokens)[0, 4:, :200] - a).max() > 1e-3
    per_layer = jnp.broadcast_to(death[:, None, None], (1, config.layers, config.kv_heads, 16))
    for layers, heads in ((None, None), (1, None), (None, 1), (1, 1)):
        same = run(tree, config, tokens, lifetimes=Lifetimes(per_layer[:, :layers, :heads]))[0, 4:, :200]
        np.testing.assert_allclose(same, a, atol=1e-5)
    first_only = per_layer.at[:, 1:].set(NEVER)
    assert np.abs(run(tree, config, tokens, lifetimes=Lifetimes(first_only))[0, 4:, :200] - a).max() > 1e-3


def test_remat_changes_memory_only():
    """Every remat choice has the same gradients; an unknown one is refused."""
    config, tree = TINY, params.init(jax.random.key(0), TINY)
    tokens = draw_tokens(config, (2, 16))
    loss = lambda tree, how: jax.nn.logsumexp(run(tree, config, tokens, remat=how)).sum()
    grads = [jax.jit(jax.grad(loss), static_argnums=1)(tree, how) for how in decoder.REMAT]
    for other in grads[1:]:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6), grads[0], other)
    with pytest.raises(UserError, match="remat is 'some'"):
        loss(tree, "some")


def test_bfloat16_compute_keeps_logits_and_norms_in_float32():
    config = TINY.replace(dtype="bfloat16")
    tree = params.init(jax.random.key(0), config, jnp.bfloat16)
    tokens = draw_tokens(config, (1, 16))
    hidden = decoder.forward(tree, config, tokens)
    got = decoder.logits(tree, config, hidden)
    assert hidden.dtype == jnp.bfloat16 and got.dtype == jnp.float32
    exact = run(jax.tree.map(lambda x: x.astype(jnp.float32), tree), TINY, tokens)
    assert 0 < np.abs(got - exact).max() < 0.1


def test_padding_is_never_predicted():
    config, tree = FAMILIES["qwen2"], noisy(FAMILIES["qwen2"])
    got = run(tree, config, draw_tokens(config, (1, 4)))
    assert got.shape[-1] == 256 and np.isneginf(got[..., 200:]).all() and np.isfinite(got[..., :200]).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(heads=5), "heads (5) is not a multiple of kv_heads (2)"),
        (dict(head_dim=15), "RoPE needs an even one"),
        (dict(dtype="int8"), "dtype is 'int8'"),
        (dict(layers=0), "layers is 0"),
        (dict(vocab_rows=128), "vocab_rows (128) is below vocab_size (256)"),
        (dict(lora=LoraConfig(rows=(250, 10))), "reach past the vocabulary"),
    ],
)
def test_impossible_configs_are_refused(change, message):
    with pytest.raises(UserError) as error:
        TINY.replace(**change)
    assert message in str(error.value)


def test_sharded_forward_is_the_unsharded_one(tmp_path):
    """Parameters loaded straight onto a mesh by their logical axes give the same logits. Needs a process of its own."""
    code = """
import sys, jax, numpy as np
jax.config.update("jax_num_cpu_devices", 4)
from jax.sharding import AxisType, NamedSharding, PartitionSpec as P
from lt_jax.models import decoder, huggingface, params
mesh = jax.make_mesh((2, 2), ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
rules = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "mlp": "tensor", "embed": "fsdp"}
plain, config = huggingface.load(sys.argv[1])
place = lambda axes: NamedSharding(mesh, P(*(rules.get(a) for a in axes)))
shardings = jax.tree.map(place, params.logical_axes(config), is_leaf=lambda x: isinstance(x, tuple))
spread, _ = huggingface.load(sys.argv[1], shardings=shardings)
jax.tree.map(lambda a, b: np.testing.assert_array_equal(a, b), plain, spread)
assert spread["layers"]["gate"]["w"].addressable_shards[0].data.size * 4 == plain["layers"]["gate"]["w"].size
tokens = jax.random.randint(jax.random.key(0), (2, 8), 0, config.vocab_size)
forward = lambda p, x: decoder.forward(p, config, tokens, sharding=x, implementation="dense")
run = lambda p, x=None: decoder.logits(p, config, forward(p, x))
rows = NamedSharding(mesh, P("fsdp"))
np.testing.assert_allclose(jax.jit(run)(plain), jax.jit(run, static_argnums=1)(spread, rows), atol=1e-5)
print("same")
"""
    config = FAMILIES["qwen2 untied"]
    huggingface.save(tmp_path / "model", lora.merge(noisy(config), config)[0], config)
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "model")], capture_output=True, text=True, env=os.environ.copy()
    )
    assert done.stdout.strip() == "same", done.stderr[-2000:]
