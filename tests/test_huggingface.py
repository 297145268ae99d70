"""Checkpoint folders: out and in with the same bytes, sharded files, tokenizers, one clear line for bad ones."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from safetensors import numpy as library

from lt_jax.errors import UserError
from lt_jax.models import huggingface, params, safetensors
from lt_jax.models.config import Llama3Scaling, LoraConfig, YarnScaling
from lt_jax.models.presets import PRESETS

CONFIG = PRESETS["tiny"].replace(vocab_size=200, tie_embeddings=False)


def make(config=CONFIG, dtype=jnp.float32, seed=0):
    tree = jax.jit(params.init, static_argnums=1)(jax.random.key(seed), config)
    return jax.tree.map(lambda x: jnp.asarray(np.asarray(x).astype(dtype)), tree)


def same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(np.asarray(x), np.asarray(y)), a, b)


def unpadded(tree, config):
    """The tree with zeros where a loaded one has its padding."""
    out = {**tree, "embed": tree["embed"].at[config.vocab_size :].set(0)}
    return out | {"head": tree["head"].at[:, config.vocab_size :].set(0)} if "head" in tree else out


@pytest.fixture
def folder(tmp_path):
    return huggingface.save(tmp_path / "model", make(), CONFIG)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
@pytest.mark.parametrize("max_file_bytes", [10**9, 50_000], ids=["one file", "many files"])
def test_export_import_export_keeps_every_byte(tmp_path, dtype, max_file_bytes):
    tree = make(dtype=dtype)
    one, two = tmp_path / "one", tmp_path / "two"
    huggingface.save(one, tree, CONFIG, max_file_bytes=max_file_bytes)
    back, config = huggingface.load(one)
    same(back, unpadded(tree, CONFIG))
    assert config.replace(extra="{}") == CONFIG
    huggingface.save(two, back, config, max_file_bytes=max_file_bytes)
    names = sorted(p.name for p in one.iterdir())
    assert names == sorted(p.name for p in two.iterdir()) and (len(names) > 5) == (max_file_bytes < 10**9)
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes(), name
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_our_format_is_the_format(tmp_path):
    """Files we write are read by the safetensors library with the same values, and the other way round."""
    values = {"a": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.ones(3, ml_dtypes.bfloat16), "c": np.int64(3)}
    values = {name: np.asarray(value) for name, value in values.items()}
    safetensors.write(tmp_path / "x", [(n, v.shape, v.dtype, lambda v=v: v) for n, v in values.items()])
    same(library.load_file(tmp_path / "x"), values)
    library.save_file(values, tmp_path / "y")
    same(safetensors.read(tmp_path / "y"), values)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_pages_of_a_file_that_was_read_are_let_go_of(tmp_path):
    value = np.arange(2**20, dtype=np.float32).reshape(1024, 1024)
    safetensors.write(tmp_path / "x", [("a", value.shape, value.dtype, lambda: value)])
    read = safetensors.read(tmp_path / "x")["a"]

    def resident():
        lines = (Path("/proc/self/smaps").read_text().split(str(tmp_path / "x"))[1]).splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("Rss:"))

    for view in (read, read.T, read[3:].T):
        assert view.sum(dtype=np.float64) > 0 and resident() >= 4000
        safetensors.release(view)
        assert resident() == 0
    np.testing.assert_array_equal(read, value)
    safetensors.release(value)  # no file's, and left alone


def test_vocabulary_is_unpadded_and_dtype_converted(folder, tmp_path):
    raw = json.loads((folder / "config.json").read_text())
    assert raw["vocab_size"] == 200 and raw["torch_dtype"] == "float32"
    tensors = safetensors.read_folder(folder)
    assert tensors["model.embed_tokens.weight"].shape == (200, 64) and tensors["lm_head.weight"].shape == (200, 64)
    tree, config = huggingface.load(folder, jnp.bfloat16, compute_dtype="bfloat16")
    assert config.dtype == "bfloat16" and tree["embed"].shape == (256, 64) and tree["embed"].dtype == jnp.bfloat16
    huggingface.save(tmp_path / "half", make(), CONFIG, dtype=jnp.bfloat16)
    assert json.loads((tmp_path / "half/config.json").read_text())["torch_dtype"] == "bfloat16"
    same(huggingface.load(tmp_path / "half")[0], tree)


def test_lora_is_merged_on_export(tmp_path):
    from lt_jax.models import lora

    tree, config = lora.add(make(), CONFIG, LoraConfig(rank=2, rows=(190, 10)), jax.random.key(1))
    tree["layers"]["q"]["lora_b"] += 1.0
    tree["new_rows"]["head"] += 1.0
    huggingface.save(tmp_path / "m", tree, config)
    back, loaded = huggingface.load(tmp_path / "m")
    assert loaded.lora is None
    same(back, unpadded(lora.merge(tree, config)[0], CONFIG))


def test_tokenizer_and_further_files(tmp_path):
    """The tokenizer travels with the model, and `transformers` reads it; a folder without one is an error."""
    from tokenizers import Tokenizer, models
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    core = Tokenizer(models.WordLevel({"a": 0, "b": 1, "?": 2}, unk_token="?"))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="b")
    one = huggingface.save(tmp_path / "one", make(), CONFIG, tokenizer, files={"notes.json": '{"x": 1}'})
    two = huggingface.save(tmp_path / "two", make(), CONFIG, one)
    assert json.loads((one / "tokenizer_config.json").read_text())["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert (two / "tokenizer.json").read_bytes() == (one / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(two)("a")["input_ids"] == [0]
    assert json.loads((one / "notes.json").read_text()) == {"x": 1}
    with pytest.raises(UserError, match="tokenizer.json: no such file"):
        huggingface.save(tmp_path / "three", make(), CONFIG, tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["one", "two"]


def test_config_is_read_in_the_forms_of_transformers_4_and_5(tmp_path):
    from transformers import AutoConfig

    for name in ("qwen2.5-7b", "qwen3-0.6b", "llama-3.2-1b", "r1-distill-qwen-7b"):
        config = PRESETS[name]
        raw = huggingface.to_hf(config, "bfloat16")
        assert huggingface.from_hf(raw).replace(extra="{}") == config
        (tmp_path / "config.json").write_text(json.dumps(raw))
        new = AutoConfig.from_pretrained(tmp_path).to_dict()
        assert "rope_parameters" in new
        again = huggingface.from_hf(new)
        assert again.replace(extra="{}") == config
        for out in (raw, huggingface.to_hf(again, "bfloat16")):  # both forms, whichever it came in
            assert out["rope_parameters"] == new["rope_parameters"] and out["dtype"] == out["torch_dtype"] == "bfloat16"
            assert out["rope_theta"] == config.rope_theta and bool(out["rope_scaling"]) == bool(config.rope_scaling)
            assert (out["rope_scaling"] or {}).items() <= out["rope_parameters"].items()
    assert PRESETS["llama-3.2-1b"].rope_scaling == Llama3Scaling(32.0, 1.0, 4.0, 8192)


def read_rope(**said):
    """Base, scaling and length of a tiny config.json that says this of RoPE."""
    raw = {key: value for key, value in huggingface.to_hf(CONFIG, "float32").items() if not key.startswith("rope")}
    config = huggingface.from_hf(raw | {"max_position_embeddings": 64} | said)
    return config.rope_theta, config.rope_scaling, config.max_positions


def test_rope_is_found_in_every_place_it_is_written():
    """Nested for each type of layers too, as transformers 5 does it, as long as all are the same."""
    yarn = YarnScaling(4.0, 64)
    assert read_rope() == (1e4, None, 64)
    assert read_rope(rope_parameters=BASE) == read_rope(rope_theta=1e6) == (1e6, None, 64)
    assert read_rope(rope_parameters={"full_attention": BASE}) == (1e6, None, 64)
    assert read_rope(rope_parameters={"full_attention": YARN | {"rope_theta": 1e6}}) == (1e6, yarn, 256)
    both = {"full_attention": {"rope_type": "default"}, "sliding_attention": BASE, "rope_theta": 1e6}
    assert read_rope(rope_parameters=both, rope_scaling=None) == (1e6, None, 64)
    assert read_rope(rope_theta=1e6, rope_scaling=YARN) == (1e6, yarn, 256)
    old = {"type": "yarn", "factor": 4}  # without the original length it is max_position_embeddings
    assert read_rope(rope_scaling=old, rope_theta=1e6, rope_parameters=YARN | {"rope_theta": 1e6}) == (1e6, yarn, 256)
    assert read_rope(rope_scaling=YARN, max_position_embeddings=1000) == (1e4, yarn, 1000)


def test_yarn_goes_through_an_export_with_all_it_came_with(caplog):
    """R1-0528-Qwen3-8B has a key that transformers does not use, and says so, and neither do we."""
    full = {"attention_factor": 0.9, "beta_fast": 16.0, "beta_slow": 2.0, "mscale": 0.7, "mscale_all_dim": 0.3}
    for said in (YARN | {"attn_factor": 0.8782488562869419}, YARN | full | {"truncate": False}):
        raw = huggingface.to_hf(CONFIG, "float32") | {"rope_scaling": said}
        del raw["rope_parameters"]
        config = huggingface.from_hf(raw)
        out = huggingface.to_hf(config, "float32")
        assert out["rope_scaling"] == said and out["rope_parameters"] == said | {"rope_theta": 1e4}
        again = huggingface.from_hf(json.loads(json.dumps(out)))
        assert again.replace(extra="{}") == config.replace(extra="{}")
    assert again.rope_scaling == YarnScaling(4.0, 64, *full.values(), truncate=False)
    said = "config.json: attn_factor = 0.8782488562869419 of yarn rope is not used, as in transformers"
    assert [record.message for record in caplog.records] == [said]


def edit(folder, **changes):
    raw = json.loads((folder / "config.json").read_text()) | changes
    (folder / "config.json").write_text(json.dumps({k: v for k, v in raw.items() if v != "absent"}))


def edit_tensors(folder, change):
    tensors = dict(library.load_file(folder / "model.safetensors"))
    change(tensors)
    library.save_file(tensors, folder / "model.safetensors")


def truncate(path, keep):
    path.write_bytes(path.read_bytes()[:keep])


YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
BASE = {"rope_type": "default", "rope_theta": 1e6}
Q0 = "model.layers.0.self_attn.q_proj.weight"
BAD = {
    "no config": (lambda f: (f / "config.json").unlink(), "config.json: no such file"),
    "config no JSON": (lambda f: (f / "config.json").write_text("{"), "config.json: not JSON"),
    "family": (lambda f: edit(f, model_type="gpt2"), "'gpt2' is not supported; supported are llama, qwen2, qwen3"),
    "no family": (lambda f: edit(f, model_type="absent"), "model_type None is not supported"),
    "no size": (lambda f: edit(f, hidden_size="absent"), "hidden_size is None; it must be a whole number"),
    "size is text": (lambda f: edit(f, vocab_size="many"), "vocab_size is 'many'; it must be a whole number"),
    "kv heads are text": (lambda f: edit(f, num_key_value_heads="2"), "num_key_value_heads is '2'; it must be a whole"),
    "no kv heads": (lambda f: edit(f, num_key_value_heads=0), "num_key_value_heads is 0; it must be a whole number"),
    "head size is text": (lambda f: edit(f, head_dim="16"), "head_dim is '16'; it must be a whole number of 1 or more"),
    "no heads": (lambda f: edit(f, num_attention_heads=0), "num_attention_heads is 0; it must be a whole number of 1"),
    "size is no whole number": (lambda f: edit(f, hidden_size=64.0), "hidden_size is 64.0; it must be a whole number"),
    "positions": (lambda f: edit(f, max_position_embeddings="x"), "max_position_embeddings is 'x'; it must be a whole"),
    "family is a list": (lambda f: edit(f, model_type=["qwen2"]), "model_type ['qwen2'] is not supported"),
    "norm": (lambda f: edit(f, rms_norm_eps="1e-6"), "rms_norm_eps is '1e-6'; it must be a number above 0"),
    "base is text": (lambda f: edit(f, rope_theta="x"), "rope_theta is 'x'; it must be a number above 0"),
    "rope is a list": (lambda f: edit(f, rope_parameters=[1]), "rope_parameters is [1]; it must be an object"),
    "rope is a number": (lambda f: edit(f, rope_scaling=2.0), "rope_scaling is 2.0; it must be an object"),
    "llama3 rope is text": (
        lambda f: edit(f, rope_scaling={"rope_type": "llama3", "factor": "8", "low_freq_factor": 1,
                                        "high_freq_factor": 4, "original_max_position_embeddings": 8192}),
        "factor is '8'; it must be a number above 0",
    ),
    "rope": (
        lambda f: edit(f, rope_scaling={"rope_type": "dynamic"}),
        "rope scaling 'dynamic' is not supported; supported are default, llama3, yarn",
    ),
    "rope linear": (lambda f: edit(f, rope_scaling={"type": "linear"}), "rope scaling 'linear' is not supported"),
    "rope longrope": (lambda f: edit(f, rope_parameters={"rope_type": "longrope"}), "'longrope' is not supported"),
    "rope kind": (lambda f: edit(f, rope_scaling={"rope_type": ["yarn"]}), "rope scaling ['yarn'] is not supported"),
    "yarn rope": (lambda f: edit(f, rope_scaling={"rope_type": "yarn"}), "yarn rope scaling has no factor"),
    "yarn factor": (lambda f: edit(f, rope_scaling=YARN | {"beta_fast": "32"}), "beta_fast is '32'; it must be a numb"),
    "yarn truncate": (lambda f: edit(f, rope_scaling=YARN | {"truncate": 1}), "truncate is 1; it must be true or"),
    "two scalings": (
        lambda f: edit(f, rope_scaling=YARN),
        "rope_parameters and rope_scaling name different RoPE; transformers 4 and 5 would differ too",
    ),
    "two bases": (lambda f: edit(f, rope_theta=5e5), "rope_parameters.rope_theta and rope_theta name different RoPE"),
    "two lengths": (
        lambda f: edit(f, rope_parameters=YARN, rope_theta="absent", original_max_position_embeddings=128),
        "original_max_position_embeddings is 128, and 64 for RoPE's scaling; they must be the same",
    ),
    "rope of layers": (
        lambda f: edit(f, rope_parameters={"full_attention": BASE, "sliding_attention": BASE | {"rope_theta": 1e4}}),
        "rope_parameters differs between full_attention and sliding_attention; supported is one RoPE for all layers",
    ),
    "rotated part": (lambda f: edit(f, partial_rotary_factor=0.5), "partial_rotary_factor = 0.5 is not supported"),
    "rotated part of rope": (
        lambda f: edit(f, rope_parameters=BASE | {"partial_rotary_factor": 0.5}, rope_theta="absent"),
        "rope_parameters.partial_rotary_factor = 0.5 is not supported",
    ),
    "layers that slide": (
        lambda f: edit(f, layer_types=["full_attention", "sliding_attention"]),
        "layer_types = ['full_attention', 'sliding_attention'] is not supported",
    ),
    "layer types are a number": (lambda f: edit(f, layer_types=2), "layer_types = 2 is not supported"),
    "attention bias": (lambda f: edit(f, attention_bias=True), "attention_bias = True is not supported"),
    "MLP bias": (lambda f: edit(f, mlp_bias=True), "mlp_bias = True is not supported"),
    "both directions": (lambda f: edit(f, is_causal=False), "is_causal = False is not supported"),
    "quantized": (lambda f: edit(f, quantization_config={"bits": 4}), "quantization_config = {'bits': 4} is not supp"),
    "layers of their own": (lambda f: edit(f, per_layer_config={"0": {"a": 1}}), "per_layer_config = {'0'"),
    "end is text": (
        lambda f: (f / "generation_config.json").write_text('{"eos_token_id": "<|im_end|>"}'),
        "generation_config.json: eos_token_id is '<|im_end|>'; it must be the id of a token, or a list of ids",
    ),
    "end of the config is text": (lambda f: edit(f, eos_token_id=[1, "2"]), "config.json: eos_token_id is [1, '2'];"),
    "end below 0": (lambda f: edit(f, eos_token_id=-1), "config.json: eos_token_id is -1; it must be the id"),
    "generation no JSON": (
        lambda f: (f / "generation_config.json").write_text("[]"), "generation_config.json: not a JSON object",
    ),
    "llama3 rope": (lambda f: edit(f, rope_scaling={"rope_type": "llama3"}), "llama3 rope scaling has no factor"),
    "activation": (lambda f: edit(f, hidden_act="gelu"), "hidden_act = 'gelu' is not supported"),
    "sliding": (lambda f: edit(f, use_sliding_window=True), "use_sliding_window = True is not supported"),
    "no weights": (lambda f: (f / "model.safetensors").unlink(), "neither model.safetensors nor"),
    "truncated": (lambda f: truncate(f / "model.safetensors", 5000), "model.safetensors: truncated, 5,000 bytes of"),
    "truncated header": (lambda f: truncate(f / "model.safetensors", 100), "truncated, 100 bytes where the header"),
    "empty": (lambda f: truncate(f / "model.safetensors", 0), "not a safetensors file (no header)"),
    "text": (lambda f: (f / "model.safetensors").write_text("version https://git-lfs"), "not a safetensors file"),
    "missing": (lambda f: edit_tensors(f, lambda t: t.pop(Q0)), f"tensor {Q0} is missing"),
    "shape": (
        lambda f: edit_tensors(f, lambda t: t.update({Q0: t[Q0][:-1].copy()})),
        f"tensor {Q0} has shape [63, 64], expected [64, 64]",
    ),
    "vocabulary": (lambda f: edit(f, vocab_size=201), "embed_tokens.weight has shape [200, 64], expected [201, 64]"),
    "strange": (
        lambda f: edit_tensors(f, lambda t: t.update(extra=np.zeros(1, np.float32))),
        "tensor extra (of 1 such) has no place in a qwen2",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_folder_gets_one_clear_line(case, folder):
    spoil, message = BAD[case]
    spoil(folder)
    with pytest.raises(UserError) as error:
        huggingface.load(folder)
    assert message in str(error.value) and str(folder) in str(error.value) and "\n" not in str(error.value)


def test_bad_sharded_folders(tmp_path):
    with pytest.raises(UserError, match="nowhere: no such folder"):
        huggingface.load(tmp_path / "nowhere")
    folder = huggingface.save(tmp_path / "many", make(), CONFIG, max_file_bytes=50_000)
    first = sorted(folder.glob("model-*"))[0]
    content = first.read_bytes()
    first.unlink()
    with pytest.raises(UserError, match=f"{first.name}: no such file"):
        huggingface.load(folder)
    library.save_file({"x": np.zeros(1)}, first)
    with pytest.raises(UserError, match=r"tensor model\..* is missing, which model.safetensors.index.json says"):
        huggingface.load(folder)
    first.write_bytes(content)
    huggingface.load(folder)
    (folder / "model.safetensors.index.json").write_text("[]")
    with pytest.raises(UserError, match="not a safetensors index"):
        huggingface.load(folder)


def test_save_replaces_only_checkpoints_and_only_when_asked(tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    (target / "thesis.txt").write_text("mine")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is no checkpoint folder"):
            huggingface.save(target, make(), CONFIG, overwrite=overwrite)
    (target / "thesis.txt").unlink()
    huggingface.save(target, make(seed=0), CONFIG)
    with pytest.raises(UserError, match="a checkpoint is there already"):
        huggingface.save(target, make(seed=1), CONFIG)
    huggingface.save(target, make(seed=1), CONFIG, overwrite=True)
    same(huggingface.load(target)[0], unpadded(make(seed=1), CONFIG))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_full_disk_leaves_the_old_checkpoint_and_no_rest(tmp_path, monkeypatch):
    huggingface.save(tmp_path / "model", make(seed=0), CONFIG)

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(safetensors.os, "fsync", full)
    with pytest.raises(UserError, match=r"model: could not be written \(No space left on device\); nothing was left"):
        huggingface.save(tmp_path / "model", make(seed=1), CONFIG, overwrite=True)
    monkeypatch.undo()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    same(huggingface.load(tmp_path / "model")[0], unpadded(make(seed=0), CONFIG))


def test_a_model_without_a_family_is_not_exported(tmp_path):
    odd = PRESETS["tiny"].replace(qk_norm=True)
    with pytest.raises(UserError, match="qkv_bias=True and qk_norm=True is no qwen2"):
        huggingface.save(tmp_path / "odd", make(odd), odd)
    assert not list(tmp_path.iterdir())
