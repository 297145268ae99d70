"""A TFDS builder for reasoning traces: files are checked and normalised once, then read with random access.

    folder = prepare("traces.jsonl", data_dir)         # again: nothing to do, unless a file changed
    source = open_prepared(folder)                     # a sequence of Trace

The data set lives in `data_dir/traces/<name>-<hash>/<version>/` as array_record files. The hash is of the files'
content and the format asked for, so a changed file is another data set and never an old one under the same name; the
files are read in the order of their content's hashes, so that their names and folders decide nothing. TFDS
writes into a temporary folder and renames it, so a broken line or a full disk leaves nothing behind. TFDS shuffles
the examples as it writes, so a slice such as "train[:500]" is a random sample. No TensorFlow is imported.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import io
import json
import re
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import absl.logging
import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from lt_jax.data.readers import read_traces, trace_files
from lt_jax.data.traces import Trace, Turn
from lt_jax.errors import UserError

_VERSION = "1.1.0"  # of the stored fields; raise it when they change
_TURNS = ("history", "between")
_JSON = (*_TURNS, "extra", "calls", "tools", "trained")


@dataclasses.dataclass
class TracesConfig(tfds.core.BuilderConfig):
    """Which files to prepare; `name` carries their hash."""

    paths: tuple[str, ...] = ()
    format: str | None = None
    evaluation: bool = False


class Traces(tfds.core.GeneratorBasedBuilder):
    """Reasoning traces from JSONL or Parquet files, see `lt_jax.data.traces` for the formats."""

    VERSION = tfds.core.Version(_VERSION)
    # TFDS 4.9.10 finds this path with importlib_resources, which it does not list among its requirements.
    code_path = epath.Path(__file__)

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        return tfds.core.DatasetInfo(
            builder=self,
            description="Reasoning traces: a question and the whole text a model is to write after it.",
            features=tfds.features.FeaturesDict(
                {
                    "question": text(),
                    "response": text(),
                    "system": text(),
                    "history": text(),  # JSON, as all of `_JSON`
                    "segments": tfds.features.Sequence(text()),
                    "answer": text(),
                    "source": text(),
                    "add_eos": tfds.features.Scalar(np.bool_),
                    "extra": text(),
                    "reasoning": text(),
                    "between": text(),
                    "calls": text(),
                    "tools": text(),
                    "trained": text(),
                }
            ),
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        config = self.builder_config
        for number, trace in enumerate(read_traces(config.paths, config.format, config.evaluation)):
            yield number, _encode(trace)


class PreparedTraces(Sequence):
    """Traces of a prepared folder by index; nothing is held in memory but the open files."""

    def __init__(self, folder: str | Path, split: str = "train"):
        self.folder, self.split = Path(folder), split
        self._source = tfds.builder_from_directory(str(folder)).as_data_source(split=split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Trace:
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return _decode(self._source[int(index) % len(self)])

    def __reduce__(self):
        return PreparedTraces, (self.folder, self.split)

    def __repr__(self) -> str:
        return f"PreparedTraces({str(self.folder)!r}, {self.split!r})"


def prepare(
    paths: str | Path | Iterable[str | Path],
    data_dir: str | Path,
    format: str | None = None,
    name: str | None = None,
    evaluation: bool = False,
) -> Path:
    """Prepares trace files, unless that was done before, and returns the prepared folder.

    Args:
        paths: files or folders, see `readers.trace_files`.
        data_dir: where prepared data sets live.
        format: a key of `traces.FORMATS`; None to see it from the fields.
        name: a readable name for the folder; by default that of the first file.
        evaluation: accept records without an output.

    Raises:
        UserError: what `readers.read_traces` raises, or the disk is full; nothing half-written is left.
    """
    files = trace_files(paths)
    first, files = files[0], [file for _, file in by_content(files)]
    readable = re.sub(r"[^A-Za-z0-9_]+", "_", name or first.name.split(".")[0]).strip("_") or "data"
    config = TracesConfig(
        name=f"{readable}-{content_hash(files, format, evaluation)}",
        paths=tuple(str(file) for file in files),
        format=format,
        evaluation=evaluation,
    )
    return prepared(Traces, config, data_dir)


def prepared(
    kind: type[tfds.core.GeneratorBasedBuilder], config: tfds.core.BuilderConfig, data_dir: str | Path
) -> Path:
    """The folder of a builder's data set, which is written unless it is there.

    Raises:
        UserError: what the builder raises of the kind, or the disk is full; nothing half-written is left.
    """
    with _quiet():
        builder = kind(config=config, data_dir=str(data_dir), file_format="array_record")
    folder = Path(str(builder.data_path))
    if _complete(folder):
        return folder
    try:
        with _quiet(), tempfile.TemporaryDirectory() as downloads:
            builder.download_and_prepare(download_dir=downloads)
    except Exception as error:
        if _complete(folder):  # another process prepared the same files at the same time
            return folder
        with contextlib.suppress(OSError):
            folder.parent.rmdir()  # TFDS has removed what it wrote, not the empty folder above
        raise _explained(error, folder) from error
    return folder


def open_prepared(folder: str | Path, split: str = "train") -> PreparedTraces:
    """The traces of a folder that `prepare` returned; `split` may be sliced as TFDS does: "train[:90%]".

    Raises:
        UserError: the folder holds no finished data set, or the split is not one of it.
    """
    if not _complete(Path(folder)):
        raise UserError(f"{folder}: not a prepared data set (no dataset_info.json); prepare the trace files first")
    try:
        return PreparedTraces(folder, split)
    except (ValueError, KeyError) as error:
        raise UserError(f"{folder}: no split {split!r}: {str(error).splitlines()[0]}") from None


def by_content(files: Iterable[Path]) -> list[tuple[str, Path]]:
    """(SHA-256 of the bytes, file), in the order of the hashes."""
    found = []
    for file in files:
        with open(file, "rb") as opened:
            found.append((hashlib.file_digest(opened, "sha256").hexdigest(), file))
    return sorted(found, key=lambda pair: pair[0])


def content_hash(files: Iterable[Path], format: str | None = None, evaluation: bool = False) -> str:
    """Twelve hex digits of the files' bytes, whatever their order and names, and of how they are read."""
    digest = hashlib.sha256(f"{_VERSION} {format} {evaluation}".encode())
    for each, _ in by_content(files):
        digest.update(bytes.fromhex(each))
    return digest.hexdigest()[:12]


@contextlib.contextmanager
def _quiet():
    """TFDS prints that it downloads, which it does not, and warns of a configuration it was not told of before."""
    level = absl.logging.get_verbosity()
    absl.logging.set_verbosity(absl.logging.ERROR)
    tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        absl.logging.set_verbosity(level)


def _complete(folder: Path) -> bool:
    return (folder / "dataset_info.json").exists()


def _explained(error: Exception, folder: Path) -> Exception:
    """The person's error behind what TFDS raised, or the error itself."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, OSError):
            return UserError(f"{folder}: cannot write prepared data: {cause.strerror or cause}; nothing was left")
        cause = cause.__cause__ or cause.__context__
    return error


def _encode(trace: Trace) -> dict:
    fields = {field.name: getattr(trace, field.name) for field in dataclasses.fields(Trace)}
    fields |= {name: [dataclasses.asdict(turn) for turn in fields[name]] for name in _TURNS}
    fields |= {name: json.dumps(fields[name], default=str) for name in _JSON}
    fields["segments"] = list(trace.segments)
    return fields


def _decode(example: dict) -> Trace:
    fields = {}
    for key, value in example.items():
        if isinstance(value, bytes):
            fields[key] = value.decode()
        elif key == "add_eos":
            fields[key] = bool(value)
        else:
            fields[key] = tuple(part.decode() for part in value)
    fields |= {name: json.loads(fields[name]) for name in _JSON}
    fields |= {name: tuple(Turn(**turn) for turn in fields[name]) for name in _TURNS}
    fields |= {name: tuple(fields[name]) for name in ("calls", "tools")}
    return Trace(**fields)
