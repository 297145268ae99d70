"""A tiny model, batches of made-up rows, and a data iterator of Grain's kind, for the tests of training."""

import grain
import numpy as np

from lt_jax.lifetimes import NEVER
from lt_jax.models.config import DecoderConfig
from lt_jax.training.config import OptimizerConfig, TrainConfig

MODEL = DecoderConfig(vocab_size=60, hidden=32, intermediate=64, layers=2, heads=4, kv_heads=2, head_dim=8)
ROWS, LENGTH = 8, 32


def batch(seed=0, rows=ROWS, length=LENGTH):
    """Random tokens whose thoughts of 6 die after 2 gists; about half of the targets have weight."""
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, MODEL.vocab_size, (rows, length + 1)).astype(np.int32)
    index = np.arange(length, dtype=np.int32)
    death = np.where(index % 8 < 6, (index // 8 + 1) * 8, NEVER).astype(np.int32)
    same = lambda x: np.tile(x, (rows, 1))
    return {
        "tokens": tokens[:, :-1],
        "targets": tokens[:, 1:],
        "weights": draw.integers(0, 2, (rows, length)).astype(np.float32),
        "positions": same(index),
        "death": same(death),
        "since": np.zeros((rows, length), np.int32),
        "gist": same(np.where(index % 8 >= 6, index // 8, -1).astype(np.int32)),
    }


class Batches:
    """Batch i of a run is made from i; of several processes each has its part of the rows."""

    def __init__(self, part=0, parts=1):
        self.part, self.parts = part, parts

    def __len__(self):
        return 10**6

    def __getitem__(self, index):
        rows = ROWS // self.parts
        return {name: x[self.part * rows : (self.part + 1) * rows] for name, x in batch(int(index)).items()}


def data(part=0, parts=1):
    """A fresh Grain iterator over `Batches`, shuffled."""
    shuffled = grain.MapDataset.source(Batches(part, parts)).shuffle(seed=3)
    return iter(shuffled.to_iter_dataset(grain.ReadOptions(num_threads=1)))


def config(**more):
    optim = OptimizerConfig(**{"learning_rate": 1e-2, "warmup": 2.0, "end_fraction": 0.1, **more.pop("optim", {})})
    return TrainConfig(**{"steps": 6, "log_every": 2, "attention": "dense", "optim": optim, **more})
