"""The settings of a training run: frozen dataclasses that are checked when they are made."""

from __future__ import annotations

import dataclasses

from lt_jax.errors import UserError

OPTIMIZERS = ("adamw", "muon")
REMATS = ("none", "dots", "layer")


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """AdamW or Muon, with gradient clipping, linear warmup and then a cosine.

    Attributes:
        name: "adamw", or "muon": Muon (orthogonalised momentum) for the linear maps of the layers, AdamW for the rest.
        learning_rate: at its highest, after the warmup.
        warmup: steps of linear warmup; a number below 1 is a fraction of all steps.
        end_fraction: the learning rate of the last step, as a fraction of the highest.
        b1, b2, eps, weight_decay: of AdamW; norms and biases do not decay.
        clip: the largest global norm of the gradient; 0 does not clip.
        adam_rate: with Muon, the learning rate of what AdamW trains, as a fraction of Muon's.
    """

    name: str = "adamw"
    learning_rate: float = 2e-5
    warmup: float = 0.05
    end_fraction: float = 0.0
    b1: float = 0.9
    b2: float = 0.999
    eps: float = 1e-8
    weight_decay: float = 0.0
    clip: float = 1.0
    adam_rate: float = 1.0

    def __post_init__(self):
        if self.name not in OPTIMIZERS:
            raise UserError(f"optim.name is {self.name!r}; it is one of {', '.join(OPTIMIZERS)}")
        if not self.learning_rate > 0:
            raise UserError(f"optim.learning_rate is {self.learning_rate}; it must be above 0")
        if self.warmup < 0 or self.clip < 0 or self.weight_decay < 0 or not 0 <= self.end_fraction <= 1:
            raise UserError("optim: warmup, clip and weight_decay must not be negative, and 0 <= end_fraction <= 1")
        if not self.adam_rate > 0 or (self.name == "adamw" and self.adam_rate != 1):
            raise UserError(f"optim.adam_rate is {self.adam_rate}; it must be above 0, and is for muon only")


def check_run(folder: str, model: str, adapters: bool, optim: OptimizerConfig) -> None:
    """Raises UserError if a run has no folder or no model, or an optimizer that is not for what it trains."""
    if not model:
        raise UserError("model.path is empty; give a checkpoint folder, --config.model.path=DIR")
    if not folder:
        raise UserError("folder is empty; give the run a folder, --config.folder=runs/NAME")
    if adapters and optim.name == "muon":
        raise UserError(
            "optim.name is 'muon' and lora.rank is above 0: Muon is for whole weights, of which adapters have none; "
            "take adamw"
        )


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """How many devices each mesh axis has; -1, on one axis at most, takes all devices that are left.

    `data` splits the batch and replicates weights, `fsdp` splits the batch and the weights, `tensor` splits heads, MLP
    and vocabulary, `context` splits the tokens of a row.
    """

    data: int = 1
    fsdp: int = -1
    tensor: int = 1
    context: int = 1


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One training run.

    Attributes:
        steps: how many optimizer steps; 0 if `epochs` are given.
        epochs: how many passes over the data, which may be a fraction; 0 if `steps` are given. Only `sft` knows the
            data, and so it counts their steps (`data.pipeline.count_batches`) and fills them in.
        accumulate: how many microbatches the batch of a step is cut into; the loss is the mean over all their tokens.
        remat: what the backward pass computes again: "none", "dots" (all but matrix products) or "layer" (all).
        params_dtype: the type in which a step computes with the weights. Trained weights and their moments are always
            stored in float32, because most updates of 2e-5 would be lost in bfloat16. So a trained weight takes 12
            bytes under AdamW, and 4 more while a step runs (its gradient; with bfloat16 that and a copy, of 2 bytes
            each). With adapters, which are always float32, it is the type in which the frozen weights are stored.
        loss_chunk: how many tokens have their logits in memory at one time; 0 chooses by the size of the vocabulary.
        attention: its implementation, see `lt_jax.attention.planned`; None is the best for the platform.
        gist_rule: how the tokens of one gist block see each other; see `lt_jax.lifetimes`.
        log_every, eval_every, save_every: how many steps apart; 0 is at the end only.
        keep: how many of the newest checkpoints are kept.
        seed: of the run's random key.
    """

    steps: int = 1000
    epochs: float = 0.0
    accumulate: int = 1
    remat: str = "none"
    params_dtype: str = "float32"
    loss_chunk: int = 0
    attention: str | None = None
    gist_rule: str = "causal"
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    keep: int = 2
    seed: int = 0
    optim: OptimizerConfig = OptimizerConfig()
    mesh: MeshConfig = MeshConfig()

    def __post_init__(self):
        if min(self.steps, self.epochs) < 0 or not max(self.steps, self.epochs):
            raise UserError(
                f"train.steps is {self.steps} and train.epochs is {self.epochs:g}; give one of them, above 0"
            )
        for name in ("accumulate", "keep"):
            if getattr(self, name) < 1:
                raise UserError(f"train.{name} is {getattr(self, name)}; it must be 1 or more")
        if self.remat not in REMATS:
            raise UserError(f"train.remat is {self.remat!r}; it is one of {', '.join(REMATS)}")
        if self.params_dtype not in ("float32", "bfloat16"):
            raise UserError(f"train.params_dtype is {self.params_dtype!r}; it is float32 or bfloat16")
        if min(self.log_every, self.eval_every, self.save_every, self.loss_chunk) < 0:
            raise UserError("train: log_every, eval_every, save_every and loss_chunk must not be negative")
