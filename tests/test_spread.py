"""The engine over meshes of eight CPU devices: the tokens and log-probs of one device, whatever is cut how."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.attention import Split
from lt_jax.decode import DecodeConfig, Engine, weights
from lt_jax.decode.pieces import powers
from lt_jax.decode.spread import Spread, over_devices
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.models import params as parameters
from lt_jax.models.config import LoraConfig
from tests.test_decode import MODEL, SPECIAL, params
from tests.test_split import over_eight_devices
from tests.tiny_folder import make

PROGRAM = '''
import dataclasses, re, sys
import jax, numpy as np
from lt_jax.cache.policies import published
from lt_jax.decode import DecodeConfig, Engine, Request, Sampling
from lt_jax.decode.spread import over_devices
from lt_jax.layout.scheme import Scheme
from lt_jax.models import params as parameters
from tests.test_decode import MODEL, SPECIAL

tensor, devices = map(int, sys.argv[1:3])
split = over_devices(jax.devices()[:devices], tensor)
parts = devices // tensor
rng = np.random.default_rng(0)
common = rng.integers(0, 100, 36)
prompts = [rng.integers(0, 100, rng.integers(2, 17)) for _ in range(11)]
prompts += [np.concatenate([common, prompt[:5]]) for prompt in prompts[:2]]
samplings = [None, Sampling(1.0), Sampling(0.8, top_k=5), Sampling(1.0, top_p=0.7)]
asked = [Request(p, 24, sampling=samplings[i % 4], seed=i, n=3 if i == 12 else 1) for i, p in enumerate(prompts)]
other = MODEL.replace(qk_norm=True, tie_embeddings=False, qkv_bias=False)
kinds = {
    "lightthinker": (MODEL, Scheme(n_gist=3), dict(max_thought=6)),
    "rkv": (other, Scheme(method="vanilla"), dict(eviction=published("rkv", 24, 8), horizon=120)),
    "random": (MODEL, Scheme(n_gist=3), dict(max_thought=6, eviction=published("random", 24, 12), horizon=120)),
    "h2o": (MODEL, Scheme(method="vanilla"),
            dict(eviction=dataclasses.replace(published("h2o", 24, 8), share="heads"), horizon=120)),
}
for name, (model, scheme, more) in kinds.items():
    if name not in sys.argv[3:]:
        continue
    weights = parameters.init(jax.random.key(0), model)
    config = DecodeConfig(8, 120, 8, top_logps=2, implementation="plain", **more)
    one = Engine(weights, model, scheme, SPECIAL, config)
    many = Engine(weights, model, scheme, SPECIAL, config, split=split)
    want, got = one.complete(asked), many.complete(asked)
    for a, b in zip(want, got, strict=True):
        np.testing.assert_array_equal(a.tokens, b.tokens, err_msg=name)
        np.testing.assert_allclose(a.logp, b.logp, atol=2e-5, err_msg=name)
        np.testing.assert_array_equal(a.visible, b.visible, err_msg=name)
        np.testing.assert_array_equal(a.held, b.held, err_msg=name)
        np.testing.assert_array_equal(a.death, b.death, err_msg=name)
        np.testing.assert_allclose(a.top_logps, b.top_logps, atol=2e-5, err_msg=name)
        assert a.finish == b.finish
        if a.record is not None:
            np.testing.assert_array_equal(a.record, b.record, err_msg=name)
    assert many.programs.block._cache_size() == 1, many.programs.block._cache_size()
    print(name, flush=True)
    if more.get("eviction"):
        assert any((np.asarray(c.record) < 1000).any() for c in got), "nothing was evicted"
    text = many.programs.block.lower(many.weights, many.state, many.cache, np.ones(parts, np.int32)).compile().as_text()
    sizes = [int(np.prod([int(n) for n in shape.split(",") if n])) for shape in
             re.findall(r"= \\w+\\[([\\d,]*)\\]\\S* (?:all-gather|all-to-all|collective-permute)", text)]
    rows = 8 // parts
    assert max(sizes, default=0) <= rows * 2 * max(devices, 2) , (name, sizes)
    assert bool(re.search("all-reduce", text)) == (tensor > 1)
print("the same")
'''


@pytest.mark.slow
@pytest.mark.parametrize(
    "tensor, devices, kinds",
    [(1, 8, ("lightthinker",)), (2, 8, ("lightthinker", "rkv")), (2, 2, ("random", "h2o"))],
    ids=["8x1", "4x2", "1x2"],
)
def test_tokens_and_log_probs_are_those_of_one_device(tensor, devices, kinds):
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # most of it is compiling
    assert "the same" in over_eight_devices(PROGRAM, str(tensor), str(devices), *kinds, more=quick)


ALL_DEVICES = """
import sys
import jax, lt_jax, numpy as np
asked = ["Sum 1)+006", "1", "2)+01"]
how = dict(max_new=12, n=2, temperature=0.7, seed=3)
rows = lt_jax.load(sys.argv[1])
both = lt_jax.load(sys.argv[1], tensor=2)
assert rows.parts == 8 and both.parts == 4
assert rows.generate(asked, **how) == both.generate(asked, **how)
q = both.params["layers"]["q"]["w"]
assert q.addressable_shards[0].data.shape[-1] * 2 == q.shape[-1]
a, b = (model.score("Sum 1)+006 2") for model in (rows, both))
np.testing.assert_allclose(a, b, atol=1e-4)
print("the same")
"""


@pytest.mark.slow
def test_a_loaded_model_uses_all_devices(tmp_path):
    folder = make(tmp_path / "light", Scheme(n_gist=2))
    assert "the same" in over_eight_devices(ALL_DEVICES, str(folder))


def test_runs_have_as_many_of_each_part_or_none():
    rows = [0, 1, 2, 10, 11, 30]
    assert list(powers(rows, 4, lambda row: row // 10)) == [[0, 1, 10, 11], [2, 30]]
    assert list(powers(list(range(7)), 4)) == [[0, 1, 2, 3], [4, 5], [6]]


def test_what_a_mesh_does_not_divide_is_refused():
    mesh = jax.sharding.AbstractMesh((2, 4), ("rows", "tensor"))
    with pytest.raises(UserError, match="decode.rows is 3, which 2 devices cannot share evenly; a multiple of 2"):
        Spread(Split(mesh, ("rows",), None), 3, MODEL)
    with pytest.raises(UserError, match="4 devices cannot share model.kv_heads of 2 evenly"):
        Spread(Split(mesh, ("rows",), "tensor"), 4, MODEL)
    with pytest.raises(UserError, match=f"tensor is 3, which does not divide the {len(jax.local_devices())} devices"):
        over_devices(tensor=3)
    assert over_devices(jax.devices()[:1]) is None


def test_native_products_are_for_one_device():
    mesh = jax.sharding.Mesh(np.asarray(jax.devices()[:1]).reshape(1, 1), ("rows", "tensor"))
    split = Split(mesh, ("rows",), "tensor")
    with pytest.raises(UserError, match="is 'native', which is for one device; on a mesh 'plain' would do"):
        Engine(params(), MODEL, Scheme(method="vanilla"), SPECIAL, DecodeConfig(implementation="native"), split=split)


@pytest.mark.parametrize("form", ["native", "plain"])
def test_the_making_of_weights_takes_little_beside_them(form):
    """Not a merged copy of all layers, nor many layers in the making at once."""
    model = MODEL.replace(layers=24, hidden=64, intermediate=256, lora=LoraConfig(rank=2))
    whole, given = Spread(None, 4, model), parameters.abstract(model)
    tables, layer = whole.making
    rest = {name: x for name, x in given.items() if name != "layers"}
    one = layer.lower(given["layers"], jax.ShapeDtypeStruct((), jnp.int32), form).compile().memory_analysis()
    other = tables.lower(rest, form).compile().memory_analysis()
    merged = parameters.nbytes(parameters.abstract(model.replace(lora=None))["layers"])
    assert one.output_size_in_bytes * model.layers >= merged  # nothing is left out
    assert one.temp_size_in_bytes < merged / 12 and other.temp_size_in_bytes < merged / 12
    shapes = lambda make: jax.tree.map(lambda x: (x.shape, x.dtype), jax.eval_shape(make, given))
    assert shapes(lambda p: whole.form(p, form)) == shapes(lambda p: weights.decoding_form(p, model, form))
