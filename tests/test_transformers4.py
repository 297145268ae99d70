"""Both major versions of `transformers` load what we export: equal logits, tokens, templates and ends of rows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lt_jax.data.tokenizer import CHAT_TEMPLATE
from lt_jax.layout.scheme import Scheme
from lt_jax.model import load
from lt_jax.models import decoder, huggingface
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.training import export
from tests import tiny_folder, transformers_reader

ROOT = Path(__file__).parents[1]
VERSION_4 = ROOT / "build" / "transformers4"
ASKED = {
    "tokens": list(range(40, 140)),
    "text": "<|user|>Sum 1)+001  2)+02\n\nok<|end|><|o_1|>x",
    "chat": [{"role": "user", "content": "1+1?"}, {"role": "assistant", "content": "2"}],
}
SIZES = dict(hidden=48, intermediate=80, layers=2, heads=4, kv_heads=2, head_dim=16, rope_theta=1e6)
# As Qwen2's tokenizers split; for this family transformers 5 splits so whatever tokenizer.json says.
SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attn_factor": 0.878}


def edit(path: Path, drop=(), **changes) -> None:
    values = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({key: value for key, value in (values | changes).items() if key not in drop}))


def qwen2_of_4(folder: Path) -> None:
    """As Qwen2.5's own folders are: two ends, further special tokens by their old name."""
    core = json.loads((folder / "tokenizer.json").read_text())
    core["normalizer"] = {"type": "NFC"}
    core["pre_tokenizer"]["pretokenizers"][0]["pattern"] = {"Regex": SPLIT}
    core["padding"] = {"strategy": {"Fixed": 16}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 0,
                       "pad_type_id": 0, "pad_token": "<|pad|>"}  # fmt: skip
    core["truncation"] = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
    (folder / "tokenizer.json").write_text(json.dumps(core))
    names = ["<|user|>", "<|assistant|>"]
    edit(folder / "tokenizer_config.json", additional_special_tokens=names, tokenizer_class="Qwen2Tokenizer",
         chat_template=CHAT_TEMPLATE)  # fmt: skip
    (folder / "chat_template.jinja").unlink()
    edit(folder / "config.json", ["rope_parameters", "dtype"], eos_token_id=3, bos_token_id=0)
    edit(folder / "generation_config.json", eos_token_id=[3, 0], pad_token_id=0, do_sample=True, temperature=0.7)


def qwen3_of_5(folder: Path) -> None:
    """As transformers 5 saves: RoPE in one object, YaRN in it, the class for any tokenizer.json, the new name."""
    rope = YARN | {"rope_theta": 1e6}
    edit(folder / "config.json", ["rope_theta", "rope_scaling", "torch_dtype"], rope_parameters=rope, eos_token_id=3)
    edit(folder / "tokenizer_config.json", extra_special_tokens=["<|user|>"], tokenizer_class="TokenizersBackend",
         backend="tokenizers", is_local=True)  # fmt: skip


def trained_llama(folder: Path) -> None:
    """A folder that was trained here and exported before ends were written: with no end but the tokenizer's."""
    edit(folder / "config.json", ["rope_parameters", "dtype", "eos_token_id"])


SOURCES = {
    "qwen2 of 4": (qwen2_of_4, dict(model_type="qwen2", qkv_bias=True, tie_embeddings=False), None),
    "qwen3 of 5": (qwen3_of_5, dict(model_type="qwen3", qk_norm=True), None),
    "trained llama": (trained_llama, dict(model_type="llama"), Scheme(n_gist=2)),
}
ENDS = {"qwen2 of 4": [3, 0], "qwen3 of 5": 3, "trained llama": 3}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> dict[str, Path]:
    """A folder of each kind, written again by `convert`."""
    out = {}
    for name, (change, family, scheme) in SOURCES.items():
        folder = tiny_folder.make(tmp_path_factory.mktemp("source") / "model", scheme)
        config = DecoderConfig(**SIZES, vocab_size=huggingface.read_config(folder).vocab_size, **family)
        tree, draw = parameters.init(jax.random.key(0), config), np.random.default_rng(0)
        tree = jax.tree.map(lambda x, draw=draw: x + draw.normal(0, 0.1, x.shape).astype(np.float32), tree)
        files = {path.name: path.read_text() for path in folder.glob("lt_jax.json")}
        huggingface.save(folder, tree, config, tiny_folder.load_tokenizer(folder), overwrite=True, files=files)
        change(folder)
        out[name] = export.convert(folder, folder.parent / "exported")
    return out


@pytest.fixture(scope="module")
def version_4(exported) -> dict[str, dict]:
    """What transformers 4 makes of the folders."""
    if not (VERSION_4 / "transformers").is_dir():
        pytest.fail(f'{VERSION_4} is missing; make it with `make transformers4`, or use -m "not transformers4"')
    env = os.environ | {"PYTHONPATH": str(VERSION_4), "HF_HUB_OFFLINE": "1"}
    reader = [sys.executable, "-W", "ignore", transformers_reader.__file__]
    command = reader + [str(folder) for folder in exported.values()]
    run = subprocess.run(command, input=json.dumps(ASKED), env=env, capture_output=True, text=True, timeout=300)
    assert not run.returncode, run.stderr[-2000:]
    return dict(zip(exported, json.loads(run.stdout), strict=True))


@pytest.mark.slow
@pytest.mark.transformers4
@pytest.mark.parametrize("name", SOURCES)
def test_both_versions_read_the_same_of_an_export(name, exported, version_4):
    old, new = version_4[name], transformers_reader.read(str(exported[name]), **ASKED)
    assert (old.pop("version"), new.pop("version")) == ("4", "5")
    first, second = np.asarray(old.pop("logits")), np.asarray(new.pop("logits"))
    np.testing.assert_allclose(first, second, atol=1e-4, rtol=0)
    assert old == new

    writer = load(exported[name])
    tokens = jnp.asarray([ASKED["tokens"]])
    logits = lambda model: decoder.logits(writer.params, model, decoder.forward(writer.params, model, tokens))[0]
    ours = np.asarray(logits(writer.config))[:, : writer.config.vocab_size]
    np.testing.assert_allclose(ours, first, atol=1e-4, rtol=0)
    assert np.abs(logits(writer.config.replace(rope_theta=1e4))[:, : ours.shape[1]] - first).max() > 0.01
    assert old["ids"] == writer.tokenize(ASKED["text"]) and len(old["ids"]) > 16
    assert old["ends"] == ENDS[name] and old["dtype"] == "torch.float32"
    ends = ENDS[name] if isinstance(ENDS[name], list) else [ENDS[name]]
    assert [writer.special.eos, *writer.stop] == ends and old["tokenizer"] == [3, 0]
    assert old["chat"] == "<|user|>1+1?<|assistant|>2<|end|><|assistant|>"
