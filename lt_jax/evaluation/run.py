"""Running methods on a suite."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from lt_jax.data import answers
from lt_jax.data.problem import Problem
from lt_jax.decode import Completion
from lt_jax.evaluation import metrics
from lt_jax.evaluation.results import Curve, MethodResult, Record, Results, Sample
from lt_jax.evaluation.suites import Suite
from lt_jax.evaluation.trace import outline
from lt_jax.layout.closing import Closing, closing
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.special import SpecialTokens

CURVE_POINTS = 240


@dataclasses.dataclass(frozen=True)
class Contender:
    """A method ready to run.

    Attributes:
        name: what tables call it.
        model: where its weights came from, for the record.
        scheme, special: as the engine has them.
        complete: runs prompts and yields their completions in any order; `id` is the prompt's number.
        encode: a problem as a prompt: ids, or a `layout.Row` where the prompt is compressed.
        decode: ids as text, special tokens left out.
        pieces: ids as one text per id, special tokens written out.
        tokenize: text -> ids, for a scheme with an instruction.
        warm: called with the prompts before the clock starts, to compile.
        cache_bytes: of the cache, for one row; 0 where nobody knows.
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
    cache_bytes: int = 0


def evaluate(contenders: Sequence[Contender], suite: Suite, *, samples: int = 4, note: str = "",
             progress: Callable[[str, int, int], None] = lambda *_: None) -> Results:  # fmt: skip
    """Every contender on every problem of the suite.

    Args:
        contenders: the first is the baseline others are compared with.
        samples: completions per method kept in full, for pictures.
        note: a line for the reader of the results.
        progress: called as (name, answered so far, total) after each completion.

    Raises:
        UserError: before anything is decoded, if answers in LaTeX could not be compared.
    """
    answers.check()
    return Results(suite.name, [_run(each, suite, samples, progress) for each in contenders], note)


def _run(contender: Contender, suite: Suite, samples: int, progress) -> MethodResult:
    prompts = [contender.encode(problem) for problem in suite.problems]
    rule = closing(contender.scheme, contender.special, contender.tokenize)
    if contender.warm is not None:
        contender.warm(prompts)
    completed: dict[int, Completion] = {}
    started = time.perf_counter()
    for done in contender.complete(prompts):
        if done.id in completed:
            raise ValueError(f"{contender.name}: completion {done.id} came twice")
        completed[done.id] = done
        progress(contender.name, len(completed), len(prompts))
    seconds = time.perf_counter() - started  # answers are judged off the clock: an engine works while it is asked
    if len(completed) != len(prompts):
        raise ValueError(f"{contender.name}: {len(prompts) - len(completed)} prompts were not completed")
    order = [completed[i] for i in range(len(prompts))]
    return MethodResult(
        contender.name, contender.model, dataclasses.asdict(contender.scheme),
        [_record(contender, problem, done) for problem, done in zip(suite.problems, order, strict=True)],
        curve([done.visible[~done.forced] for done in order]),
        [_sample(contender, done, rule) for done in order[:samples]], seconds, contender.cache_bytes,
    )  # fmt: skip


def _record(contender: Contender, problem: Problem, done: Completion) -> Record:
    text = contender.decode(done.tokens[~done.forced].tolist())
    given, correct = answers.judge(problem, text)
    return Record(done.id, problem.family, problem.question, problem.answer, text, given, bool(correct), done.finish,
                  metrics.count(done), judged=correct is not None)  # fmt: skip


def _sample(contender: Contender, done: Completion, rule: Closing | None) -> Sample:
    role, thought = outline(done, rule)
    death = done.death if done.evicted is None else np.minimum(done.death, done.evicted[0, 0])
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
        visible=[*seen.tolist(), *done.visible.tolist()],
        gist_rule=done.gist_rule,
    )


def curve(visible: Sequence[np.ndarray]) -> Curve:
    """Mean and spread of the visible keys over the number of sampled tokens.

    Args:
        visible: per problem, the keys each sampled token saw, [n] int.
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
