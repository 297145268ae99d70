"""Engines as users make them, and how fast they write."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Callable

import numpy as np

from benchmarks.gpu_sides.jax_side import ENGINE, model, weights
from benchmarks.gpu_sides.side import Task, seconds
from lt_jax import cuda
from lt_jax.cache.policies import published
from lt_jax.decode import DecodeConfig, Engine, Request
from lt_jax.decode.setup import cache_bytes, rules_of
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens

VANILLA = Scheme(method="vanilla")


class Engines:
    """Makes engines of one model that share its weights."""

    def __init__(self, task: Task, layers: int | None = None):
        self.task, self.model = task, model(task.sizes.model, layers=layers)
        self.params, self.shared, self.making = weights(self.model), {}, threading.Lock()
        vocab = self.model.vocab_size
        gists = tuple(range(vocab - 20, vocab - 11))
        self.special = SpecialTokens(-1, 0, trigger=vocab - 1, output=vocab - 2, gists=gists)

    def config(self, how: str, rows: int, capacity: int, form: str = ENGINE, **more) -> tuple[Scheme, DecodeConfig]:
        """Of a way to decode: "full", "LightThinker" or "R-KV"."""
        size, more = self.task.sizes, dict(graphs=self.task.graphs) | more
        if how == "R-KV":
            budget = published("rkv", size.budget, size.buffer)
            return VANILLA, DecodeConfig(rows=rows, eviction=budget, implementation=form, **more)
        if how == "LightThinker":
            more = dict(max_thought=size.thought) | more
            return Scheme(), DecodeConfig(rows=rows, capacity=capacity, implementation=form, **more)
        return VANILLA, DecodeConfig(rows=rows, capacity=capacity, implementation=form, **more)

    def make(self, how: str, rows: int, capacity: int, form: str = ENGINE, **more) -> Engine:
        """An engine whose rows have room for all that they may come to need, so that one block is compiled and not one
        for each size on the way there."""
        scheme, config = self.config(how, rows, capacity, form, **more)
        with self.making:  # or two threads would each make the weights
            held = self.shared.get(form)
            engine = Engine(self.params, self.model, scheme, self.special, config, weights=held)
            self.shared[form] = engine.weights
        engine.reserve(config.most_keys)
        return engine

    def row_bytes(self, how: str, capacity: int) -> float:
        """Bytes of the cache of a row."""
        scheme, config = self.config(how, 1, capacity)
        return cache_bytes(self.model, config, rules_of(self.model, scheme, self.special, config))

    def prompts(self, rows: int, length: int) -> list[np.ndarray]:
        """Random ones."""
        return list(np.random.default_rng(0).integers(0, self.model.vocab_size - 64, (rows, length)))


def call(engine: Engine, asked: list[Request]):
    """Answers the requests anew, prompts read and all; they must end by their length alone."""
    engine.forget()
    done = engine.complete(asked)
    assert all(each.finish == "length" for each in done), {each.finish for each in done}
    return done


def first(engine: Engine, prompts, new: int) -> dict:
    """Seconds of an engine's first call, which compiles its programs."""
    start = time.perf_counter()
    call(engine, [Request(prompt, new) for prompt in prompts])
    return {"first call s": time.perf_counter() - start}


def rate(engine: Engine, prompts, new: int) -> dict:
    """Tokens/s from prompts to the last token, of the faster of two calls of an engine that has been called before."""
    asked = [Request(prompt, new) for prompt in prompts]
    return {"tokens/s": len(asked) * new / seconds(lambda: call(engine, asked))}


def steady(task: Task, engine: Engine, rows: int, length: int, window: int) -> dict:
    """Tokens/s of `rows` that hold a prompt of `length` and write `window` tokens: the difference of a longer and a
    shorter call, so that reading the prompt, which all rows share, does not count. (Of the tiny calls of a rehearsal
    the difference is noise, and the longer one is taken.)

    Raises:
        ValueError: the longer call was not the slower one.
    """
    (prompt,) = np.random.default_rng(0).integers(0, engine.model.vocab_size - 64, (1, length))
    short, long = ([Request(prompt, task.sizes.short + more, n=rows)] for more in (0, window))
    slow, fast = (seconds(lambda asked=asked: call(engine, asked)) for asked in (long, short))
    if slow <= fast and not task.rehearse:
        raise ValueError(f"{slow:.3f} s for the longer call, {fast:.3f} s for the shorter one")
    return {"rows": rows, "tokens/s": rows * window / (slow if task.rehearse else slow - fast)}


def warmed(starts: list[tuple[Callable[[], Engine], list[Request]]]) -> list[concurrent.futures.Future]:
    """Makes engines and compiles their programs side by side, by calls that do not count; their `result()` is the
    engine, or raises what went wrong with it. Triton's interpreter cannot run in several threads."""

    def ready(make: Callable[[], Engine], asked: list[Request]) -> Engine:
        engine = make()
        call(engine, asked)
        return engine

    with concurrent.futures.ThreadPoolExecutor(1 if cuda.interpreting() else len(starts)) as pool:
        return [pool.submit(ready, *each) for each in starts]
