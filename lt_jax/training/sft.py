"""Supervised training of a checkpoint folder on reasoning traces, from one config to an exported folder.

    model folder ─ tokens added, rows grown, adapters ─┐
    traces or problems ─ prepared, laid out, packed ───┴─ train ─ run folder: config.json, metrics.jsonl,
                                                                  checkpoints/, final/ (Hugging Face, lt_jax.json),
                                                                  steps.json (with epochs), wandb_id (with W&B)
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax

from lt_jax.data.builder import Traces, by_content, open_prepared, prepare
from lt_jax.data.pipeline import PipelineConfig, ToRow, count_batches, evaluation_batches, train_batches
from lt_jax.data.prompts import Prompter
from lt_jax.data.readers import trace_files
from lt_jax.data.rows import RowMaker
from lt_jax.data.sources import Mapped, hold_out, worked
from lt_jax.data.stats import measure
from lt_jax.data.tasks import FAMILIES, Problems
from lt_jax.errors import UserError
from lt_jax.layout.card import NAME, Card, read_card
from lt_jax.layout.special import SpecialTokens, Table, default_table, name_ends, one_token, reference_table
from lt_jax.layout.tokenizer import load_tokenizer, rows_needed, tokenizer_hash
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

TOLD_BY = 16  # embedded problems whose texts tell them from those of another version


@dataclasses.dataclass(frozen=True)
class Lessons:
    """What a run is taught.

    Attributes:
        samples: random access, see `pipeline.train_batches`.
        named: JSON values that tell the samples from all others.
        to_row: sample -> row.
    """

    samples: Sequence
    named: dict
    to_row: ToRow


def traces(config: SftConfig, tokenizer, special: SpecialTokens) -> Lessons:
    """The lessons of most methods: traces, each laid out as the method says.

    Raises:
        UserError: the method is taught from trajectories.
    """
    if config.scheme.method == "memory":
        raise UserError(
            "scheme.method 'memory' is taught from trajectories; launch/train.py does it, or sft(config, "
            "lessons=lt_jax.memory.sft.lessons(...))"
        )
    samples, named = open_source(config.source, Path(config.folder))
    return Lessons(samples, named, row_maker(config, tokenizer, special))


def sft(
    config: SftConfig, say: Callable[[str], None] = print,
    lessons: Callable[[SftConfig, Any, SpecialTokens], Lessons] = traces,
) -> Path | None:  # fmt: skip
    """Trains and exports; returns the exported folder, or None if the run was asked to stop before its end.

    Args:
        lessons: a function that makes what is taught, with the tokenizer that has the run's special tokens.

    Raises:
        UserError: anything about model, tokenizer, data, mesh, checkpoint or disk that the user can put right.
    """
    mesh = meshes.make(config.train.mesh)
    rows = huggingface.read_config(config.model).vocab_size  # its complaints come before the tokenizer's
    tokenizer = load_tokenizer(config.model)
    check_rows(config.model, rows, rows_needed(tokenizer))
    table = special_tokens(tokenizer, config)
    folder = Path(config.folder)
    taught = lessons(config, tokenizer, table.special)
    samples, to_row = taught.samples, taught.to_row
    data, eval_data = batches(config, samples, to_row, table.special.pad, meshes.share(mesh))
    params, model = read_model(config, mesh)
    resolved = describe(config, taught.named, base_of(config, params, tokenizer), table.special)
    params, model = fitted(params, model, config, table)
    say(summary(model, mesh, config))
    found = measure(samples, to_row, config.batches.length)
    say(f"data: {found.describe()}")
    if line := found.warning(config.scheme):
        say(line)
    steps = config.train.steps or steps_of_epochs(config, samples, to_row, meshes.share(mesh)[1], resolved, say)
    train_config = dataclasses.replace(config.train, steps=steps, gist_rule=config.scheme.gist_rule)

    result = run.train(
        train_config, model, params, data, eval_data=eval_data, folder=folder / "checkpoints", mesh=mesh,
        writers=lambda step: writers(config, folder, step, steps), resolved=resolved, keep_params=False, say=say,
    )  # fmt: skip
    say(f"used{' by this process' * (jax.process_count() > 1)}: {data.counts.describe()}")
    if not result.finished:
        say(f"stopped after step {int(result.state.step)} as asked; the same command goes on from there")
        return None
    source = config.source
    card = Card(config.scheme, table.special, source.chat, source.system, source.prefix, source.suffix)
    final = save_trained(folder / "final", result.params, model, tokenizer, card, source=config.model,
                         dtype=export_dtype(config), overwrite=True)  # fmt: skip
    say(f"exported to {final}")
    return final


def check_rows(folder: str, rows: int, needed: int) -> None:
    """Raises UserError if a folder's tokenizer has ids for which its model has no rows."""
    if needed > rows:
        raise UserError(
            f"{folder}: the tokenizer needs {needed:,} rows and the model has {rows:,} (vocab_size in config.json): it "
            "is another model's tokenizer, or tokens were added to it alone; give the model their rows with "
            f"resize_token_embeddings({needed}) of transformers and save both, or take the tokens out of the tokenizer"
        )


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


def open_source(source: SourceConfig, folder: Path) -> tuple[Sequence, dict]:
    """The samples, and what tells them from all others: the files' content and reader, or the first of the problems."""
    if source.embedded:
        families = tuple(source.families) or tuple(FAMILIES)
        problems = Problems(source.embedded, steps=tuple(source.steps), families=families)
        samples = Mapped(problems, worked)
        return samples, {"problems": told(samples)}
    prepared = prepare(source.paths, source.data_dir or folder / "data", source.format)
    files = [[digest, str(file)] for digest, file in by_content(trace_files(source.paths))]
    return open_prepared(prepared), {"files": files, "reader": str(Traces.VERSION)}


def told(samples: Sequence) -> str:
    """What tells embedded samples from those of another version: a hash of the first of them."""
    first = repr([samples[number] for number in range(min(TOLD_BY, len(samples)))])
    return hashlib.sha256(first.encode()).hexdigest()


def row_maker(config: SftConfig, tokenizer, special: SpecialTokens) -> RowMaker:
    """How a sample of the run is laid out."""
    source = config.source
    return RowMaker(
        scheme=config.scheme, special=special, tokenizer=tokenizer, segment=source.segment, minimum=source.minimum,
        maximum=source.maximum, turns=source.turns,
        prompt=prompter(source, tokenizer),
    )  # fmt: skip


def prompter(source: SourceConfig, tokenizer) -> Prompter:
    """How a question of the run becomes a prompt."""
    return Prompter(source.chat, tokenizer, source.system, source.prefix, source.suffix)


def batches(config: SftConfig, samples: Sequence, to_row: ToRow, pad: int, share: tuple[int, int]):
    """The training iterator of this process, and a function that makes a pass over the held-out samples (or None).

    Args:
        share: of this process, see `mesh.share`.
    """
    training, held_out = hold_out(samples, config.source.held_out)
    fill = config.train.epochs > 0 and share[1] > 1
    data = train_batches(training, to_row, passes(config), pad, *share, fill=fill)
    if not config.source.held_out:
        return data, None
    return data, lambda: evaluation_batches(held_out, to_row, config.batches, pad, *share)


def passes(config: SftConfig) -> PipelineConfig:
    """The batches' config with the run's number of passes over the data: without end unless `train.epochs` says it."""
    return dataclasses.replace(config.batches, epochs=config.train.epochs or None)


def steps_of_epochs(config: SftConfig, samples, to_row: ToRow, parts: int, resolved: dict, say) -> int:
    """How many steps `train.epochs` make, for the schedule and the end of the run.

    Counted, not guessed: every sample is laid out once and rows of those lengths are packed as those of the run will be
    (`data.pipeline.count_batches`). The number is kept in the run folder, so that a resumed run need not count again.

    Args:
        parts: of a batch, see `mesh.share`. resolved: what the run is; another run is counted anew.
    """
    training, _ = hold_out(samples, config.source.held_out)
    key = hashlib.sha256(json.dumps([resolved, config.train.epochs, parts], sort_keys=True).encode()).hexdigest()
    kept = Path(config.folder) / "steps.json"
    known = json.loads(kept.read_text()) if kept.is_file() else {}
    if known.get("run") != key:
        known = {"run": key, "steps": count_batches(training, to_row, passes(config), parts)}
        if jax.process_index() == 0:
            kept.parent.mkdir(parents=True, exist_ok=True)
            metrics.write_whole(kept, json.dumps(known) + "\n")
    steps = known["steps"]
    say(f"epochs: {config.train.epochs:g} of {len(training):,} samples are {steps:,} steps (packed and counted)")
    return steps


def start_model(config: SftConfig, table: Table, mesh) -> tuple[dict, DecoderConfig]:
    """The start parameters, with rows for new tokens and perhaps adapters, read straight to their devices."""
    return fitted(*read_model(config, mesh), config, table)


def export_dtype(config: SftConfig) -> str:
    """Of the exported tensors: as asked for, else what the run computed with."""
    return config.export_dtype or config.train.params_dtype


def read_model(config: SftConfig, mesh) -> tuple[dict, DecoderConfig]:
    """The parameters of the start model as its folder has them, or random ones of its sizes.

    What will be trained is read in float32, so that no bit is lost; under adapters the rest is stored as asked for.
    """
    dtype = config.train.params_dtype if config.lora else "float32"
    raw = huggingface.read_config(config.model, config.dtype)
    shardings = meshes.param_shardings(mesh, raw)
    if config.scratch:
        make = functools.partial(parameters.init, config=raw, dtype=dtype)
        return jax.jit(make, out_shardings=shardings)(jax.random.key(config.train.seed)), raw
    return huggingface.load(config.model, dtype, compute_dtype=config.dtype, shardings=shardings)


def base_of(config: SftConfig, params: dict, tokenizer) -> dict:
    """What tells the start model from all others, wherever its folder lies; random weights are told by their seed.

    The chat template counts where it is used: it lies in another file than tokenizer.json.
    """
    weights = None if config.scratch else int(fingerprint(params))
    template = repr(tokenizer.chat_template) if config.source.chat == "own" else ""
    return {
        "weights": weights,
        "tokenizer": tokenizer_hash(config.model),
        "template": hashlib.sha256(template.encode()).hexdigest(),
    }


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


def writers(config: SftConfig, folder: Path, step: int, steps: int) -> list[metrics.MetricWriter]:
    """config.json and the metric writers of this process; the first process writes, the others have none.

    Args:
        step: from which training goes on; steps: at which it ends.
    """
    if jax.process_index():
        return []
    metrics.write_whole(folder / "config.json", json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    found = [metrics.Terminal(steps, first_step=step), metrics.Jsonl(folder / "metrics.jsonl", step)]
    if config.tensorboard:
        found.append(metrics.TensorBoard(folder / "tensorboard", step))
    if config.wandb:
        values = dataclasses.asdict(config)
        found.append(metrics.WeightsAndBiases(config.wandb, folder.name, values, folder / "wandb_id", step))
    return found


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
