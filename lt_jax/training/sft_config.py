"""The settings of a supervised run: model, data, tokens, method. A setting that would be ignored is refused."""

from __future__ import annotations

import dataclasses

from lt_jax.data.pipeline import PipelineConfig
from lt_jax.data.rows import check_cutting, check_turns
from lt_jax.errors import UserError
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens
from lt_jax.models.config import LoraConfig
from lt_jax.training.config import TrainConfig, check_run


@dataclasses.dataclass(frozen=True)
class TokensConfig:
    """Which special tokens are used.

    Attributes:
        table: "default" adds new tokens; "reference" takes the ids of the released LightThinker checkpoints.
        family: of the reference table: "qwen" or "llama".
        trigger: an existing token that ends thoughts, such as two newlines. None adds a new one (default table only).
        eos: the text of the token that ends an answer; None is the tokenizer's own.
        pad: the text of the padding token; None is the tokenizer's own, or eos if it has none.
    """

    table: str = "default"
    family: str = "qwen"
    trigger: str | None = None
    eos: str | None = None
    pad: str | None = None

    def __post_init__(self):
        if self.table not in ("default", "reference"):
            raise UserError(f"tokens.table is {self.table!r}; it is default or reference")
        for name in ("trigger", "eos", "pad"):
            if self.table == "reference" and getattr(self, name) is not None:
                raise UserError(
                    f"tokens.{name} is {getattr(self, name)!r} and tokens.table is 'reference', which has its own; "
                    f"leave out tokens.{name}, or take the default table"
                )


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """Which traces are trained on, and how they become text.

    Attributes:
        paths: trace files, or folders of them.
        format: a key of `data.traces.FORMATS`; None recognises it by the fields of the records.
        held_out: how many samples are kept for eval_loss and not trained on; with 0 it is not measured.
        data_dir: the folder of prepared data sets; None is `data` in the run folder.
        chat, system, prefix, suffix: see `data.prompts.Prompter`.
        turns, segment, minimum, maximum: see `data.rows.RowMaker`.
        embedded: how many of the library's own problems (`data.tasks.Problems`) to train on in place of files.
        steps: the fewest and the most thoughts of such a problem.
        families: the kinds of such problems, which take turns. A kind that is named twice comes twice as often; empty
            takes all kinds.
    """

    paths: tuple[str, ...]
    format: str | None = None
    held_out: int = 0
    data_dir: str | None = None
    chat: str = "own"
    system: str = ""
    prefix: str = ""
    suffix: str = ""
    turns: str = "last"
    segment: str | None = None
    minimum: int = 0
    maximum: int | None = None
    embedded: int = 0
    steps: tuple[int, int] = (6, 12)
    families: tuple[str, ...] = ()

    def __post_init__(self):
        check_turns(self.turns)
        if any(self.paths) == bool(self.embedded):
            given = "both data.path and data.embedded are given" if self.embedded else "data.path is empty"
            raise UserError(
                f"{given}; give a trace file, --config.data.path=traces.jsonl, or a number of embedded problems, "
                "--config.data.embedded=100000"
            )


@dataclasses.dataclass(frozen=True)
class SftConfig:
    """One supervised run.

    Attributes:
        folder: of the run. If it has checkpoints of the same run, the newest one is continued.
        model: the checkpoint folder that training starts from.
        dtype: of the computation.
        scratch: start from random weights, and take only sizes and tokenizer from that folder.
        lora: adapters, or None to train all parameters. Its `rows` are filled in with the new tokens.
        source, batches, tokens, scheme, train: see each. `train.gist_rule` is filled in from the scheme.
        tensorboard: write TensorBoard files as well.
        wandb: the name of a Weights & Biases project, or None.
        export_dtype: of the exported tensors; None is `train.params_dtype`.
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
        check_run(self.folder, self.model, self.lora is not None, self.train.optim)
        scheme, source = self.scheme, self.source
        check_cutting(scheme, source.segment, source.minimum, source.maximum)
        if self.tokens.trigger is not None and not scheme.has_trigger:
            key = "method" if scheme.level == "thought" else "level"
            raise UserError(
                f"tokens.trigger is {self.tokens.trigger!r}, but scheme.{key} {getattr(scheme, key)!r} writes none"
            )
        if self.train.steps and self.train.epochs:
            raise UserError(
                f"train.steps is {self.train.steps} and train.epochs is {self.train.epochs:g}; "
                "give one of them and set the other to 0"
            )
        if self.batches.epochs is not None:
            epochs = self.batches.epochs
            raise UserError(f"PipelineConfig.epochs is {epochs:g}; a run's passes are given as train.epochs")
        if self.train.eval_every and not source.held_out:
            raise UserError(
                f"train.eval_every is {self.train.eval_every} and data.held_out is 0: there is nothing to evaluate on"
            )


# Not of the samples: where they lie, and what the other kind of source would read.
PLACES = ("paths", "data_dir")
OF_FILES, OF_PROBLEMS = ("format",), ("steps", "families")


def describe(config: SftConfig, samples: dict, base: dict, special: SpecialTokens) -> dict:
    """The run as JSON values, written into its checkpoints.

    Files are named by their content: a run may go on after its model and its traces were moved or renamed, and not
    after they were exchanged. Tokens are named by their ids, so that naming what was found by itself changes nothing.
    What is left out changes no number: places, logs, the export, threads.

    Args:
        samples: what tells them from all others: `files`, see `checkpoint.describe`, or `problems`.
        base: the same for the start model.
        special: the special tokens that were found.
    """
    values = dataclasses.asdict(config)
    for name in PLACES + (OF_FILES if config.source.embedded else OF_PROBLEMS):
        del values["source"][name]
    for name in ("folder", "model", "train", "tensorboard", "wandb", "export_dtype"):
        del values[name]
    for name in ("threads", "prefetch", "epochs"):
        del values["batches"][name]
    return values | samples | {"model": base, "tokens": dataclasses.asdict(special)}
