"""Rewards of responses, found by worker processes while the main thread does other things.

    with RewardPool(RewardConfig((("math", 1.0), ("format", 0.1)))) as pool:
        pool.check(problems)                        # before anything is decoded
        wait = pool.submit(problems, texts)         # returns at once
        wait().rewards                              # [N] float32

The paper's release gives 1 for a right `\\boxed{}` and 0 for anything else, in the trainer's own process. Here a
response is judged as an evaluation judges it, and what is rewarded is a choice of kinds with weights. A kind is `math`,
`choice`, `format` or `reasoning_gym` (see `reward_worker`), or a function of the user's, "module:function", which is
called as function(problem, text) with a `data.problem.Problem` and gives a finite number; one that is named in `listed`
is called as function(problems, texts) and gives as many numbers.

Functions run in processes that do not import JAX (`workers`); only JSON goes over. One that hangs is killed, and one
that raises, ends its process or gives no finite number is passed over: its part of the response's reward is 0 and is
counted, and the first of each kind is told. No other response and no other part is lost.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from lt_jax.data.problem import Problem
from lt_jax.errors import UserError
from lt_jax.notices import to_stderr
from lt_jax.rl.reward_worker import KINDS
from lt_jax.rl.workers import Call, Workers

MOST_WORKERS = 8
_NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_PROBES = ("1", "[1]", "x + 1")  # answers that make a scorer show what it does with a wrong one


@dataclasses.dataclass(frozen=True)
class RewardConfig:
    """What is rewarded.

    Attributes:
        kinds: pairs of a kind and its weight; the reward is the weighted sum.
        listed: those of the user's functions that take lists.
        seconds: for one call of a function.
        workers: processes; 0 is one for each core, at most 8.
        chunk: responses that a worker gets at once, and a `listed` function in one call, at most.
    """

    kinds: tuple[tuple[str, float], ...] = (("math", 1.0),)
    listed: tuple[str, ...] = ()
    seconds: float = 10.0
    workers: int = 0
    chunk: int = 16

    def __post_init__(self):
        if not self.kinds or not all(isinstance(each, list | tuple) and len(each) == 2 for each in self.kinds):
            raise UserError('reward: kinds must be pairs of a kind and its weight, such as (("math", 1.0),)')
        names = [name for name, _ in self.kinds]
        for name, weight in self.kinds:
            if name not in KINDS and not (isinstance(name, str) and _NAMED.fullmatch(name)):
                raise UserError(f"reward: no kind {name!r}; there are {', '.join(KINDS)}, and module:function")
            if isinstance(weight, bool) or not isinstance(weight, int | float) or not math.isfinite(weight):
                raise UserError(f"reward {name!r}: its weight is {weight!r}; it must be a finite number")
            if names.count(name) > 1:
                raise UserError(f"reward {name!r} is named twice; give it once, with one weight")
        for name in self.listed:
            if name not in names or name in KINDS:
                raise UserError(f"reward: {name!r} in listed is no function of yours among the kinds")
        if not self.seconds > 0 or self.workers < 0 or self.chunk < 1:
            raise UserError(f"reward: seconds ({self.seconds}) must be above 0, workers ({self.workers}) 0 or more and "
                            f"chunk ({self.chunk}) 1 or more")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Rewards:
    """Rewards of N responses, in their order.

    Attributes:
        rewards: [N] float32, the weighted sum.
        parts: of each kind [N] float32, without its weight; 0 where it failed.
        timed_out: of each kind, how many responses it had no verdict on in time.
        raised: of each kind, on how many responses it raised, ended its process or gave no finite number.
        failed: [N] bool, the responses on which a kind failed.
    """

    rewards: np.ndarray
    parts: Mapping[str, np.ndarray]
    timed_out: Mapping[str, int]
    raised: Mapping[str, int]
    failed: np.ndarray


class RewardPool:
    """Rewards responses; a context manager, whose workers end with it."""

    def __init__(self, config: RewardConfig, warn: Callable[[str], None] = to_stderr):
        """Starts the workers, and imports in them what `config.kinds` needs.

        Args:
            warn: takes a line about the first failure of each kind.

        Raises:
            UserError: a module or a function is not there, or math-verify is not.
        """
        self.config, self._warn, self._told = config, warn, set()
        count = config.workers or min(os.cpu_count() or 1, MOST_WORKERS)
        self._workers = Workers(count, [kind for kind, _ in config.kinds], config.listed, config.seconds)
        self._count = count

    def __enter__(self) -> RewardPool:
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Ends the workers; rewards that were not found by then cannot be waited for."""
        self._workers.close()

    def check(self, problems: Sequence[Problem]) -> None:
        """Finds out, before anything is decoded, whether the problems can be judged.

        Raises:
            UserError: a problem has no answer (where one is needed), or is no multiple choice (`choice`); the first of
                a data set is not right by reasoning-gym's scorer with its own answer, because there is no such data set
                or it asks for metadata that is missing, or the scorer runs text as code.
        """
        kinds = [kind for kind, _ in self.config.kinds if kind in ("math", "choice", "reasoning_gym")]
        sources = {}
        for number, problem in enumerate(problems):
            where = f"problem {number} ({problem.question[:40]!r})"
            if kinds and not problem.answer.strip():
                raise UserError(f"{where} has no answer, which reward {kinds[0]!r} needs; leave it out")
            letter = re.fullmatch(r"\(?[A-Za-z]\)?\.?", problem.answer.strip())
            if "choice" in kinds and not problem.choices and not letter:
                raise UserError(f"{where} has no choices and its answer, {problem.answer[:40]!r}, is no letter; reward "
                                "'math' judges it")  # fmt: skip
            source = (problem.metadata or {}).get("source_dataset", problem.family)
            sources.setdefault(source, (where, problem))
        if "reasoning_gym" in kinds:
            for source, (where, problem) in sources.items():
                self._check_scorer(problem, f"reward 'reasoning_gym': {where} of family {source!r}")

    def _check_scorer(self, problem: Problem, where: str) -> None:
        """UserError if reasoning-gym's scorer does not find the problem's own answer right, or runs text as code."""
        texts = [f"<answer>{answer}</answer>" for answer in (problem.answer, *_PROBES)]
        calls = [("reasoning_gym", [_plain(problem)], [text]) for text in texts]
        own, *others = found = self._workers.ask(calls).result()
        if code := [each["raised"] for each in found if "code" in each]:
            raise UserError(f"{where}: {code[0]}")
        why = "" if own.get("value", 0) >= 1 else own.get("raised") or f"it gives {own.get('value', 'no verdict')}"
        missing = [each["raised"] for each in others if each.get("raised", "").startswith("KeyError")]
        if why or missing:
            which = f"its own answer is not right ({why})" if why else f"wrong answers cannot be scored ({missing[0]})"
            raise UserError(f"{where}: {which} by the data set's scorer; records need the answer and the metadata that "
                            "reasoning-gym made")  # fmt: skip

    def __call__(self, problems: Sequence[Problem], texts: Sequence[str]) -> Rewards:
        """The rewards of a response to each problem; see `submit`."""
        return self.submit(problems, texts)()

    def submit(self, problems: Sequence[Problem], texts: Sequence[str]) -> Callable[[], Rewards]:
        """Begins to reward responses.

        Args:
            problems: N, each as often as there are responses to it.
            texts: N, what the model wrote, without special tokens.

        Returns:
            a function that waits for the rewards. It raises UserError if a function gave another number of rewards than
            it was given responses, or if a worker that had to be replaced could not be.
        """
        if len(problems) != len(texts):
            raise ValueError(f"{len(problems)} problems and {len(texts)} texts")
        plain, asked = [_plain(problem) for problem in problems], []
        chunk = max(1, min(self.config.chunk, -(-len(texts) // self._count)))
        for kind, _ in self.config.kinds:
            size = chunk if kind in self.config.listed else 1
            for begin in range(0, len(texts), chunk):
                end = min(begin + chunk, len(texts))
                calls: list[Call] = [
                    (kind, plain[at : min(at + size, end)], list(texts[at : min(at + size, end)]))
                    for at in range(begin, end, size)
                ]
                asked.append((kind, self._workers.ask(calls)))

        def wait() -> Rewards:
            outcomes = {kind: [] for kind, _ in self.config.kinds}
            for kind, answer in asked:
                outcomes[kind] += answer.result()
            return self._gathered(outcomes, problems)

        return wait

    def _gathered(self, outcomes: Mapping[str, list[dict]], problems: Sequence[Problem]) -> Rewards:
        for kind, found in outcomes.items():
            for problem, outcome in zip(problems, found, strict=True):
                if "refused" in outcome:
                    raise UserError(f"reward {kind!r}: {outcome['refused']}")
                if "value" not in outcome:
                    self._tell(kind, outcome.get("raised"), problem)
        count = lambda name: {kind: sum(name in each for each in found) for kind, found in outcomes.items()}
        parts = {kind: np.array([each.get("value", 0.0) for each in found]) for kind, found in outcomes.items()}
        total = sum(weight * parts[kind] for kind, weight in self.config.kinds)
        failed = np.array([["value" not in each for each in found] for found in outcomes.values()], bool).any(0)
        as_float = {kind: part.astype(np.float32) for kind, part in parts.items()}
        return Rewards(total.astype(np.float32), as_float, count("late"), count("raised"), failed)

    def _tell(self, kind: str, why: str | None, problem: Problem) -> None:
        if (kind, why is None) in self._told:
            return
        self._told.add((kind, why is None))
        why = f"no verdict within {self.config.seconds:g} s" if why is None else why
        self._warn(
            f"warning: reward {kind!r}: {why} (question: {problem.question[:40]!r}); it gives 0 to such responses, "
            "which are counted, and this is not said again"
        )


def _plain(problem: Problem) -> dict:
    """A problem as JSON values. UserError if its metadata are none."""
    try:
        json.dumps(plain := dataclasses.asdict(problem), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise UserError(f"problem {problem.question[:40]!r}: its metadata are no JSON values ({error})") from None
    return plain
