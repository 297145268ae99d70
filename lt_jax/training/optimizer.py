"""The optimizer: clip, AdamW (or Muon for the layers' linear maps), weight-decay mask, warmup and cosine schedule."""

from __future__ import annotations

import jax
import optax
from optax import contrib

from lt_jax.errors import UserError
from lt_jax.training.config import OptimizerConfig

NO_DECAY = ("attn_norm", "mlp_norm", "final_norm", "q_norm", "k_norm", "b")


def schedule(config: OptimizerConfig, steps: int) -> optax.Schedule:
    """Learning rate by step: up linearly over the warmup, beginning with peak / warmup and not with 0, then a cosine
    down to the end fraction at `steps`.
    """
    warmup = round(config.warmup * steps) if config.warmup < 1 else round(config.warmup)
    if warmup >= steps > 1:
        raise UserError(f"optim.warmup is {warmup} steps of {steps} in all; it must leave some for training")
    return optax.warmup_cosine_decay_schedule(
        init_value=config.learning_rate / max(warmup, 1),
        peak_value=config.learning_rate,
        warmup_steps=warmup,
        decay_steps=max(steps, warmup + 1),
        end_value=config.learning_rate * config.end_fraction,
    )


def decay_mask(params: dict) -> dict:
    """Which leaves decay: all but norm weights and biases. By name, because stacked norms are matrices too."""
    return jax.tree_util.tree_map_with_path(lambda path, _: path[-1].key not in NO_DECAY, params)


def make(config: OptimizerConfig, steps: int) -> optax.GradientTransformation:
    """The whole transformation, for the tree of trained leaves."""
    rate = schedule(config, steps)
    clip = [optax.clip_by_global_norm(config.clip)] if config.clip else []
    return optax.chain(*clip, _adamw(config, rate) if config.name == "adamw" else _muon(config, rate))


def _adamw(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    return optax.adamw(
        rate, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=decay_mask
    )


def _muon(config: OptimizerConfig, rate: optax.Schedule) -> optax.GradientTransformation:
    """Muon (Jordan 2024) for [L, in, out] weights, AdamW for the rest, both at an update size of AdamW's order.

    The update is scaled by 0.2 sqrt(max(in, out)) (Liu et al. 2025), so that one learning rate serves both.
    """
    layered = contrib.MuonDimensionNumbers(reduction_axis=1, output_axis=2)

    def dimensions(params: dict):
        is_map = lambda path: path[0].key == "layers" and path[-1].key == "w"
        return jax.tree_util.tree_map_with_path(lambda path, _: layered if is_map(path) else None, params)

    return contrib.muon(
        rate,
        adam_learning_rate=lambda step: config.adam_rate * rate(step),
        adam_b1=config.b1,
        adam_b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        weight_decay_mask=decay_mask,
        adam_weight_decay=config.weight_decay,
        consistent_rms=0.2,
        muon_weight_dimension_numbers=dimensions,
    )
