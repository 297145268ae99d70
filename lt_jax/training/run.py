"""The training loop: batches in, a trained model out; logs, evaluates, saves, resumes and stops in between."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from lt_jax import cuda
from lt_jax.errors import UserError
from lt_jax.models.config import DecoderConfig
from lt_jax.training import heap, optimizer, step
from lt_jax.training import mesh as meshes
from lt_jax.training import state as states
from lt_jax.training.checkpoint import Checkpoints, describe
from lt_jax.training.config import TrainConfig
from lt_jax.training.metrics import MetricWriter
from lt_jax.training.state import TrainState


@dataclasses.dataclass(frozen=True)
class TrainResult:
    """What a run leaves.

    Attributes:
        state: the final state.
        params: the whole parameter tree, trained (float32) and frozen.
        history: metrics of every logging and evaluation step of this process, (step, {name: value}).
        finished: False if the run was asked to stop (SIGTERM) and saved before its last step.
    """

    state: TrainState
    params: dict
    history: tuple[tuple[int, dict[str, float]], ...]
    finished: bool


@dataclasses.dataclass(frozen=True)
class Made:
    """How a run differs whose data is made by the model that it trains, as in reinforcement learning.

    Attributes:
        make_step: as `step.make_step`.
        updates: of the optimizer in one step.
        summary: as the function of that name: the metrics of the steps of a window, as they are logged.
        before: called with the parameters, as they are by then, before each batch is asked for.
        after: called with the metrics of each step before anything is saved, so that what follows from them is saved.
        until: called once with a function that tells whether the run is asked to stop. The data may then raise
            `Stopped` in place of a batch; its state must be the one before that batch.
    """

    make_step: Callable = step.make_step
    updates: int = 1
    summary: Callable | None = None
    before: Callable[[dict], None] | None = None
    after: Callable[[dict], None] | None = None
    until: Callable[[Callable[[], bool]], None] | None = None


class Stopped(Exception):
    """The data gave up a batch, because the run is asked to stop."""


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
    writers: Sequence[MetricWriter] | Callable[[int], Sequence[MetricWriter]] = (),
    folder: str | os.PathLike | None = None,
    resolved=None,
    mesh: Mesh | None = None,
    keep_params: bool = True,
    say: Callable[[str], None] = lambda line: None,
    made: Made | None = None,
) -> TrainResult:
    """Trains `params` until step `config.steps`; goes on from the newest checkpoint if `folder` has one.

    Args:
        params: start values.
        data: endless iterator of batches, see `lt_jax.training.step`; of several processes each gives its own rows, see
            `mesh.share`. With `folder` it must be Grain's kind, so that its place is saved too.
        eval_data: makes a finite pass over held-out batches, for eval_loss and eval_accuracy.
        evaluate: any further evaluation, (params, step) -> {name: value}.
        writers: where metrics go, or a function that makes the writers when told the step the run starts from.
        folder: of the checkpoints; None saves nothing.
        resolved: what else the run is, kept in its checkpoints, see `checkpoint.describe`.
        mesh: None makes one over all devices from `config.mesh`.
        keep_params: False lets the run overwrite the arrays of `params`, which saves one copy of what is trained.
        say: told in words where the run starts and how much memory a step takes.
        made: what differs where the model makes its own data; None is supervised training.

    Raises:
        UserError: the data ended, the loss is not a number, the mesh does not divide the model or the batch, the
            checkpoint is of another run or past the last step, the disk is full, `config.attention` cannot be had here.
    """
    if not config.steps:
        raise UserError("train.steps is 0: this loop needs a number of steps, which only `sft` makes of train.epochs")
    if config.attention == "triton":
        cuda.refuse("train.attention 'triton'")
    mesh = meshes.make(config.mesh) if mesh is None else mesh
    made = Made() if made is None else made
    tx = optimizer.make(config.optim, config.steps * made.updates)
    state, frozen = states.create(params, model, tx, jax.random.key(config.seed), mesh, keep_params)
    del params
    with contextlib.ExitStack() as stack:
        saving = None
        if folder is not None:
            saving = _Saving(stack.enter_context(Checkpoints(folder, config.keep)), data)
            saving.about = describe(model, config, frozen, resolved)
            state = saving.resume(state, config.steps)
            if int(state.step):
                say(f"going on from the checkpoint of step {int(state.step)}")
        loop = _Loop(config, model, tx, mesh, state, frozen, data, made)
        loop.say = say
        loop.writers = writers(loop.done) if callable(writers) else writers
        for writer in loop.writers:
            stack.callback(writer.close)
        loop.saving, loop.eval_data, loop.evaluate = saving, eval_data, evaluate
        with stop_signal() as asked:
            finished = loop.run(asked)
    return TrainResult(loop.state, states.merge(loop.state.trained, frozen), tuple(loop.history), finished)


class _Saving:
    """Checkpoints of one run together with its data iterator."""

    def __init__(self, checkpoints: Checkpoints, data):
        if not hasattr(data, "get_state"):
            raise TypeError("a run with a folder needs a data iterator with get_state and set_state, such as Grain's")
        self.checkpoints, self.data, self.about = checkpoints, data, {}

    def resume(self, state: TrainState, steps: int) -> TrainState:
        """The state to go on from. UserError if the folder's run is already past `steps`."""
        latest = self.checkpoints.latest
        if latest is None:
            return state
        state = self.checkpoints.restore(state, self.about, self.data)
        if latest > steps:
            raise UserError(
                f"{self.checkpoints.folder}: the newest checkpoint is of step {latest} and train.steps is {steps}; "
                "a run cannot go back: give as many steps or more, or another folder"
            )
        return state

    def save(self, state: TrainState) -> None:
        self.checkpoints.save(state, self.about, self.data)


class _Loop:
    """The loop's variables, so that each thing it does is a short method."""

    def __init__(self, config, model, tx, mesh, state, frozen, data, made):
        self.config, self.model, self.mesh, self.data, self.made = config, model, mesh, data, made
        self.state, self.frozen = state, frozen
        self.jitted = made.make_step(model, config, tx, mesh, state)
        self.compiled = {}  # by the shapes of a batch
        self.eval_step = step.make_eval_step(model, config, mesh)
        self.rate = optimizer.schedule(config.optim, config.steps * made.updates)
        self.done = int(state.step)
        self.history, self.window, self.since = [], [], time.monotonic()
        self.writers: Sequence[MetricWriter] = ()
        self.saving = self.eval_data = self.evaluate = self.say = None

    def run(self, asked: threading.Event) -> bool:
        """Steps to the end, or until a stop is asked for; True if the end was reached."""
        last = self.config.steps
        if self.made.until is not None:
            self.made.until(asked.is_set)
        while self.done < last:
            try:
                self.step()
            except Stopped:
                if self.saving and self.done:
                    self.log()
                    self.saving.save(self.state)
                return False
            if due(self.done, self.config.log_every, last):
                self.log()
            if due(self.done, self.config.eval_every, last):
                self.measure()
            stopping = stop_agreed(asked, self.done)
            if self.saving and (stopping or due(self.done, self.config.save_every, last)):
                self.log()  # never save a state whose loss was not looked at
                self.saving.save(self.state)
            if stopping and self.done < last:
                return False
        return True

    def step(self) -> None:
        """One optimizer step.

        The metrics of the step before are fetched only now. So the device always has work while the host waits, and the
        host is never more than one step ahead.
        """
        batch = self.next_batch()
        shapes = tuple((name, x.shape) for name, x in sorted(batch.items()))
        if shapes not in self.compiled:
            self.compiled[shapes] = self.compile(batch)
        self.state, values = self.compiled[shapes](self.state, self.frozen, batch)
        self.done += 1
        if self.made.after is not None:
            self.made.after(values)
        self.window.append(values)
        if len(self.window) > 1:
            self.window[-2] = jax.device_get(self.window[-2])

    def compile(self, batch: dict):
        """Compiles the step for the shapes of a batch, and says what it needs before it is run."""
        compiled = self.jitted.lower(self.state, self.frozen, batch).compile()
        heap.give_back()
        if (memory := compiled.memory_analysis()) is not None:
            held, more = memory.argument_size_in_bytes / 2**30, memory.temp_size_in_bytes / 2**30
            self.say(f"memory of a step, per device: {held:.2f} GiB of state and batch, {more:.2f} GiB more")
        if not self.made.before:  # else what came before it is part of the step's time
            self.since = time.monotonic()
        return compiled

    def next_batch(self) -> dict:
        if self.made.before is not None:
            self.made.before(states.merge(self.state.trained, self.frozen))
        try:
            batch = next(self.data)
        except StopIteration:
            raise UserError(
                f"the training data ended before step {self.done + 1}; let it repeat or train less"
            ) from None
        if not self.compiled:
            rows, length = batch["tokens"].shape
            meshes.check_batch(self.mesh, rows * meshes.share(self.mesh)[1], length, self.config)
        return meshes.place_batch(self.mesh, batch)

    def log(self) -> None:
        """Hands the metrics of the steps since the last time to the writers."""
        if not self.window:
            return
        window, self.window = jax.device_get(self.window), []
        values = (self.made.summary or summary)(window, self.done, time.monotonic() - self.since)
        values["learning_rate"] = float(self.rate(self.done * self.made.updates - 1))
        self.note(values)

    def measure(self) -> None:
        """Evaluates, and hands the results to the writers."""
        values = {}
        if self.eval_data:
            batches = (meshes.place_batch(self.mesh, batch) for batch in self.eval_data())
            values |= eval_loss(lambda batch: self.eval_step(self.state.trained, self.frozen, batch), batches)
        if self.evaluate:
            seen = states.computed(self.state.trained, self.model, self.config.params_dtype)
            found = self.evaluate(states.merge(seen, self.frozen), self.done)
            values |= {f"eval_{name}": float(v) for name, v in found.items()}
        if values:
            self.note(values)

    def note(self, values: dict[str, float]) -> None:
        self.history.append((self.done, values))
        for writer in self.writers:
            writer.write(self.done, values)
        self.since = time.monotonic()


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
    weights = trained if trained.any() else None
    mean = lambda name, by=None: float(np.average([values[name] for values in window], weights=by))
    tokens = float(sum(values["tokens"] for values in window))
    return {
        "loss": mean("loss", weights),
        "accuracy": mean("accuracy", weights),
        "grad_norm": mean("grad_norm"),
        "tokens": tokens,
        "trained_tokens": float(trained.sum()),
        "tokens_per_second": tokens / max(seconds, 1e-9),
    }


def eval_loss(eval_step: Callable, batches: Iterable[dict]) -> dict[str, float]:
    """Token-mean loss and accuracy over all of `batches`."""
    totals = [jax.device_get(eval_step(batch)) for batch in batches]
    if not totals:
        raise UserError("the evaluation data is empty")
    total = {name: sum(float(part[name]) for part in totals) for name in totals[0]}
    weight = max(total["weights"], 1.0)
    return {"eval_loss": total["loss"] / weight, "eval_accuracy": total["correct"] / weight}


@contextlib.contextmanager
def stop_signal() -> Iterator[threading.Event]:
    """An event that SIGTERM sets while inside, so that a preempted run can save first. Main thread only.

    With several processes SIGTERM belongs to JAX, which has caught it since `jax.distributed.initialize` and tells
    every process of it (`stop_agreed`); a handler here would hide it.
    """
    asked = threading.Event()
    if jax.process_count() > 1 or threading.current_thread() is not threading.main_thread():
        yield asked
        return
    before = signal.signal(signal.SIGTERM, lambda *_: asked.set())
    try:
        yield asked
    finally:
        signal.signal(signal.SIGTERM, before)


def stop_agreed(asked: threading.Event, step: int) -> bool:
    """Whether to stop after this step; several processes agree on one, so that they all save the same.

    A SIGTERM to any of them is enough. The step agreed on is the one after the furthest that any of them has reached
    (`multihost_utils.reached_preemption_sync_point`): no collective is needed, and no step waits for another.
    """
    if jax.process_count() == 1:
        return asked.is_set()
    return multihost_utils.reached_preemption_sync_point(step)
