"""Running methods on a suite."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import numpy as np

from lt_jax.data import answers
from lt_jax.data.problem import Problem
from lt_jax.evaluation import metrics
from lt_jax.evaluation.results import Curve, MethodResult, Record, Results, Sample
from lt_jax.evaluation.suites import Suite
from lt_jax.evaluation.trace import retrace
from lt_jax.layout.closing import Closing, closing
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
        complete: runs prompts (lists of ids) and yields `decode.Completion`s in any order; `id` is the prompt's number.
        encode: a problem as prompt ids.
        decode: ids as text, special tokens left out.
        pieces: ids as one text per id, special tokens written out.
        tokenize: text -> ids, for a scheme with an instruction.
    """

    name: str
    model: str
    scheme: Scheme
    special: SpecialTokens
    complete: Callable
    encode: Callable[[Problem], Sequence[int]]
    decode: Callable[[Sequence[int]], str]
    pieces: Callable[[Sequence[int]], list[str]]
    tokenize: Callable | None = None


def evaluate(contenders: Sequence[Contender], suite: Suite, *, samples: int = 4, note: str = "",
             progress: Callable[[str, int, int, int], None] = lambda *_: None) -> Results:  # fmt: skip
    """Every contender on every problem of the suite.

    Args:
        contenders: the first is the baseline others are compared with.
        samples: completions per method kept in full, for pictures.
        note: a line for the reader of the results.
        progress: called as (name, solved so far, right so far, total) after each completion.
    """
    return Results(suite.name, [_run(each, suite, samples, progress) for each in contenders], note)


def _run(contender: Contender, suite: Suite, samples: int, progress) -> MethodResult:
    prompts = [list(contender.encode(problem)) for problem in suite.problems]
    rule = closing(contender.scheme, contender.special, contender.tokenize)
    records, kept, seen, right, judging = {}, {}, {}, 0, 0.0
    started = time.perf_counter()
    for done in contender.complete(prompts):
        if done.id in records:
            raise ValueError(f"{contender.name}: completion {done.id} came twice")
        received = time.perf_counter()
        tokens, forced = np.asarray(done.tokens), np.asarray(done.forced, bool)
        record = _record(contender, done.id, suite.problems[done.id], tokens[~forced], done)
        records[done.id], seen[done.id] = record, np.asarray(done.visible)[~forced]
        right += record.correct
        if done.id < samples:
            kept[done.id] = _sample(contender, done, prompts[done.id], rule)
        judging += time.perf_counter() - received
        progress(contender.name, len(records), right, len(prompts))
    seconds = time.perf_counter() - started - judging
    if len(records) != len(prompts):
        raise ValueError(f"{contender.name}: {len(prompts) - len(records)} prompts were not completed")
    order = range(len(prompts))
    return MethodResult(
        contender.name, contender.model, dataclasses.asdict(contender.scheme), [records[i] for i in order],
        curve([seen[i] for i in order]), [kept[i] for i in sorted(kept)], seconds,
    )  # fmt: skip


def _record(contender: Contender, number: int, problem: Problem, sampled, done) -> Record:
    text = contender.decode(sampled.tolist())
    given, correct = answers.judge(problem, text)
    return Record(number, problem.family, problem.question, problem.answer, text, given, correct, done.finish,
                  metrics.count(done))  # fmt: skip


def _sample(contender: Contender, done, prompt: list[int], rule: Closing | None) -> Sample:
    tokens, forced = np.asarray(done.tokens).tolist(), np.asarray(done.forced, bool).tolist()
    row = retrace(prompt, tokens, forced, rule, contender.special.eos)
    return Sample(
        problem=done.id,
        pieces=contender.pieces([*prompt, *tokens]),
        forced=[True] * len(prompt) + forced,
        visible=[*range(1, len(prompt) + 1), *np.asarray(done.visible).tolist()],
        gist_rule=contender.scheme.gist_rule,
        **{name: getattr(row, name).tolist() for name in ("role", "death", "since", "gist", "thought")},
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
