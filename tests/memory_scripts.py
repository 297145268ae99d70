"""A model that writes what a test wants it to, for trajectories: its logits are real, its tokens are scripted."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import io_callback

from lt_jax.decode.request import sample_seed


class Script:
    """What is sampled by the seed of a request, from the index at which the engine first asks for it."""

    def __init__(self):
        self.tokens: dict[int, list[int]] = {}
        self.start: dict[int, int] = {}

    def turns(self, seed: int, turns) -> None:
        """The turns of the trajectory with that seed, token ids each."""
        for number, ids in enumerate(turns):
            self.tokens[int(np.uint32(sample_seed(seed, number)))] = list(ids)

    def sample(self, logits, barred, seeds, index, how, axis):
        """In place of `decode.sample.sample`."""

        def pick(seeds, index):
            found = []
            for seed, at in zip(map(int, seeds), map(int, index), strict=True):
                script = self.tokens.get(seed, [0])
                start = self.start.setdefault(seed, at)
                found.append(script[min(max(at - start, 0), len(script) - 1)])
            return np.asarray(found, np.int32)

        token = io_callback(pick, jax.ShapeDtypeStruct(index.shape, jnp.int32), seeds, index, ordered=True)
        logps = jax.nn.log_softmax(logits.astype(jnp.float32))
        return token, jnp.take_along_axis(logps, token[:, None], 1)[:, 0]
