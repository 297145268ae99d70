"""Folders out: of a run's newest checkpoint, of another folder, of a released checkpoint."""

import dataclasses
import json
import shutil
import time
from pathlib import Path

import jax
import pytest
from transformers import PreTrainedTokenizerFast

from lt_jax.data.pipeline import PipelineConfig
from lt_jax.errors import UserError
from lt_jax.layout import card
from lt_jax.layout.scheme import Scheme
from lt_jax.model import load
from lt_jax.models import huggingface
from lt_jax.models import params as parameters
from lt_jax.models.config import LoraConfig
from lt_jax.models.presets import TINY
from lt_jax.training import export, sft
from lt_jax.training.config import OptimizerConfig, TrainConfig
from tests.layout_tools import with_end, word_tokenizer
from tests.tiny_folder import make

SAME = ("model.safetensors", "config.json", "tokenizer.json", card.NAME)


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("models") / "base")


def train(base: Path, folder: Path, **changes) -> Path:
    """The folder of a two-step run with adapters."""
    traces = folder / "traces.jsonl"
    record = {"question": "Sum 1)+001 2)+002", "thoughts": ["1) 0+1=1\n", "2) 1+2=3\n", "Answer \\boxed{3}"]}
    traces.write_text("\n".join(json.dumps(record | {"source": str(i)}) for i in range(8)))
    config = sft.SftConfig(
        folder=str(folder / "run"), model=str(base), source=sft.SourceConfig((str(traces),)),
        batches=PipelineConfig(length=128, batch=2), scheme=Scheme(n_gist=2), lora=LoraConfig(rank=2),
        train=TrainConfig(steps=2, save_every=1, optim=OptimizerConfig(learning_rate=1e-2)), tensorboard=False,
    )  # fmt: skip
    sft.sft(dataclasses.replace(config, **changes), say=lambda line: None)
    return folder / "run"


@pytest.fixture(scope="module")
def run(base, tmp_path_factory) -> Path:
    return train(base, tmp_path_factory.mktemp("runs"))


def test_the_newest_checkpoint_is_what_the_run_exported(run, tmp_path):
    out = export.convert(run, tmp_path / "out")
    for name in SAME:
        assert (out / name).read_bytes() == (run / "final" / name).read_bytes(), name
    writer = load(out)
    assert writer.scheme == Scheme(n_gist=2) and writer.config.lora is None


def test_run_folders_that_cannot_be_exported(run, tmp_path):
    empty = tmp_path / "empty"
    shutil.copytree(run, empty, ignore=shutil.ignore_patterns("1", "2", "final", "data"))
    with pytest.raises(UserError, match="there is no checkpoint yet"):
        export.convert(empty, tmp_path / "a")
    (empty / "config.json").write_text("{")
    with pytest.raises(UserError, match="config.json: not the config of a run"):
        export.convert(empty, tmp_path / "a")
    with pytest.raises(UserError, match="a run folder knows its tokens"):
        export.convert(run, tmp_path / "a", table="qwen")
    other = tmp_path / "other"
    shutil.copytree(run, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"model": str(make(tmp_path / "seed1", seed=1))}))
    with pytest.raises(UserError, match="its adapters belong to other base weights than those in"):
        export.convert(other, tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_folder_again_is_the_same_bytes(base, tmp_path):
    first = export.convert(base, tmp_path / "first")
    for name in SAME[:3]:
        assert (first / name).read_bytes() == (base / name).read_bytes(), name
    assert not (first / card.NAME).exists()
    with pytest.raises(UserError, match="a checkpoint is there already"):
        export.convert(base, first)
    half = export.convert(base, first, dtype="bfloat16", overwrite=True)
    assert (half / "model.safetensors").stat().st_size < 0.6 * (base / "model.safetensors").stat().st_size


def test_the_card_goes_along(tmp_path):
    light = make(tmp_path / "light", Scheme("anllm"))
    again = export.convert(light, tmp_path / "again")
    assert (again / card.NAME).read_bytes() == (light / card.NAME).read_bytes()
    assert load(again).scheme == Scheme("anllm")


def test_a_released_checkpoint_needs_its_own_tokenizer(base, tmp_path):
    with pytest.raises(UserError, match=r"eos '<\|im_end\|>' is 10 tokens of this tokenizer"):
        export.convert(base, tmp_path / "a", table="qwen")
    with pytest.raises(UserError, match="no such folder"):
        export.convert(tmp_path / "none", tmp_path / "a")


def test_a_released_checkpoint_is_completed_with_its_tokens(tmp_path):
    """As the release is: weights with rows for the new tokens, the tokenizer only that of the base model."""
    tokenizer = with_end(word_tokenizer("a b", 151_664), "<|im_end|>")
    model = dataclasses.replace(TINY, vocab_size=151_682, hidden=16, tie_embeddings=True)
    huggingface.save(tmp_path / "release", parameters.init(jax.random.key(0), model), model)
    (tmp_path / "base").mkdir()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>").save_pretrained(tmp_path / "base")
    out = export.convert(tmp_path / "release", tmp_path / "out", table="qwen", tokenizer=tmp_path / "base")
    writer = load(out)
    assert (writer.special.trigger, writer.special.gists) == (151_665, tuple(range(151_673, 151_682)))
    assert writer.scheme == Scheme(n_gist=9) and len(writer.tokenizer) == 151_682
    assert writer.tokenizer.convert_ids_to_tokens(151_681) == "<|o_8|>" and writer.special.eos == 151_664
    assert (out / "model.safetensors").read_bytes() == (tmp_path / "release" / "model.safetensors").read_bytes()


def test_exporting_while_a_run_saves_leaves_its_save_alone(run, tmp_path):
    writing = run / "checkpoints" / "3.orbax-checkpoint-tmp"
    (writing / "state").mkdir(parents=True)
    export.convert(run, tmp_path / "out")
    time.sleep(0.5)  # whatever Orbax would remove, it removes in the background
    assert (writing / "state").is_dir()
    shutil.rmtree(writing)


def ends(folder: Path) -> list:
    """The ends and the padding that the three files of a folder name."""
    read = lambda name: json.loads((folder / name).read_text())
    config, generation, tokenizer = map(read, ("config.json", "generation_config.json", "tokenizer_config.json"))
    ids = [(each.get("eos_token_id"), each.get("pad_token_id")) for each in (config, generation)]
    return [*ids, (tokenizer["eos_token"], tokenizer["pad_token"])]


def test_the_end_a_model_was_trained_with_is_what_ends_its_rows(base, run, tmp_path):
    """Added before the ends that generation_config.json has, which goes along with all else in it."""
    assert ends(run / "final") == [(3, 0), (3, 0), ("<|end|>", "<|pad|>")]
    start = tmp_path / "start"
    shutil.copytree(base, start)
    said = {"eos_token_id": [3, 0], "temperature": 0.6, "do_sample": True}
    (start / "generation_config.json").write_text(json.dumps(said))
    other = train(start, tmp_path, tokens=sft.TokensConfig(eos="<|user|>", pad="<|assistant|>"))
    final = other / "final"
    assert ends(final) == [(1, 2), ([1, 3, 0], 2), ("<|user|>", "<|assistant|>")]
    assert json.loads((final / "generation_config.json").read_text()).items() >= {"temperature": 0.6}.items()
    writer = load(final)
    assert (writer.special.eos, writer.stop, writer.tokenizer.eos_token_id) == (1, (3, 0), 1)
    again = export.convert(other, tmp_path / "again")
    plain = export.convert(start, tmp_path / "plain")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        assert (again / name).read_bytes() == (final / name).read_bytes(), name
    assert (plain / "generation_config.json").read_bytes() == (start / "generation_config.json").read_bytes()


@pytest.mark.parametrize(
    "generation, config, eos, stop",
    [
        ({"eos_token_id": [2, 3]}, {"eos_token_id": 1}, 3, (2,)),  # the tokenizer's own where it is among them
        ({"eos_token_id": 2}, {"eos_token_id": 3}, 2, ()),
        ({"top_p": 0.9}, {"eos_token_id": [1, 2]}, 1, (2,)),
        (None, {"eos_token_id": 1}, 1, ()),
        (None, {"eos_token_id": None}, 3, ()),
    ],
)
def test_what_ends_a_row_is_what_ends_it_for_generate(generation, config, eos, stop, base, tmp_path):
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(raw | config))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    writer = load(folder)
    assert (writer.special.eos, writer.stop) == (eos, stop)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).generation_config.eos_token_id
    if theirs is not None:  # it never ends then
        assert {eos, *stop} == set(theirs if isinstance(theirs, list) else [theirs])


def test_a_folder_in_which_nothing_ends_a_row_is_refused(base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(base, folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"eos_token": None}))
    with pytest.raises(UserError, match="name no eos_token_id and the tokenizer no eos_token"):
        load(folder)
    (folder / "generation_config.json").write_text('{"eos_token_id": 3}')
    assert load(folder).special.eos == 3
