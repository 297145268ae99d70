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
    """One problem answered by one method.

    Attributes:
        problem: the number of the problem in the suite.
        family: the kind of the problem.
        question, answer: of the problem; the answer is the right one.
        text: what the method wrote.
        given: the answer that was found in `text`. None means that none was found, which counts as wrong.
        correct: whether `given` is right.
        finish: why the text ended, see `decode.Completion`.
        counts: what it cost.
        judged: False where comparing the answers did not come to an end, so that it is not known whether `given` is
            right; `correct` is then False.
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
    """Every token of one answer with its lifetime, the prompt included. All lists have one length N.

    Attributes:
        problem: the number of the problem in the suite.
        pieces: the text of each token.
        role: the `layout.Role` of each token, as a number.
        death: the index of the first token that can no longer see it; N + 1 or more if it is never dropped. Under a KV
            budget, where heads evict for themselves, it is that of the first head of the first layer.
        since: the oldest index that the token may attend to.
        gist: the id of the gist block that the token belongs to, -1 outside of one.
        thought: the number of the thought that the token belongs to, -1 outside of one.
        forced: whether the token was fed and not sampled; also True for the prompt.
        visible: how many keys the token attended to. Under an eviction this is a mean, see `Completion`; for a token of
            the prompt it is its index + 1.
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
    """Whether a row of this many tokens is long enough to show something in a picture, and short enough to be read."""
    return 40 <= tokens <= 600


@dataclasses.dataclass(frozen=True)
class Curve:
    """Visible keys after a number of sampled tokens, over the problems that got that far. All lists have one length.

    Attributes:
        at: the number of sampled tokens, counted from 1.
        mean, low, high: the mean, 10th and 90th percentile of the visible keys.
        alive: how many problems got that far.
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
        name: of the method in tables.
        model: where its weights came from.
        scheme: its `layout.Scheme` as a dict.
        records: the outcome of each problem, in the order of the suite.
        curve: visible keys over time.
        samples: a few answers in full.
        seconds: wall time of decoding all problems, without compiling and without the judging of answers.
        cache_bytes: bytes that the cache of one row takes, from the arrays themselves; 0 if it is not known.
        cache_used: how many of them the row with the most keys used.
        compile_seconds: wall time of loading and compiling.
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
    """An evaluation: several methods on the same problems of one suite. The first method is the baseline.

    `missing` names the methods that had not run yet when this was written, which happens after each of them.
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
    """Writes the JSON file, completely or not at all."""
    data = {"version": VERSION, **dataclasses.asdict(results)}
    write_whole(path, json.dumps(data, ensure_ascii=False, allow_nan=False))


def load(path: str | Path) -> Results:
    """Reads a file that `save` wrote. Raises UserError if it is missing, broken or of another version."""
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


