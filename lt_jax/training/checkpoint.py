"""Checkpoints of a run: trained parameters, optimizer state, step, key, the data iterator, and what the run was.

    folder/120/state   arrays, sharded         folder/120/data   the iterator's state, one file per process
    folder/120/run     JSON text: model, training config, resolved config, shapes, fingerprint of frozen parameters

Written in the background by Orbax; a checkpoint exists whole or not at all. Frozen parameters (LoRA) are not written:
they come from the model folder again, and their fingerprint says whether it is the same one.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import shutil
import time
from collections import Counter
from typing import Any

import jax
import jax.numpy as jnp
from orbax.checkpoint import v1 as ocp

from lt_jax.errors import UserError
from lt_jax.models.config import DecoderConfig
from lt_jax.training import state as states
from lt_jax.training.config import TrainConfig
from lt_jax.training.state import TrainState

# What may differ between a run and its continuation: it changes speed or what is reported, not the path of training
# (mesh, accumulate, remat, attention and loss_chunk change the order of sums, and so the last digits).
# Only `steps` changes the path too: a run made longer goes on along the cosine of its new length from where it stands.
# `epochs` may not change: the last rows of a pass are packed as its end makes them.
FREE = (
    "mesh", "accumulate", "log_every", "eval_every", "save_every", "keep", "remat", "attention", "loss_chunk", "steps",
)  # fmt: skip


class Checkpoints:
    """The checkpoints of one run folder. Use as a context manager: leaving it waits for the save that is under way.

    Opening a folder removes what a killed run left half written; with `reading` nothing is touched, as the run may be
    alive and that save its own.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 2, reading: bool = False):
        self.folder = pathlib.Path(folder).absolute()
        self.keep, self.reading = keep, reading
        self._writing: tuple[int, Any] | None = None
        self.reopen()

    def reopen(self) -> None:
        """Looks at the folder anew."""
        policies = ocp.training.preservation_policies
        try:
            self.manager = ocp.training.Checkpointer(
                self.folder,
                preservation_policy=policies.LatestN(self.keep),
                cleanup_tmp_directories=not self.reading,
            )
        except OSError as error:
            raise UserError(f"{self.folder}: no checkpoints can be kept here ({error.strerror or error})") from None

    @property
    def latest(self) -> int | None:
        """Step of the newest whole checkpoint, or None."""
        steps = [entry.step for entry in self.manager.checkpoints]
        return max(steps) if steps else None

    def save(self, state: TrainState, about: dict, data=None) -> None:
        """Starts writing a checkpoint; the run may go on at once. Waits for the one before.

        Args:
            about: JSON values that say what the run is, see `describe`.
            data: the data iterator, if it has a state (Grain's); saved as it stands at this call.

        Raises:
            UserError: the disk is full or cannot be written. Earlier checkpoints stay as they were.
        """
        self.wait()
        step = int(state.step)
        if step == self.latest:
            return
        about = about | {"shapes": _shapes(state)}
        items = {"state": _items(state), "run": {"json": json.dumps(about)}} | ({} if data is None else {"data": data})
        with _explained(self, step):
            self._writing = step, self.manager.save_checkpointables_async(step, items, force=True)

    def wait(self) -> None:
        """Blocks until the save under way is whole. UserError if it failed."""
        if self._writing is None:
            return
        (step, response), self._writing = self._writing, None
        with _explained(self, step):
            response.result()

    def restore(self, like: TrainState, about: dict, data=None) -> TrainState:
        """Reads the newest checkpoint.

        Args:
            like: a state of the same shapes, placed as the restored one shall be, on any number of devices.
            about: what this run is; what matters of it must agree with the checkpoint's.
            data: the data iterator; it is brought to where it was.

        Raises:
            UserError: there is none, or it is of another model, base model or training config.
        """
        step = self.latest
        if step is None:
            raise UserError(f"{self.folder}: there is no checkpoint")
        where = f"checkpoint {self.folder / str(step)}"
        check(self.about(), about | {"shapes": _shapes(like)}, where)
        abstract = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
        items = {"state": jax.tree.map(abstract, _items(like))} | ({} if data is None else {"data": data})
        try:
            loaded = self.manager.load_checkpointables(step, items)["state"]
        except (ValueError, KeyError, OSError) as error:
            raise UserError(f"{where} cannot be read: {str(error).splitlines()[0][:200]}") from error
        key = states.place_key(loaded.pop("key"), like.key.sharding)
        return TrainState(**loaded, key=key)

    def about(self) -> dict:
        """What the newest checkpoint says of its run, see `describe`; with "shapes" of its arrays."""
        return json.loads(self.manager.load_checkpointables(self.latest, {"run": None})["run"]["json"])

    def close(self) -> None:
        try:
            self.wait()
        finally:
            self.manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_) -> None:
        self.close()


@contextlib.contextmanager
def _explained(checkpoints: Checkpoints, step: int):
    """Turns what goes wrong while writing into one line for people, and removes what was half written."""
    try:
        yield
    except Exception as error:
        if not _is_disk_error(error):
            raise
        folder = checkpoints.folder
        checkpoints.reopen()
        _remove_partial(folder, step)
        before = checkpoints.latest
        kept = f"the checkpoint of step {before} is untouched" if before is not None else "there is no earlier one"
        raise UserError(
            f"{folder}: the checkpoint of step {step} could not be written ({_reason(error)}); {kept}"
        ) from error


def _remove_partial(folder: pathlib.Path, step: int) -> None:
    """Removes what was half written. The other parts of a save that failed may still be writing: look until quiet."""
    quiet = 0
    for _ in range(100):
        partial = list(folder.glob(f"{step}.*tmp*"))
        quiet = 0 if partial else quiet + 1
        if quiet == 3:
            return
        for each in partial:
            shutil.rmtree(each, ignore_errors=True)
        time.sleep(0.05)


def _chain(error: BaseException | None):
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


DISK_WORDS = ("No space left", "ENOSPC", "Disk quota", "Read-only file system", "File too large", "RESOURCE_EXHAUSTED")


def _is_disk_error(error: BaseException) -> bool:
    return any(isinstance(e, OSError) or any(word in str(e) for word in DISK_WORDS) for e in _chain(error))


def _reason(error: BaseException) -> str:
    for each in _chain(error):
        for word in DISK_WORDS:
            if word in str(each):
                return {"ENOSPC": "No space left", "RESOURCE_EXHAUSTED": "No space left"}.get(word, word)
        if isinstance(each, OSError) and each.strerror:
            return each.strerror
    return str(error)


def _items(state: TrainState) -> dict:
    """The state as a dict; its key as plain numbers, because Orbax restores a typed key with the sharding of these."""
    fields = {field.name: getattr(state, field.name) for field in dataclasses.fields(state)}
    return fields | {"key": jax.random.key_data(state.key)}


def _shapes(state: TrainState) -> dict[str, str]:
    name = lambda path: "".join(str(getattr(part, "key", part)).removeprefix(".") + "." for part in path).rstrip(".")
    return {name(path): str(x.aval) for path, x in jax.tree_util.tree_leaves_with_path(_items(state))}


def describe(model: DecoderConfig, config: TrainConfig, frozen: dict, resolved=None) -> dict:
    """What a run is, as plain JSON values: model, train, resolved, processes, the fingerprint of the frozen parameters.

    Args:
        resolved: what else the run is (data, layout), a dict of JSON values; it must be the same to go on. Its entry
            `files`, if there is one, lists [hash of the content, path]: of these the path may change.
    """
    described = {name: value for name, value in dataclasses.asdict(model).items() if name != "extra"}
    run = {"model": described, "train": dataclasses.asdict(config), "resolved": resolved}
    return json.loads(json.dumps(run)) | {"frozen": int(fingerprint(frozen)), "processes": jax.process_count()}


@jax.jit
def fingerprint(tree) -> jax.Array:
    """A number that changes when any bit of any array does, or two rows change places: sums of bits, each times an odd
    number of its place; the same however arrays are sharded.

    Both sums of an array are one reduction of pairs: on a CPU, XLA reads the array once for that, where it would first
    write down what a reduction of single numbers sums up, a second copy of the whole model.
    """
    total, zero = jnp.zeros((), jnp.uint32), jnp.uint32(0)
    both = lambda a, b: (a[0] + b[0], a[1] + b[1])
    for number, x in enumerate(jax.tree.leaves(tree)):
        kind = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
        bits = jax.lax.bitcast_convert_type(x, kind).astype(jnp.uint32)
        place = jnp.zeros(x.shape, jnp.uint32)
        for axis, length in enumerate(x.shape):
            place = place * jnp.uint32(length) + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis)
        plain, placed = jax.lax.reduce((bits, bits * place), (zero, zero), both, tuple(range(x.ndim)))
        total += jnp.uint32(2 * number + 1) * (2 * placed + plain)
    return total


def check(saved: dict, now: dict, where: str) -> None:
    """Raises UserError, naming the first difference that matters, if a checkpoint is not of this run."""
    saved, now = ({**about, "resolved": dict(about["resolved"] or {})} for about in (saved, now))
    changed = changed_files(*(about["resolved"].pop("files", []) for about in (saved, now)))
    if changed:
        raise UserError(f"{where}: it was trained on other data: {changed}; put the files back or use another folder")
    for group, of in (("model", "model"), ("train", "run"), ("resolved", "run")):
        old, new = _flat(saved[group]), _flat(now[group])
        for name in sorted(set(old) | set(new)):
            if old.get(name) != new.get(name) and not (group == "train" and name.split(".")[0] in FREE):
                label = name if group == "resolved" else f"{group}.{name}"
                raise UserError(
                    f"{where}: {label} is {old.get(name)} there and {new.get(name)} here; "
                    f"it is of another {of}, use another folder"
                )
    for name in sorted(set(saved["shapes"]) | set(now["shapes"])):
        old, new = saved["shapes"].get(name, "missing"), now["shapes"].get(name, "missing")
        if old != new:
            raise UserError(f"{where}: array {name} is {old} there and {new} here; it is of another model")
    if (processes := saved.get("processes", 1)) != now["processes"]:
        raise UserError(
            f"{where}: the run had {processes} processes and has {now['processes']} here; each goes on with its own "
            "part of the data, so start as many (each may have more or fewer devices)"
        )
    if saved["frozen"] != now["frozen"]:
        raise UserError(f"{where}: its adapters belong to other base weights than those loaded; check model.path")


def changed_files(old: list, new: list) -> str:
    """What became of the files of a run, in words; "" if they hold the same, wherever they lie.

    Args:
        old, new: [hash of the content, path] of every file.
    """
    before, said = [pathlib.PurePath(path).name for path in _beyond(old, new)], []
    for path in _beyond(new, old):
        name = pathlib.PurePath(path).name
        if name in before:
            before.remove(name)
            said.append(f"{path} has changed")
        else:
            said.append(f"{path} is new")
    said += [f"{name} is missing" for name in before]
    return ", ".join(said[:3]) + (f" and {len(said) - 3} more" if len(said) > 3 else "")


def _beyond(files: list, others: list) -> list[str]:
    """Paths of those of `files` whose content is not among `others` as many times."""
    left, paths = Counter(digest for digest, _ in others), []
    for digest, path in files:
        if left[digest]:
            left[digest] -= 1
        else:
            paths.append(path)
    return paths


def _flat(tree: dict, prefix: str = "") -> dict:
    """{"a": {"b": 1}} -> {"a.b": 1}"""
    out = {}
    for name, value in tree.items():
        out |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return out
