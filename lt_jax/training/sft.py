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
from lt_jax.data.pipeline import evaluation_batches, train_batches
from lt_jax.data.rows import Prompter, RowMaker
from lt_jax.data.sources import Mapped, hold_out, worked
from lt_jax.data.stats import measure
from lt_jax.data.tasks import FAMILIES, Problems
from lt_jax.errors import UserError
from lt_jax.layout.card import NAME, Card, read_card
from lt_jax.layout.special import SpecialTokens, Table, default_table, name_ends, one_token, reference_table
from lt_jax.layout.tokenizer import load_tokenizer, tokenizer_hash
from lt_jax.models import huggingface, lora, vocabulary
from lt_jax.models import params as parameters
from lt_jax.models.config import DecoderConfig
from lt_jax.models.hf_ends import read_ends
from lt_jax.training import mesh as meshes
from lt_jax.training import metrics, run
from lt_jax.training.checkpoint import fingerprint
from lt_jax.training.folder import save_trained
from lt_jax.training.sft_config import SftConfig, SourceConfig, TokensConfig, describe

__all__ = ["SftConfig", "SourceConfig", "TokensConfig", "sft"]


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
    to_row = row_maker(config, tokenizer, table.special)
    data, eval_data = batches(config, samples, to_row, table.special.pad)
    params, model = read_model(config, mesh)
    resolved = describe(config, named, base_of(config, params))
    params, model = fitted(params, model, config, table)
    train_config = dataclasses.replace(config.train, gist_rule=config.scheme.gist_rule)
    say(summary(model, mesh, config))
    say(f"data: {measure(samples, to_row, config.batches.length).describe()}")

    result = run.train(
        train_config, model, params, data, eval_data=eval_data, folder=folder / "checkpoints", mesh=mesh,
        writers=lambda step: writers(config, folder, step), resolved=resolved, keep_params=False, say=say,
    )  # fmt: skip
    say(f"used: {data.counts.describe()}")
    if not result.finished:
        say(f"stopped after step {int(result.state.step)} as asked; the same command goes on from there")
        return None
    source = config.source
    card = Card(config.scheme, table.special, source.chat, source.system, source.prefix)
    final = save_trained(folder / "final", result.params, model, tokenizer, card, source=config.model,
                         dtype=config.export_dtype, overwrite=True)  # fmt: skip
    say(f"exported to {final}")
    return final


def special_tokens(tokenizer, config: SftConfig) -> Table:
    """The special tokens of the run, added to `tokenizer`. A folder trained here before keeps its own.

    The end token is `tokens.eos`, else the tokenizer's, else the first that the folder's other files name.

    Raises:
        UserError: there is no eos; the config names tokens other than those the folder was trained with.
    """
    tokens, scheme = config.tokens, config.scheme
    card = read_card(config.model, tokenizer)
    if card is not None and card.scheme.explicit == scheme.explicit:
        for name in ("trigger", "eos", "pad"):
            text, own = getattr(tokens, name), getattr(card.special, name)
            if text is not None and one_token(tokenizer, text, name) != own:
                raise UserError(
                    f"tokens.{name} is {text!r}, but model.path {config.model} was trained with "
                    f"{tokenizer.convert_ids_to_tokens(own)!r}, which {NAME} there says; leave tokens.{name} out"
                )
        name_ends(tokenizer, card.special.eos)
        return Table(card.special)
    if tokens.table == "reference":
        return reference_table(tokenizer, tokens.family, scheme.gist_tokens)
    eos = tokens.eos or tokenizer.eos_token
    if eos is None:
        ends = read_ends(config.model)
        if not ends or ends[0] >= len(tokenizer):
            raise UserError(f"{config.model}: the tokenizer names no eos_token; give one with --config.tokens.eos")
        eos = tokenizer.convert_ids_to_tokens(ends[0])
    return default_table(tokenizer, scheme, eos, tokens.pad or tokenizer.pad_token, tokens.trigger)


def open_source(source: SourceConfig, folder: Path) -> tuple[Sequence, str]:
    """The samples, and a name that tells them from all others: the content of files, or what the problems are."""
    if source.embedded:
        families = tuple(source.families) or tuple(FAMILIES)
        problems = Problems(source.embedded, steps=tuple(source.steps), families=families)
        name = f"problems of {source.steps[0]} to {source.steps[1]} steps: {', '.join(families)}"
        return Mapped(problems, worked), name
    where = source.data_dir or folder / "data"
    prepared = prepare(source.paths, where, source.format, each=source.turns == "each")
    return open_prepared(prepared), "/".join(prepared.parts[-2:])


def row_maker(config: SftConfig, tokenizer, special: SpecialTokens) -> RowMaker:
    """How a sample of the run is laid out."""
    source = config.source
    return RowMaker(
        scheme=config.scheme, special=special, tokenizer=tokenizer, segment=source.segment, minimum=source.minimum,
        maximum=source.maximum, prompt=Prompter(source.chat, tokenizer, source.system, source.prefix),
        turns=source.turns,
    )  # fmt: skip


def batches(config: SftConfig, samples: Sequence, to_row: RowMaker, pad: int):
    """The training iterator of this process, and a function that makes a pass over the held-out samples (or None)."""
    training, held_out = hold_out(samples, config.source.held_out)
    process = jax.process_index(), jax.process_count()
    data = train_batches(training, to_row, config.batches, pad, *process)
    if not config.source.held_out:
        return data, None
    return data, lambda: evaluation_batches(held_out, to_row, config.batches, pad, *process)


def start_model(config: SftConfig, table: Table, mesh) -> tuple[dict, DecoderConfig]:
    """The start parameters, with rows for new tokens and perhaps adapters, read straight to their devices."""
    return fitted(*read_model(config, mesh), config, table)


def read_model(config: SftConfig, mesh) -> tuple[dict, DecoderConfig]:
    """The parameters of the start model as its folder has them, or random ones of its sizes."""
    raw = huggingface.read_config(config.model, config.dtype)
    shardings = meshes.param_shardings(mesh, raw)
    if config.scratch:
        make = functools.partial(parameters.init, config=raw, dtype=config.train.params_dtype)
        return jax.jit(make, out_shardings=shardings)(jax.random.key(config.train.seed)), raw
    return huggingface.load(config.model, config.train.params_dtype, compute_dtype=config.dtype, shardings=shardings)


def base_of(config: SftConfig, params: dict) -> dict:
    """What tells the start model from all others, wherever its folder lies; random weights are told by their seed."""
    weights = None if config.scratch else int(fingerprint(params))
    return {"weights": weights, "tokenizer": tokenizer_hash(config.model)}


def fitted(params: dict, model: DecoderConfig, config: SftConfig, table: Table) -> tuple[dict, DecoderConfig]:
    """The start model with rows for new tokens and perhaps adapters."""
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
