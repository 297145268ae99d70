"""Trajectories as a TFDS data set, without TensorFlow: `data.builder` for another kind of record.

    folder = prepare("pruned.jsonl", data_dir)         # again: nothing to do, unless the file changed
    logs = open_logs(folder)                           # a sequence of Log

A record has the fields that samples are chosen by (id, question, gold, finish, correct, how many turns), and the whole
trajectory as JSON. TFDS shuffles the records as it writes, so a slice is a random sample.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds
from etils import epath

from lt_jax.data.builder import content_hash, prepared
from lt_jax.data.sources import Mapped
from lt_jax.errors import UserError
from lt_jax.memory.journal import read_logs
from lt_jax.memory.log import Log, from_json


@dataclasses.dataclass
class LogsConfig(tfds.core.BuilderConfig):
    """Which file to prepare; `name` carries its hash."""

    path: str = ""


class Trajectories(tfds.core.GeneratorBasedBuilder):
    """Trajectories of LightThinker++ from a JSONL file, one `log.Log` a line."""

    VERSION = tfds.core.Version("1.0.0")
    code_path = epath.Path(__file__)  # as of `data.builder.Traces`

    def _info(self) -> tfds.core.DatasetInfo:
        text = tfds.features.Text
        features = {
            "id": text(), "question": text(), "gold": text(), "finish": text(), "log": text(),
            "correct": tfds.features.Scalar(np.bool_), "turns": tfds.features.Scalar(np.int32),
        }  # fmt: skip
        return tfds.core.DatasetInfo(
            builder=self, description="Trajectories of models that manage their memory by actions.",
            features=tfds.features.FeaturesDict(features),
        )  # fmt: skip

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples()}

    def _generate_examples(self):
        for number, log in enumerate(read_logs(self.builder_config.path)):
            yield number, {
                "id": log.id, "question": log.question, "gold": log.gold, "finish": log.finish,
                "log": json.dumps(log.to_json(), ensure_ascii=False), "correct": bool(log.correct),
                "turns": len(log.turns),
            }  # fmt: skip


def prepare(path: str | Path, data_dir: str | Path) -> Path:
    """Prepares a file of trajectories, unless that was done before; the prepared folder.

    Raises:
        UserError: what `journal.read_logs` raises, or the disk is full; nothing half-written is left.
    """
    config = LogsConfig(name=f"{Path(path).stem}-{content_hash([Path(path)])}", path=str(path))
    return prepared(Trajectories, config, data_dir)


def open_logs(folder: str | Path, split: str = "train") -> Sequence[Log]:
    """The trajectories of a folder that `prepare` returned, by index.

    Raises:
        UserError: there is no data set of trajectories.
    """
    try:
        source = tfds.builder_from_directory(str(folder)).as_data_source(split=split)
    except (ValueError, KeyError, FileNotFoundError, tfds.core.DatasetNotFoundError) as error:
        raise UserError(f"{folder}: no data set of trajectories: {str(error).splitlines()[0]}") from None
    return Mapped(source, lambda record: from_json(json.loads(record["log"]), str(folder)))
