"""The training loop: batches in, a trained state out; logs, evaluates, saves and stops in between."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np

from lt_jax.errors import UserError
from lt_jax.models.config import DecoderConfig
from lt_jax.training import metrics as writing
from lt_jax.training import optimizer, state, step
from lt_jax.training.config import TrainConfig
from lt_jax.training.metrics import Writer
from lt_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run leaves: the final state and the metrics of every logging step, as (step, {name: value})."""

    state: TrainState
    history: tuple[tuple[int, dict[str, float]], ...]

    @property
    def params(self) -> dict:
        return self.state.params


def due(step: int, every: int, last: int) -> bool:
    """Whether something that happens every `every` steps (0: only at the end) happens after `step`."""
    return step == last or (every > 0 and step % every == 0)


def train(
    config: TrainConfig,
    model: DecoderConfig,
    params: dict,
    data: Iterator[dict],
    *,
    eval_data: Callable[[], Iterable[dict]] | None = None,
    evaluate: Callable[[dict, int], dict[str, float]] | None = None,
    writers: Sequence[Writer] = (),
) -> TrainResult:
    """Trains `params` for `config.steps` steps.

    Args:
        params: start values; their buffers are given up to the run.
        data: endless iterator of batches, see `lt_jax.training.step`.
        eval_data: makes a finite pass over held-out batches, for eval_loss and eval_accuracy.
        evaluate: any further evaluation, (params, step) -> {name: value}.
        writers: where metrics go.

    Raises:
        UserError: the data ended, or the loss is not a number.
    """
    tx = optimizer.make(config.optim, config.steps)
    rate = optimizer.schedule(config.optim, config.steps)
    train_step, eval_step = step.make_step(model, config, tx), step.make_eval_step(model, config)
    train_state = state.create(params, model, tx, jax.random.key(config.seed))
    window, history, since = [], [], time.monotonic()

    for done in range(1, config.steps + 1):
        train_state, values = train_step(train_state, next_batch(data, done))
        window.append(values)
        if len(window) > 1:  # one step behind: the device stays busy, the host never runs far ahead
            window[-2] = jax.device_get(window[-2])
        if due(done, config.log_every, config.steps):
            window[-1] = jax.device_get(window[-1])
            values = summary(window, done, time.monotonic() - since)
            values["learning_rate"] = float(rate(done - 1))
            window = []
            history.append((done, values))
            writing.write_all(writers, done, values)
            since = time.monotonic()
        if due(done, config.eval_every, config.steps) and (eval_data or evaluate):
            values = {}
            if eval_data:
                values |= eval_loss(eval_step, train_state.params, eval_data())
            if evaluate:
                values |= {f"eval_{name}": float(v) for name, v in evaluate(train_state.params, done).items()}
            history.append((done, values))
            writing.write_all(writers, done, values)
            since = time.monotonic()
    return TrainResult(train_state, tuple(history))


def next_batch(data: Iterator[dict], done: int) -> dict:
    """The next batch, or a UserError if the data is at its end."""
    try:
        return next(data)
    except StopIteration:
        raise UserError(f"the training data ended before step {done}; let it repeat or train less") from None


def summary(window: list[dict], last: int, seconds: float) -> dict[str, float]:
    """Means over the steps of a window ending at step `last`; loss and accuracy weighted by trained tokens.

    Raises:
        UserError: naming the first step whose loss or gradient is not a number, and the window.
    """
    first = last - len(window) + 1
    for number, values in enumerate(window, first):
        if not (np.isfinite(values["loss"]) and np.isfinite(values["grad_norm"])):
            loss, norm = float(values["loss"]), float(values["grad_norm"])
            raise UserError(
                f"the loss is {loss} and the gradient norm {norm} at step {number} (logged window {first}..{last}); "
                "lower optim.learning_rate, or look at the data of that step"
            )
    trained = np.array([values["trained"] for values in window], np.float64)
    mean = lambda name, by: float(np.average([values[name] for values in window], weights=by if by.any() else None))
    even = np.ones(len(window))
    return {
        "loss": mean("loss", trained),
        "accuracy": mean("accuracy", trained),
        "grad_norm": mean("grad_norm", even),
        "tokens": float(sum(values["tokens"] for values in window)),
        "trained_tokens": float(trained.sum()),
        "tokens_per_second": float(sum(values["tokens"] for values in window)) / max(seconds, 1e-9),
    }


def eval_loss(eval_step: Callable, params: dict, batches: Iterable[dict]) -> dict[str, float]:
    """Token-mean loss and accuracy over all of `batches`."""
    totals = [jax.device_get(eval_step(params, batch)) for batch in batches]
    if not totals:
        raise UserError("the evaluation data is empty")
    total = {name: sum(float(part[name]) for part in totals) for name in totals[0]}
    weight = max(total["weights"], 1.0)
    return {"eval_loss": total["loss"] / weight, "eval_accuracy": total["correct"] / weight}
