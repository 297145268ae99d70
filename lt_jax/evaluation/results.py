"""What an evaluation found, as plain data: saved as one JSON file, read back by the table and the report."""

from __future__ import annotations

import dataclasses
import json
import os
import tempfile
from pathlib import Path

from lt_jax.decode.counts import Cost
from lt_jax.errors import UserError

VERSION = 1


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One problem solved by one method: what was written, what it was taken to answer, and what it cost.

    Attributes:
        given: the answer found in `text`; None: none was found, which counts as wrong.
        correct: whether it is right.
        judged: False where the comparison found no end, so that nobody knows; `correct` is then False.
    """

    problem: int
    family: str
    question: str
    answer: str
    text: str
    given: str | None
    correct: bool
    finish: str
    counts: Cost
    judged: bool = True


@dataclasses.dataclass(frozen=True)
class Sample:
    """Every token of one completion with its lifetime, prompt included; lists of one length N.

    Attributes:
        problem: number of the problem in the suite.
        pieces: text of each token.
        role: `layout.Role` numbers.
        death: first index that no longer sees the token; N + 1 or more: it lives on. Under a KV budget, where heads
            evict for themselves, that of the first head of the first layer.
        since: oldest index the token looks back to.
        gist: gist block ids, -1 outside.
        thought: thought numbers, -1 outside.
        forced: fed, not sampled; also True for the prompt.
        visible: keys the token's query saw (a mean under an eviction, see `Completion`); the prompt's are its own
            index + 1.
        gist_rule: see `lifetimes.Lifetimes`.
    """

    problem: int
    pieces: list[str]
    role: list[int]
    death: list[int]
    since: list[int]
    gist: list[int]
    thought: list[int]
    forced: list[bool]
    visible: list[float]
    gist_rule: str = "causal"

    @property
    def dies(self) -> bool:
        """Whether any key dies before the row ends."""
        return min(self.death, default=0) < len(self.death)


def drawable(tokens: int) -> bool:
    """Whether a picture of who sees whom in a row of so many tokens shows something and can be read."""
    return 40 <= tokens <= 600


@dataclasses.dataclass(frozen=True)
class Curve:
    """Visible keys after a number of sampled tokens, over the problems that got that far; lists of one length.

    Attributes:
        at: sampled tokens, counted from 1.
        mean, low, high: mean, 10th and 90th percentile of the visible keys.
        alive: problems still running.
    """

    at: list[int]
    mean: list[float]
    low: list[float]
    high: list[float]
    alive: list[int]


@dataclasses.dataclass(frozen=True)
class MethodResult:
    """One method on the suite.

    Attributes:
        name: what tables call it.
        model: where its weights came from.
        scheme: `layout.Scheme` as a dict.
        records: one per problem, in the order of the suite.
        curve: visible keys over time.
        samples: the first few completions in full.
        seconds: wall time of decoding all problems, after `compile_seconds`; the judging of answers is not included.
        cache_bytes: allocated for the cache of one row, from the arrays themselves; 0 where nobody knew.
        cache_used: what of it the row with the most keys took.
        compile_seconds: wall time of loading and compiling before that.
    """

    name: str
    model: str
    scheme: dict
    records: list[Outcome]
    curve: Curve
    samples: list[Sample]
    seconds: float
    cache_bytes: int = 0
    cache_used: int = 0
    compile_seconds: float = 0.0


@dataclasses.dataclass(frozen=True)
class Results:
    """An evaluation: the methods, all on the same problems of one suite. The first method is the baseline.

    `missing` names those that had not run when this was written: it is written after each.
    """

    suite: str
    methods: list[MethodResult]
    note: str = ""
    missing: list[str] = dataclasses.field(default_factory=list)

    def __post_init__(self):
        asked = [[record.problem for record in method.records] for method in self.methods]
        if any(problems != asked[0] for problems in asked):
            raise ValueError("the methods of one Results must have solved the same problems in the same order")


def save(results: Results, path: str | Path) -> None:
    """Writes the JSON file, whole or not at all."""
    data = {"version": VERSION, **dataclasses.asdict(results)}
    write_whole(path, json.dumps(data, ensure_ascii=False, allow_nan=False))


def load(path: str | Path) -> Results:
    """Reads what `save` wrote. Raises UserError if the file is missing, broken or of another version."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; give a results.json that evaluate wrote") from None
    except ValueError as error:
        raise UserError(f"{path}: broken JSON: {error}") from None
    if not isinstance(data, dict) or data.get("version") != VERSION:
        raise UserError(f"{path}: not an evaluation of this version; evaluate again")
    methods = []
    for method in data["methods"]:
        method["records"] = [Outcome(**{**record, "counts": Cost(**record["counts"])}) for record in method["records"]]
        method["curve"] = Curve(**method["curve"])
        method["samples"] = [Sample(**sample) for sample in method["samples"]]
        methods.append(MethodResult(**method))
    return Results(data["suite"], methods, data["note"], data.get("missing", []))


def write_whole(path: str | Path, text: str) -> None:
    """Writes a text file under a temporary name and renames it. A full disk is a UserError and leaves the old file."""
    path = Path(path)
    name = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
        with open(handle, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o644)
        os.replace(name, path)
    except OSError as error:
        if name is not None and os.path.exists(name):
            os.unlink(name)
        raise UserError(f"{path}: cannot be written: {error.strerror}; nothing was left") from None


