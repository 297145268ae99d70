"""Supervised training from a folder and a file of traces to an exported folder, and what it says to bad input."""

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import defaults
from launch.settings import sft_config
from lt_jax.data.pipeline import PipelineConfig
from lt_jax.data.traces import convert
from lt_jax.errors import UserError
from lt_jax.layout import card
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.models import huggingface
from lt_jax.models.config import LoraConfig
from lt_jax.training import export
from lt_jax.training import sft as sft_module
from lt_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from lt_jax.training.sft import SftConfig, SourceConfig, TokensConfig, new_rows, sft
from tests.tiny_folder import make
from tests.training_tools import config

ROOT = Path(__file__).parents[1]
QUIET = lambda line: None


def write_traces(path, count=12):
    records = [
        {"question": f"Sum {i}+{i}", "response": f"1) {i}+{i}\n\n2) carry 0\n\n3) so {2 * i}"} for i in range(count)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return make(tmp_path_factory.mktemp("models") / "base")


@pytest.fixture(scope="module")
def traces(tmp_path_factory):
    return write_traces(tmp_path_factory.mktemp("data") / "traces.jsonl")


def settings(folder, base, traces, **more):
    train = {"steps": 4, "log_every": 1, "save_every": 2, "optim": {"learning_rate": 1e-2}, **more.pop("train", {})}
    return SftConfig(**{
        "folder": str(folder), "model": str(base), "source": SourceConfig((str(traces),), held_out=2),
        "batches": PipelineConfig(length=64, batch=2, bins=4, threads=1), "scheme": Scheme(n_gist=2),
        "train": config(**train), "tensorboard": False, **more,
    })  # fmt: skip


@pytest.fixture(scope="module")
def run_folder(base, traces, tmp_path_factory):
    """A finished LoRA run, with what it said."""
    folder, said = tmp_path_factory.mktemp("runs") / "run", []
    final = sft(settings(folder, base, traces, lora=LoraConfig(rank=2), tensorboard=True), said.append)
    assert final == folder / "final"
    return folder, "\n".join(said)


def test_all_turns_of_a_chat_are_trained_where_the_config_says_so(base):
    turns = [{"role": role, "content": f"{role} {n}"} for n in (1, 2) for role in ("user", "assistant")]
    values = defaults.get_config()
    values.model.path, values.data.path, values.scheme.n_gist = str(base), "traces.jsonl", 1
    for which, said in (("last", "assistant 2\n<|end|>"), ("all", "assistant 1\n<|end|>assistant 2\n<|end|>")):
        values.data.turns = which
        config, tokenizer = sft_config(values), load_tokenizer(base)
        special = sft_module.special_tokens(tokenizer, config).special
        row = sft_module.row_maker(config, tokenizer, special)(convert({"messages": turns}))
        trained = row.tokens[row.trained & (row.tokens != special.trigger)]
        assert tokenizer.decode(trained, clean_up_tokenization_spaces=False) == said
    values.data.turns = "first"
    with pytest.raises(UserError, match="data.turns is 'first'"):
        sft_config(values)


def test_what_the_config_puts_around_a_question_is_trained(base):
    values = defaults.get_config()
    values.model.path, values.data.path = str(base), "traces.jsonl"
    values.data.update(prefix="First. ", suffix=" Last.")
    config, tokenizer = sft_config(values), load_tokenizer(base)
    special = sft_module.special_tokens(tokenizer, config).special
    row = sft_module.row_maker(config, tokenizer, special)(convert({"question": "1?", "response": "2"}))
    prompt = tokenizer.decode(row.tokens[: row.prompt_length], clean_up_tokenization_spaces=False)
    assert "First. 1? Last." in prompt


def test_a_run_leaves_config_metrics_checkpoints_and_an_export(run_folder):
    folder, said = run_folder
    kept = {entry.name for entry in folder.iterdir()}
    assert kept == {"config.json", "metrics.jsonl", "checkpoints", "final", "data", "tensorboard"}
    assert json.loads((folder / "config.json").read_text())["scheme"]["n_gist"] == 2
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 4] and lines[-1]["eval_loss"] > 0
    assert lines[3]["loss"] < lines[0]["loss"]
    assert "of which" in said and "memory of a step" in said and "used: " in said and "exported to" in said
    assert "data: 12 samples of " in said and "3.0 thoughts each" in said


def test_a_run_that_finds_nothing_to_compress_says_so_before_it_starts(base, tmp_path, monkeypatch):
    def enough(*_, **__):
        raise UserError("enough")

    monkeypatch.setattr(sft_module.run, "train", enough)
    traces, said = tmp_path / "traces.jsonl", []
    for response, warned in (("1) one line\n2) and the next", True), ("1) one\r\n\r\n2) two\n \n3) three", False)):
        traces.write_text("".join(json.dumps({"question": f"{i}?", "response": response}) + "\n" for i in range(4)))
        with pytest.raises(UserError, match="enough"):
            sft(settings(tmp_path / "run", base, traces), said.append)
        assert said[-1].startswith("warning: lightthinker finds next to nothing to compress") == warned, said


def test_the_export_is_the_base_with_adapters_and_new_rows(run_folder, base):
    final = run_folder[0] / "final"
    (before, was), (after, now) = huggingface.load(base), huggingface.load(final)
    tokenizer = load_tokenizer(final)
    found = card.read_card(final, tokenizer)
    assert found.scheme == Scheme(n_gist=2) and len(found.special.gists) == 2
    assert now.vocab_size == was.vocab_size + 4 == len(tokenizer), "splitter, continue, two gists"
    np.testing.assert_array_equal(after["embed"][: was.vocab_size], before["embed"][: was.vocab_size])
    rows = np.asarray(after["embed"][was.vocab_size : now.vocab_size])
    assert np.linalg.norm(rows, axis=1).min() > 0 and len({row.tobytes() for row in rows}) == 4
    assert bool(jnp.any(after["layers"]["q"]["w"] != before["layers"]["q"]["w"]))
    np.testing.assert_array_equal(after["final_norm"], before["final_norm"])


def test_the_same_command_again_goes_on(run_folder, base, traces):
    folder, _ = run_folder
    said = []
    longer = settings(folder, base, traces, lora=LoraConfig(rank=2), train={"steps": 5}, tensorboard=True)
    assert sft(longer, said.append) == folder / "final"
    assert "going on from the checkpoint of step 4" in said
    steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 4, 5, 5]


@pytest.mark.parametrize(
    "change, said",
    [
        ({"scheme": Scheme(n_gist=3)}, "is 2 there and 3 here|another model"),
        ({"batches": PipelineConfig(length=32, batch=2, bins=4)}, "batches.length is 64 there and 32 here; .*another"),
        ({"lora": LoraConfig(rank=4)}, "lora.rank is 2 there and 4 here"),
    ],
)
def test_another_run_in_the_same_folder_is_refused(run_folder, base, traces, change, said):
    with pytest.raises(UserError, match=said):
        sft(settings(run_folder[0], base, traces, **{"lora": LoraConfig(rank=2), **change}), QUIET)


def test_a_run_may_go_on_after_its_model_was_moved_but_not_exchanged(base, traces, tmp_path):
    """All parameters are trained, so that the checkpoint holds nothing frozen that would tell the base."""
    moved, other, retold = tmp_path / "moved", make(tmp_path / "other", seed=1), tmp_path / "retold"
    shutil.copytree(base, moved)
    shutil.copytree(base, retold)
    (retold / "tokenizer.json").write_text((retold / "tokenizer.json").read_text() + " ")
    go = lambda model, steps: sft(settings(tmp_path / "run", model, traces, train={"steps": steps}), said.append)
    said = []
    go(base, 3)
    assert go(moved, 4) and "going on from the checkpoint of step 3" in said
    with pytest.raises(UserError, match=r"model.weights is \d+ there and \d+ here; it is of another run"):
        go(other, 5)
    with pytest.raises(UserError, match="model.tokenizer is [0-9a-f]+ there and [0-9a-f]+ here; it is of another run"):
        go(retold, 5)
    assert export.convert(tmp_path / "run", tmp_path / "out")
    shutil.copy(retold / "tokenizer.json", moved)
    with pytest.raises(UserError, match="it was trained with another tokenizer than that in"):
        export.convert(tmp_path / "run", tmp_path / "out", overwrite=True)


def test_a_run_goes_on_with_files_of_the_same_bytes_and_names_one_that_changed(base, tmp_path):
    """Renamed, moved, read in another order, and with what was found by itself named: the same run."""
    one, two = write_traces(tmp_path / "one.jsonl", 7), write_traces(tmp_path / "two.jsonl", 5)
    (tmp_path / "moved").mkdir()
    again = shutil.copy(one, tmp_path / "moved" / "zz.jsonl")
    said = []

    def go(paths, steps, **more):
        source = SourceConfig(tuple(map(str, paths)))
        return sft(settings(tmp_path / "run", base, one, source=source, train={"steps": steps}, **more), said.append)

    go([one, two], 3)
    assert go([two, again], 4, tokens=TokensConfig(eos="<|end|>")) and "going on from the checkpoint of step 3" in said
    two.write_text(two.read_text().replace("carry 0", "carry 1"))
    with pytest.raises(UserError, match=rf"checkpoint .*4: it was trained on other data: {two} has changed; put the"):
        go([one, two], 5)
    with pytest.raises(UserError, match="other data: two.jsonl is missing; put"):
        go([one], 5)


def test_a_run_is_told_by_its_template_its_tokens_and_its_problems(base, traces, tmp_path, monkeypatch):
    tokenizer = load_tokenizer(base)
    config = settings(tmp_path / "run", base, traces)
    table = sft_module.special_tokens(tokenizer, config)
    told = lambda config: sft_module.base_of(dataclasses.replace(config, scratch=True), {}, tokenizer)
    before, plain = told(config), dataclasses.replace(config, source=dataclasses.replace(config.source, chat="plain"))
    plain_before = told(plain)
    tokenizer.chat_template = tokenizer.chat_template + " "
    assert told(config) != before and told(plain) == plain_before, "a template that is not used may change"
    describe = sft_module.describe
    same = dataclasses.replace(config, tokens=TokensConfig(eos="<|end|>"), export_dtype="bfloat16", wandb="w")
    same = dataclasses.replace(same, source=dataclasses.replace(config.source, steps=(2, 3), data_dir="elsewhere"))
    assert describe(same, {}, {}, table.special) == describe(config, {}, {}, table.special)
    other = dataclasses.replace(table.special, eos=5)
    assert describe(config, {}, {}, other) != describe(config, {}, {}, table.special)
    made = SourceConfig((), embedded=40, steps=(2, 3), families=("gcd",))
    _, named = sft_module.open_source(made, tmp_path)
    assert named == sft_module.open_source(made, tmp_path)[1]
    real = sft_module.worked
    monkeypatch.setattr(sft_module, "worked", lambda item: dataclasses.replace(real(item), question="new"))
    assert named != sft_module.open_source(made, tmp_path)[1]


class Crash(Exception):
    pass


class Crashing:
    """A writer of metrics under which a run dies at step 3."""

    def write(self, step, values):
        if step == 3:
            raise Crash

    def close(self):
        pass


@pytest.mark.parametrize("source", ["files", "problems"])
def test_a_run_that_crashed_goes_on_bit_for_bit_over_packed_batches(base, traces, tmp_path, monkeypatch, source):
    made = {} if source == "files" else {"source": SourceConfig((), embedded=40, steps=(2, 3), families=("gcd",))}
    length = 64 if source == "files" else 256
    more = {**made, "batches": PipelineConfig(length=length, batch=2, bins=4, threads=1, over_length="split")}
    go = lambda name: sft(settings(tmp_path / name, base, traces, **more), QUIET)
    whole = go("whole")
    with monkeypatch.context() as patched:
        real = sft_module.writers
        patched.setattr(sft_module, "writers", lambda *given: [*real(*given), Crashing()])
        with pytest.raises(Crash):
            go("cut")
    again = go("cut")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    steps = [json.loads(line)["step"] for line in (tmp_path / "cut" / "metrics.jsonl").read_text().splitlines()]
    assert steps[-2:] == ([4, 4] if source == "files" else [3, 4]), "it went on from the checkpoint of step 2"


def test_epochs_in_place_of_steps_end_after_so_many_samples_also_over_a_crash(base, traces, tmp_path, monkeypatch):
    packed = PipelineConfig(length=128, batch=2, bins=4, threads=1)
    go = lambda name: sft(settings(tmp_path / name, base, traces, batches=packed, train=train), said.append)
    optim = {"learning_rate": 1e-2, "warmup": 0.0}
    train, said = {"steps": 0, "epochs": 1.5, "params_dtype": "bfloat16", "optim": optim}, []
    whole = go("whole")
    steps = json.loads((tmp_path / "whole" / "steps.json").read_text())["steps"]
    assert f"epochs: 1.5 of 10 samples are {steps} steps (packed and counted)" in said and steps > 3
    assert any(line.startswith("used: 15 samples, ") for line in said)
    lines = [json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == steps
    rates = [line["learning_rate"] for line in lines if "learning_rate" in line]
    assert rates == sorted(rates, reverse=True) and rates[-1] < 0.4 * rates[0], "the schedule ends where the run does"
    with monkeypatch.context() as patched:
        real = sft_module.writers
        patched.setattr(sft_module, "writers", lambda *given: [*real(*given), Crashing()])
        with pytest.raises(Crash):
            go("cut")
        patched.setattr(sft_module, "count_batches", None)  # known by now
        patched.setattr(sft_module, "writers", real)
        again = go("cut")
    assert (again / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert huggingface.load(again)[0]["embed"].dtype == jnp.bfloat16
    out = export.convert(tmp_path / "cut", tmp_path / "out")
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    train["epochs"] = 2.0
    with pytest.raises(UserError, match="train.epochs is 1.5 there and 2.0 here; it is of another run"):
        go("cut")


def test_all_parameters_can_be_trained_and_compressed_again(base, traces, tmp_path):
    final = sft(settings(tmp_path / "a", base, traces, train={"steps": 1}), QUIET)
    again = sft(settings(tmp_path / "b", final, traces, train={"steps": 1}), QUIET)
    assert len(load_tokenizer(again)) == len(load_tokenizer(final)), "no token is added twice"
    with pytest.raises(UserError, match=r"tokens.trigger is '\\n\\n', but model.path .* trained with '<\|splitter\|>'"):
        sft(settings(tmp_path / "c", final, traces, tokens=TokensConfig(trigger="\n\n", eos="<|end|>")), QUIET)


TOKEN = Scheme(level="token", step=4)


@pytest.mark.parametrize(
    "more, said",
    [
        ({"tokens": {"table": "reference", "trigger": "a"}}, "tokens.trigger is 'a' and tokens.table is 'reference'"),
        ({"tokens": {"table": "reference", "eos": "a"}}, "tokens.eos is 'a' and tokens.table is 'reference'"),
        ({"tokens": {"trigger": "a"}, "scheme": Scheme("anllm")}, "trigger is 'a', but scheme.method 'anllm' writes"),
        ({"tokens": {"trigger": "a"}, "scheme": Scheme("memento")}, "but scheme.method 'memento' writes none"),
        ({"tokens": {"trigger": "a"}, "scheme": TOKEN}, "tokens.trigger is 'a', but scheme.level 'token' writes none"),
        ({"source": {"segment": "sentence"}, "scheme": Scheme("vanilla")}, "data.segment .* scheme.method 'vanilla'"),
        ({"train": {"epochs": 2.0}}, "train.steps is 4 and train.epochs is 2; give one of them and set the other to 0"),
        (
            {"batches": PipelineConfig(length=8, batch=2, epochs=2)},
            "PipelineConfig.epochs is 2; .* given as train.epochs",
        ),
        ({"source": {"held_out": 0}, "train": {"eval_every": 2}}, "train.eval_every is 2 and data.held_out is 0"),
        ({"lora": LoraConfig(rank=2), "train": {"optim": {"name": "muon"}}}, "optim.name is 'muon' and lora.rank"),
    ],
)
def test_settings_that_would_be_ignored_are_refused(more, said):
    made = {"tokens": TokensConfig, "source": lambda **given: SourceConfig(("traces",), **given)}
    with pytest.raises(UserError, match=said):
        settings("run", "model", "-", **{name: made[name](**v) if name in made else v for name, v in more.items()})


@pytest.mark.parametrize("name", ["lightthinker_qwen", "lora_qwen"])
def test_configs_for_any_model_take_its_own_template_and_end_of_turn(name):
    values = importlib.import_module(f"configs.{name}").get_config()
    values.model.path, values.data.path, values.data.segment, values.data.maximum = "m", "t.jsonl", "chunk", 64
    found = sft_config(values)
    assert (found.source.chat, found.tokens.eos) == ("own", None)
    assert (found.source.segment, found.source.maximum) == ("chunk", 64)


def test_several_paths_are_a_tuple_or_a_text_with_commas(tmp_path, monkeypatch):
    values = importlib.import_module("configs.lora_qwen").get_config()
    values.model.path = "m"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "one, two").mkdir()
    for given, wanted in [
        (("a.jsonl", "b"), ("a.jsonl", "b")),
        (["a.jsonl"], ("a.jsonl",)),
        ("a.jsonl", ("a.jsonl",)),
        ("a.jsonl, b b.parquet,", ("a.jsonl", "b b.parquet")),
        ("one, two", ("one, two",)),
        (2024, ("2024",)),
    ]:
        values.data.path = given
        assert sft_config(values).source.paths == wanted
    for nothing in ("", (), ","):
        values.data.path = nothing
        with pytest.raises(UserError, match="data.path is empty; give a trace file, --config.data.path=traces.jsonl"):
            sft_config(values)


def test_a_tokenizer_with_more_tokens_than_the_model_has_rows_is_refused(base, traces, tmp_path):
    folder = tmp_path / "wide"
    shutil.copytree(base, folder)
    tokenizer = load_tokenizer(folder)
    rows = len(tokenizer)
    tokenizer.add_tokens(["[PAD]"])
    tokenizer.save_pretrained(folder)
    said = f"wide: the tokenizer needs {rows + 1} rows and the model has {rows} .* resize_token_embeddings.{rows + 1}."
    for scheme in (Scheme(n_gist=2), Scheme("vanilla")):
        with pytest.raises(UserError, match=said):
            sft(settings(tmp_path / "run", folder, traces, scheme=scheme), QUIET)
    with pytest.raises(UserError, match=f"the model has rows for {rows} tokens and the tokenizer has {rows + 1}"):
        export.convert(folder, tmp_path / "out")


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda c, t: {"model": str(t / "nowhere")}, "nowhere: no such folder"),
        (lambda c, t: {"model": ""}, "model.path is empty"),
        (lambda c, t: {"source": SourceConfig((str(t / "no.jsonl"),))}, "no.jsonl: no such file"),
        (lambda c, t: {"source": dataclasses.replace(c.source, held_out=12)}, "cannot hold out 12 of 12"),
        (lambda c, t: {"tokens": TokensConfig(trigger="not one token")}, "trigger 'not one token' is"),
        (lambda c, t: {"tokens": TokensConfig(table="reference")}, "eos '<.im_end.>' is"),
        (lambda c, t: {"batches": PipelineConfig(length=4, batch=2)}, "longer than batches.length 4 tokens"),
    ],
)
def test_bad_input_is_one_clear_line(base, traces, tmp_path, change, said):
    with pytest.raises(UserError, match=said) as caught:
        good = settings(tmp_path / "run", base, traces)
        sft(dataclasses.replace(good, **change(good, tmp_path)), QUIET)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run" / "final").exists()


def test_a_broken_line_of_the_data_is_named(base, tmp_path):
    path = write_traces(tmp_path / "broken.jsonl", 3)
    path.write_text(path.read_text() + '{"question": "x", "resp\n')
    with pytest.raises(UserError, match=r"broken.jsonl.*4.*JSON"):
        sft(settings(tmp_path / "run", base, path), QUIET)


def test_new_tokens_must_be_one_stretch_for_adapters():
    assert new_rows([7, 8, 6]) == (6, 3) and new_rows([]) is None
    with pytest.raises(UserError, match="not one stretch"):
        new_rows([3, 5])


def launch(*arguments):
    command = [sys.executable, "launch/train.py", *arguments]
    env = os.environ | {"JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=env)


def test_an_unknown_key_is_one_line_and_exit_code_2():
    done = launch("--config=configs/lora_qwen.py", "--config.train.stepz=3")
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.strip() == "error: unknown config key --config.train.stepz: config.train has no key 'stepz'; did you mean steps?"  # fmt: skip # noqa: E501


def test_the_command_trains_and_exports(base, traces, tmp_path):
    done = launch(
        "--config=configs/lora_qwen.py", f"--config.model.path={base}", f"--config.data.path={traces}",
        f"--config.folder={tmp_path / 'run'}", "--config.train.steps=2", "--config.train.attention=dense",
        "--config.lora.rank=2", "--config.scheme.n_gist=2", "--config.batches.length=64",
        f"--config.compile_cache={jax.config.jax_compilation_cache_dir}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    assert "step 2/2  loss" in done.stderr and "exported to" in done.stdout
    assert json.loads((tmp_path / "run" / "final" / "lt_jax.json").read_text())["chat"] == "own"
    assert json.loads((tmp_path / "run" / "config.json").read_text())["lora"]["rank"] == 2


def test_the_defaults_name_every_setting():
    given = importlib.import_module("configs.defaults").get_config()
    of = {"batches": PipelineConfig, "scheme": Scheme, "tokens": TokensConfig, "train": TrainConfig,
          "optim": OptimizerConfig, "mesh": MeshConfig, "lora": LoraConfig, "data": SourceConfig}  # fmt: skip
    filled_in = {"train.gist_rule", "lora.rows", "batches.epochs"}  # from the rest of the run
    elsewhere = {"train.optim", "train.mesh", "data.paths"}
    fields = {f"{group}.{field.name}" for group, kind in of.items() for field in dataclasses.fields(kind)}
    keys = {f"{group}.{key}" for group in of for key in given[group]}
    assert fields - keys <= filled_in | elsewhere and keys - fields <= {"data.path", "train.epochs"}
