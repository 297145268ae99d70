"""Runs methods on a suite of problems and judges their answers."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lt_jax.data import answers
from lt_jax.data.problem import Problem
from lt_jax.data.suites import Suite
from lt_jax.decode import Completion
from lt_jax.decode.counts import count
from lt_jax.evaluation import clock
from lt_jax.evaluation.progress import ProgressLine
from lt_jax.evaluation.results import Curve, MethodResult, Outcome, Results, Sample, drawable
from lt_jax.evaluation.trace import outline
from lt_jax.layout.closing import Closing, closing
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens

CURVE_POINTS = 240


@dataclasses.dataclass(frozen=True)
class Contender:
    """A method that is ready to run.

    Attributes:
        name: of the method in tables.
        model: where its weights came from, for the record.
        scheme, special: those of its engine.
        complete: a function that takes prompts and yields their completions in any order; the `id` of a completion is
            the number of its prompt.
        encode: a function from a problem to its prompt: ids, or a `layout.Row` where the prompt is compressed.
        decode: a function from ids to their text, without special tokens.
        pieces: a function from ids to the text of each of them, special tokens included.
        tokenize: a function from text to ids, for a scheme with an instruction.
        warm: a function that is called with the prompts to load and compile, before the time of decoding is taken.
        cache_bytes: a function from a number of keys to the bytes of cache that a row with so many keys uses, and from
            None to all bytes that a row takes. If this is None, they are not known.
    """

    name: str
    model: str
    scheme: Scheme
    special: SpecialTokens
    complete: Callable[[Sequence], Iterable[Completion]]
    encode: Callable[[Problem], Sequence[int] | Row]
    decode: Callable[[Sequence[int]], str]
    pieces: Callable[[Sequence[int]], list[str]]
    tokenize: Callable | None = None
    warm: Callable[[Sequence], None] | None = None
    cache_bytes: Callable[[float | None], int] | None = None


def evaluate(contenders: Sequence[Contender], suite: Suite, *, samples: int = 4, note: str = "",
             progress: ProgressLine | None = None,
             after: Callable[[Results], None] = lambda _: None) -> Results:  # fmt: skip
    """Runs every contender on every problem of the suite.

    Args:
        contenders: what is compared; the first is the baseline.
        samples: how many completions of each contender are kept in full for pictures, see `kept`.
        note: a line for the reader of the results.
        progress: shows how far the evaluation is; None shows nothing.
        after: a function that is called after each contender with the results so far, which say what is missing.

    Raises:
        UserError: answers in LaTeX cannot be compared on this machine. It is raised before anything is decoded.
    """
    answers.check()
    progress = ProgressLine(None) if progress is None else progress
    found = Results(suite.name, [], note, [each.name for each in contenders])
    for each in contenders:
        with progress.contender(each.name, len(suite)):
            method = _run(each, suite, samples, progress)
        found = dataclasses.replace(found, methods=[*found.methods, method], missing=found.missing[1:])
        after(found)
    return found


def _run(contender: Contender, suite: Suite, samples: int, progress: ProgressLine) -> MethodResult:
    prompts = [contender.encode(problem) for problem in suite.problems]
    rule = closing(contender.scheme, contender.special, contender.tokenize)
    compiling = 0.0
    if contender.warm is not None:
        began = time.perf_counter()
        contender.warm(prompts)
        compiling = time.perf_counter() - began
    completed: dict[int, Completion] = {}
    progress.answered(0)
    before, started = clock.compiled(), time.perf_counter()
    for done in contender.complete(prompts):
        if done.id in completed:
            raise ValueError(f"{contender.name}: completion {done.id} came twice")
        completed[done.id] = done
        progress.answered(len(completed))
    seconds = time.perf_counter() - started  # answers are judged off the clock: an engine works while it is asked
    late = clock.compiled() - before  # for a capacity, or a piece of prompt, that was not met while warming up
    seconds, compiling = seconds - late, compiling + late
    if len(completed) != len(prompts):
        raise ValueError(f"{contender.name}: {len(prompts) - len(completed)} prompts were not completed")
    order = [completed[i] for i in range(len(prompts))]
    records = [_record(contender, problem, done) for problem, done in zip(suite.problems, order, strict=True)]
    used, allocated = 0, 0
    if contender.cache_bytes is not None:
        used = contender.cache_bytes(max(record.counts.peak for record in records))
        allocated = contender.cache_bytes(None)
    return MethodResult(
        contender.name, contender.model, dataclasses.asdict(contender.scheme.explicit),
        records, curve([done.visible[~done.forced] for done in order]),
        [_sample(contender, done, rule) for done in kept(order, samples)], seconds, allocated, used, compiling,
    )  # fmt: skip


def kept(order: Sequence[Completion], samples: int) -> list[Completion]:
    """The completions that are kept in full: the first ones, so that the methods show the same problems.

    If no key dies in any of those, the last of them is replaced by the first one in which a key does, if possible one
    of a length that can be drawn, so that the method can be seen at work.
    """
    first = list(order[:samples])
    showing = [done for done in order if (_deaths(done) < len(done.row)).any()]
    if first and showing and not any(done is other for done in first for other in showing):
        first[-1] = min(showing, key=lambda done: not drawable(len(done.row)))
    return first


def _deaths(done: Completion) -> np.ndarray:
    """The death of each token, [P + N]; under an eviction that of the first head of the first layer."""
    return done.death if done.evicted is None else np.minimum(done.death, done.evicted[0, 0])


def _record(contender: Contender, problem: Problem, done: Completion) -> Outcome:
    text = contender.decode(done.tokens[done.written].tolist())
    given, correct = answers.judge(problem, text)
    return Outcome(done.id, problem.family, problem.question, problem.answer, text, given, bool(correct), done.finish,
                  count(done), judged=correct is not None)  # fmt: skip


def _sample(contender: Contender, done: Completion, rule: Closing | None) -> Sample:
    role, thought = outline(done, rule)
    death = _deaths(done)
    index = np.arange(done.prompt_length)
    alive = (index <= index[:, None]) & (index[:, None] < death[: done.prompt_length])
    # A prompt that the scheme compresses is read whole; one over a budget is cut down while it is read.
    seen = index + 1 if done.evicted is None else alive.sum(1)
    return Sample(
        problem=done.id,
        pieces=contender.pieces(done.row.tolist()),
        role=role.tolist(),
        thought=thought.tolist(),
        death=death.tolist(),
        since=done.since.tolist(),
        gist=done.block.tolist(),
        forced=[True] * done.prompt_length + done.forced.tolist(),
        visible=[*seen.tolist(), *np.round(done.visible, 2).tolist()],
        gist_rule=done.gist_rule,
    )


def curve(visible: Sequence[np.ndarray]) -> Curve:
    """The mean and spread of the visible keys over the number of sampled tokens.

    Args:
        visible: for each problem, how many keys each sampled token attended to, [n] int.
    """
    longest = max((len(each) for each in visible), default=0)
    at = np.unique(np.linspace(1, longest, min(longest, CURVE_POINTS)).round().astype(int)) if longest else []
    columns = {name: [] for name in ("mean", "low", "high", "alive")}
    for t in at:
        here = np.array([each[t - 1] for each in visible if len(each) >= t])
        columns["mean"].append(round(float(here.mean()), 2))
        columns["low"].append(float(np.percentile(here, 10)))
        columns["high"].append(float(np.percentile(here, 90)))
        columns["alive"].append(len(here))
    return Curve([int(t) for t in at], **columns)
