"""Supervised training of a checkpoint folder on reasoning traces, from one config to an exported folder.

    model folder ─ tokens added, rows grown, adapters ─┐
    traces or problems ─ prepared, laid out, packed ───┴─ train ─ run folder: config.json, metrics.jsonl,
                                                                  checkpoints/, final/ (Hugging Face, lt_jax.json)
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from lt_jax.data.builder import open_prepared, prepare
from lt_jax.data.pipeline import PipelineConfig, evaluation_batches, train_batches
from lt_jax.data.rows import RowMaker, prompter
from lt_jax.data.sources import Mapped, hold_out, worked
from lt_jax.data.tasks import FAMILIES, Problems
from lt_jax.errors import UserError
from lt_jax.layout.card import NAME, Card, read_card
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens, Table, default_table, reference_table
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.models import huggingface, lora, vocabulary
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig, LoraConfig
from lt_jax.training import mesh as meshes
from lt_jax.training import metrics, run
from lt_jax.training.config import TrainConfig


@dataclasses.dataclass(frozen=True)
class TokensConfig:
    """Which special tokens there are.

    Attributes:
        table: "default", or "reference" for the ids of the released LightThinker checkpoints.
        family: of the reference table, "qwen" or "llama".
        trigger: a native token that ends thoughts, such as two newlines; None adds a new one (default table).
        eos, pad: texts of tokens; None takes the tokenizer's own (pad: its pad token, or eos).
    """

    table: str = "default"
    family: str = "qwen"
    trigger: str | None = None
    eos: str | None = None
    pad: str | None = None

    def __post_init__(self):
        if self.table not in ("default", "reference"):
            raise UserError(f"tokens.table is {self.table!r}; it is default or reference")


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which traces are trained on, and how they become text.

    Attributes:
        paths: trace files or folders of them; format: a key of `data.traces.FORMATS`, None to see it.
        embedded: number of embedded problems (`data.tasks.Problems`) to train on in place of files, with thoughts from
            steps[0] to steps[1], of `families` in turn (empty: all; a family named twice comes twice as often).
        held_out: samples kept for eval_loss; 0 measures none.
        data_dir: where prepared data sets are kept; None is `data` in the run folder.
        chat, system, prefix: see `data.rows.prompter`. segment, minimum, maximum: see `data.rows.RowMaker`.
    """

    paths: tuple[str, ...]
    format: str | None = None
    held_out: int = 0
    data_dir: str | None = None
    chat: str = "own"
    system: str = ""
    prefix: str = ""
    segment: str | None = None
    minimum: int = 0
    maximum: int | None = None
    embedded: int = 0
    steps: tuple[int, int] = (6, 12)
    families: tuple[str, ...] = ()

    def __post_init__(self):
        if any(self.paths) == bool(self.embedded):
            given = "both data.path and data.embedded are given" if self.embedded else "data.path is empty"
            raise UserError(f"{given}; give a trace file, --config.data.path=traces.jsonl, or a number of problems")


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """One supervised run.

    Attributes:
        folder: of the run; if it has checkpoints of the same run, they are gone on from.
        model: checkpoint folder to start from; dtype: of the computation.
        scratch: start from random weights, and take only sizes and tokenizer from that folder.
        lora: adapters, or None to train everything; its `rows` are filled in with the new tokens.
        source, batches, tokens, scheme, train: see each. `train.gist_rule` is filled in from the scheme.
        tensorboard: also write TensorBoard files. wandb: project on Weights & Biases, None for none.
        export_dtype: of the exported tensors; None keeps that of the start model's embedding.
    """

    folder: str
    model: str
    source: SourceConfig
    batches: PipelineConfig
    scheme: Scheme = Scheme()
    tokens: TokensConfig = TokensConfig()
    train: TrainConfig = TrainConfig()
    lora: LoraConfig | None = None
    dtype: str = "float32"
    scratch: bool = False
    tensorboard: bool = True
    wandb: str | None = None
    export_dtype: str | None = None

    def __post_init__(self):
        if not self.model:
            raise UserError("model.path is empty; give a checkpoint folder, --config.model.path=DIR")
        if not self.folder:
            raise UserError("folder is empty; give the run a folder, --config.folder=runs/NAME")


def sft(config: SftConfig, say: Callable[[str], None] = print) -> Path | None:
    """Trains and exports; returns the exported folder, or None if the run was asked to stop before its end.

    Raises:
        UserError: anything about model, tokenizer, data, mesh, checkpoint or disk that the user can put right.
    """
    mesh = meshes.make(config.train.mesh)
    huggingface.read_config(config.model)  # its complaints come before the tokenizer's
    tokenizer = load_tokenizer(config.model)
    table = special_tokens(tokenizer, config)
    folder = Path(config.folder)
    samples, named = open_source(config.source, folder)
    data, eval_data = batches(config, samples, tokenizer, table.special)
    params, model = start_model(config, table, mesh)
    train_config = dataclasses.replace(config.train, gist_rule=config.scheme.gist_rule)
    resolved = describe(config, named)
    say(summary(model, mesh, config))

    result = run.train(
        train_config, model, params, data, eval_data=eval_data, folder=folder / "checkpoints", mesh=mesh,
        writers=lambda step: writers(config, folder, step), resolved=resolved, keep_params=False, say=say,
    )  # fmt: skip
    say(f"data: {data.counts.describe()}")
    if not result.finished:
        say(f"stopped after step {int(result.state.step)} as asked; the same command goes on from there")
        return None
    source = config.source
    card = Card(config.scheme, table.special, source.chat, source.system, source.prefix)
    final = huggingface.save(
        folder / "final", result.params, model, tokenizer, dtype=config.export_dtype, overwrite=True,
        files={NAME: card.to_json(tokenizer)},
    )  # fmt: skip
    say(f"exported to {final}")
    return final


def special_tokens(tokenizer, config: SftConfig) -> Table:
    """The special tokens of the run, added to `tokenizer`. A folder trained here before keeps its own."""
    tokens, scheme = config.tokens, config.scheme
    card = read_card(config.model, tokenizer)
    if card is not None and card.scheme == scheme:
        return Table(card.special)
    if tokens.table == "reference":
        return reference_table(tokenizer, tokens.family, scheme.n_gist)
    eos = tokens.eos or tokenizer.eos_token
    if eos is None:
        raise UserError(f"{config.model}: the tokenizer names no eos_token; give one with --config.tokens.eos")
    return default_table(tokenizer, scheme, eos, tokens.pad or tokenizer.pad_token, tokens.trigger)


def open_source(source: SourceConfig, folder: Path) -> tuple[Sequence, str]:
    """The samples, and a name that tells them from all others: the content of files, or what the problems are."""
    if source.embedded:
        families = tuple(source.families) or tuple(FAMILIES)
        problems = Problems(source.embedded, steps=tuple(source.steps), families=families)
        name = f"problems of {source.steps[0]} to {source.steps[1]} steps: {', '.join(families)}"
        return Mapped(problems, worked), name
    prepared = prepare(source.paths, source.data_dir or folder / "data", source.format)
    return open_prepared(prepared), "/".join(prepared.parts[-2:])


def batches(config: SftConfig, samples: Sequence, tokenizer, special: SpecialTokens):
    """The training iterator of this process, and a function that makes a pass over the held-out samples (or None)."""
    source = config.source
    to_row = RowMaker(
        scheme=config.scheme, special=special, tokenizer=tokenizer, segment=source.segment, minimum=source.minimum,
        maximum=source.maximum, prompt=prompter(source.chat, tokenizer, source.system, source.prefix),
    )  # fmt: skip
    training, held_out = hold_out(samples, source.held_out)
    process = jax.process_index(), jax.process_count()
    data = train_batches(training, to_row, config.batches, special.pad, *process)
    if not source.held_out:
        return data, None
    return data, lambda: evaluation_batches(held_out, to_row, config.batches, special.pad, *process)


def start_model(config: SftConfig, table: Table, mesh) -> tuple[dict, DecoderConfig]:
    """The start parameters, with rows for new tokens and perhaps adapters, read straight to their devices."""
    raw = huggingface.read_config(config.model, config.dtype)
    shardings = meshes.param_shardings(mesh, raw)
    if config.scratch:
        make = functools.partial(parameters.init, config=raw, dtype=config.train.params_dtype)
        params, model = jax.jit(make, out_shardings=shardings)(jax.random.key(config.train.seed)), raw
    else:
        params, model = huggingface.load(
            config.model, config.train.params_dtype, compute_dtype=config.dtype, shardings=shardings
        )
    params, model = vocabulary.grow(params, model, table.new, table.pieces)
    if config.lora:
        rows = new_rows([i for i, _ in table.new])
        adapters = dataclasses.replace(config.lora, rows=rows)
        params, model = lora.add(params, model, adapters, jax.random.key(config.train.seed))
    return params, model


def new_rows(ids: list[int]) -> tuple[int, int] | None:
    """Ids of new tokens as (first, count), which must be one stretch."""
    if not ids:
        return None
    if sorted(ids) != list(range(min(ids), max(ids) + 1)):
        raise UserError(f"the new tokens {sorted(ids)} are not one stretch of ids; train without lora instead")
    return min(ids), len(ids)


def describe(config: SftConfig, named: str) -> dict:
    """The run as JSON values, written beside it and into its checkpoints.

    Files are named by their content: a run may go on after its model and its traces were moved.
    """
    values = dataclasses.asdict(config)
    values["source"]["prepared"] = named
    for name in ("paths", "data_dir"):
        del values["source"][name]
    for name in ("folder", "model", "train", "tensorboard", "wandb", "export_dtype"):
        del values[name]
    for name in ("threads", "prefetch"):
        del values["batches"][name]
    return values


def writers(config: SftConfig, folder: Path, step: int) -> list[metrics.Writer]:
    """config.json and the metric writers of this process; the first process writes, the others have none."""
    if jax.process_index():
        return []
    write_whole(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    found = [metrics.Terminal(config.train.steps, first_step=step), metrics.Jsonl(folder / "metrics.jsonl", step)]
    if config.tensorboard:
        found.append(metrics.TensorBoard(folder / "tensorboard", step))
    if config.wandb:
        found.append(metrics.WeightsAndBiases(config.wandb, folder.name, dataclasses.asdict(config)))
    return found


def write_whole(path: Path, text: str) -> None:
    """Writes a text file whole or not at all."""
    partial = path.with_suffix(".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def summary(model: DecoderConfig, mesh, config: SftConfig) -> str:
    """Two lines on what is about to be trained, for the terminal."""
    total = parameters.count(model)
    adapters = [spec for spec in jax.tree.leaves(parameters.specs(model)) if spec.adapter]
    trained = sum(math.prod(spec.shape) for spec in adapters) if model.lora else total
    sizes = ", ".join(f"{axis}={size}" for axis, size in mesh.shape.items() if size > 1) or "one device"
    device = mesh.devices.flat[0].device_kind
    return (
        f"model: {model.model_type}, {total:,} parameters of which {trained:,} are trained, {model.dtype} on {device}\n"
        f"mesh: {sizes}; processes: {jax.process_count()}; "
        f"batch: {config.batches.batch} rows of {config.batches.length} tokens, {config.scheme.method}"
    )
