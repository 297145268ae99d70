"""Checkpoint folders out: of a run's newest checkpoint, or of another Hugging Face folder."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
from orbax.checkpoint import v1 as ocp

from lt_jax.data.pipeline import PipelineConfig
from lt_jax.errors import UserError
from lt_jax.layout.card import Card, read_card
from lt_jax.layout.chat import BOXED
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import name_ends, reference_table
from lt_jax.layout.tokenizer import load_tokenizer, rows_needed, tokenizer_hash
from lt_jax.models import huggingface
from lt_jax.models.config import LoraConfig
from lt_jax.training import mesh as meshes
from lt_jax.training import optimizer, sft
from lt_jax.training import state as states
from lt_jax.training.checkpoint import Checkpoints, describe
from lt_jax.training.config import MeshConfig, OptimizerConfig, TrainConfig
from lt_jax.training.folder import save_trained


def convert(source: str | Path, target: str | Path, *, dtype: str | None = None, table: str | None = None,
            tokenizer: str | Path | None = None, overwrite: bool = False) -> Path:  # fmt: skip
    """Writes `source` as a Hugging Face folder that `transformers`, generate and evaluate load.

    Args:
        source: a run folder, whose newest checkpoint is taken and its adapters merged, or a Hugging Face folder.
        dtype: of the tensors; None keeps that of a folder, or what a run was told to export.
        table: "qwen" or "llama" for a released LightThinker checkpoint (a folder): gives its tokenizer the tokens of
            the release and says so in `lt_jax.json`.
        tokenizer: folder of the tokenizer, where `source` has none or a wrong one.
        overwrite: replace a checkpoint folder at `target`.

    Raises:
        UserError: neither kind of folder, something in it broken or missing, the target in the way, a full disk.
    """
    source = Path(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such folder; give a run folder or a checkpoint folder")
    if (source / "checkpoints").is_dir():
        if table or tokenizer:
            raise UserError(f"{source}: a run folder knows its tokens; --table and --tokenizer are for other folders")
        return export_run(source, target, dtype=dtype, overwrite=overwrite)
    huggingface.read_config(source)  # its complaints come before the tokenizer's
    tokens = load_tokenizer(tokenizer or source)
    params, model = huggingface.load(source)
    if table is None:
        card = read_card(source, tokens)
    else:
        n_gist = {"qwen": 9, "llama": 7}.get(table)
        special = reference_table(tokens, table, n_gist).special
        card = Card(Scheme(n_gist=n_gist), special, table, prefix=BOXED)
    if (needed := rows_needed(tokens)) > model.vocab_size:
        raise UserError(
            f"{source}: the model has rows for {model.vocab_size:,} tokens and the tokenizer has {needed:,}; "
            "it is another model's, or the checkpoint was not trained with this table"
        )
    if card is not None:
        name_ends(tokens, card.special.eos)
    return save_trained(target, params, model, tokens, card, source=source, dtype=dtype, overwrite=overwrite)


def export_run(run: Path, target: str | Path, *, dtype: str | None = None, overwrite: bool = False) -> Path:
    """Writes the newest checkpoint of a run folder as a Hugging Face folder.

    Raises:
        UserError: the run has no checkpoint yet, or the model it started from is gone or another one.
    """
    config = read_run(run)
    with Checkpoints(run / "checkpoints", config.train.keep, reading=True) as checkpoints:
        if checkpoints.latest is None:
            raise UserError(f"{run / 'checkpoints'}: there is no checkpoint yet")
        tokenizer = load_tokenizer(config.model)
        table = sft.special_tokens(tokenizer, config)
        mesh = meshes.make(MeshConfig())
        start, model = sft.start_model(config, table, mesh)
        params = _trained(checkpoints, start, model, config)
    source = config.source
    card = Card(config.scheme, table.special, source.chat, source.system, source.prefix, source.suffix)
    return save_trained(target, params, model, tokenizer, card, source=config.model,
                        dtype=dtype or sft.export_dtype(config), overwrite=overwrite)  # fmt: skip


def _trained(checkpoints: Checkpoints, start: dict, model, config: sft.SftConfig) -> dict:
    """The parameters of the newest checkpoint; of the rest of it, the optimizer's state above all, nothing is read."""
    where = f"checkpoint {checkpoints.folder / str(checkpoints.latest)}"
    trained, frozen = states.split(start, states.trainable_mask(model))
    saved = checkpoints.about()
    if (saved["resolved"] or {}).get("model", {}).get("tokenizer") not in (None, tokenizer_hash(config.model)):
        raise UserError(f"{where}: it was trained with another tokenizer than that in {config.model}")
    now = describe(model, config.train, frozen)
    for name, value in now["model"].items():
        if saved["model"].get(name) != value:
            raise UserError(f"{where}: model.{name} is {saved['model'].get(name)} there and {value} in {config.model}")
    if saved["frozen"] != now["frozen"]:
        raise UserError(f"{where}: its adapters belong to other base weights than those in {config.model}")
    tx = optimizer.make(config.train.optim, config.train.steps)
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trained)
    skip = lambda tree: jax.tree.map(lambda _: ocp.PLACEHOLDER, tree)
    state = {"step": ocp.PLACEHOLDER, "trained": abstract, "key": ocp.PLACEHOLDER,
             "opt_state": skip(jax.eval_shape(tx.init, trained))}  # fmt: skip
    try:
        loaded = checkpoints.manager.load_checkpointables(checkpoints.latest, {"state": state})["state"]["trained"]
    except (ValueError, KeyError, OSError) as error:
        raise UserError(f"{where} cannot be read: {str(error).splitlines()[0][:200]}") from error
    return states.merge(loaded, frozen)


def read_run(run: Path) -> sft.SftConfig:
    """The config of a run folder, as `sft` wrote it. UserError if it is not there or not understood."""
    path = Path(run) / "config.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        train = values["train"]
        train |= {"optim": OptimizerConfig(**train["optim"]), "mesh": MeshConfig(**train["mesh"])}
        source = values["source"] | {"paths": tuple(values["source"]["paths"])}
        made = {
            "source": sft.SourceConfig(**source), "batches": PipelineConfig(**values["batches"]),
            "scheme": Scheme(**values["scheme"]), "tokens": sft.TokensConfig(**values["tokens"]),
            "train": TrainConfig(**train), "lora": LoraConfig(**values["lora"]) if values["lora"] else None,
        }  # fmt: skip
        names = [field.name for field in dataclasses.fields(sft.SftConfig)]
        return sft.SftConfig(**{name: made[name] if name in made else values[name] for name in names})
    except (OSError, ValueError, KeyError, TypeError) as error:
        if isinstance(error, UserError):
            raise UserError(f"{path}: {error}") from None
        raise UserError(f"{path}: not the config of a run ({type(error).__name__}: {error})") from None
