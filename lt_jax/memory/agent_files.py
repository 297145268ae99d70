"""Questions for agents from files: those of BrowseComp and xBench as they are published, and plain ones.

    .csv      problem, answer, canary     BrowseComp, and BrowseComp-ZH saved as CSV: encrypted
              prompt, answer, canary      xBench-DeepSearch: encrypted
              question, answer            plain
    .jsonl    the same fields, or any of the formats of an evaluation (`data.suites.from_files`)

Encrypted means: the bytes of the UTF-8 text, each combined by exclusive or with those of a key that is repeated, then
base64. The key is the record's `canary`: of BrowseComp its SHA-256 (openai/simple-evals, browsecomp_eval.py), of xBench
its own bytes (xbench-ai/xbench-evals). A text that does not come out as UTF-8 is refused, with its line, and so is a
record without a canary in a file that has them. The canary goes along into every trajectory, so that what is written of
such a question can be found and kept out of training data.
"""

from __future__ import annotations

import base64
import binascii
import csv
import hashlib
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path

from lt_jax.data import suites
from lt_jax.data.problem import Problem
from lt_jax.data.readers import JSONL, read_lines, read_records
from lt_jax.errors import UserError

CSV = (".csv",)
CANARY = "canary"
KEYS = {  # of an encrypted record: by the field of its question
    "problem": lambda canary: hashlib.sha256(canary.encode()).digest(),
    "question": lambda canary: hashlib.sha256(canary.encode()).digest(),
    "prompt": lambda canary: canary.encode(),
}
_ABOUT = ("topic", "problem_topic", "type", "category", "language")


def read_questions(path: str | Path, limit: int = 0, seed: int = 0) -> tuple[Problem, ...]:
    """The questions of a file.

    Args:
        limit: how many are used, drawn at random; 0 uses all.
        seed: of that draw.

    Raises:
        UserError: with file and line: a field is missing, or cannot be decrypted; the file has no question.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a {', '.join(CSV + JSONL)} file of questions")
    if path.name.lower().endswith(CSV):
        records = _read_csv(path)
    elif path.name.endswith(JSONL) and CANARY in _lower(next(read_records(path), (None, {}))[1]):
        records = read_records(path)
    else:
        return suites.from_files(path, name=path.name, limit=limit, seed=seed).problems
    problems = [_problem(_lower(record), where, place) for place, (where, record) in enumerate(records, 1)]
    if not problems:
        raise UserError(f"{path}: there is no question in it")
    return suites.limited(problems, limit, seed)


def decrypted(text: str, key: bytes) -> str:
    """An encrypted text as it was. ValueError if it is none, or the key is another."""
    hidden = base64.b64decode("".join(text.split()), validate=True)
    return bytes(one ^ other for one, other in zip(hidden, itertools.cycle(key))).decode()  # noqa: B905


def _problem(record: Mapping, where: str, place: int) -> Problem:
    field = next((name for name in KEYS if isinstance(record.get(name), str) and record[name].strip()), None)
    if field is None or not isinstance(record.get("answer"), str) or not record["answer"].strip():
        raise UserError(f"{where}: a question needs a text in {', '.join(KEYS)} and one in answer (fields here: "
                        f"{', '.join(map(str, record)) or 'none'})")  # fmt: skip
    question, answer, canary = record[field], record["answer"], record.get(CANARY)
    if CANARY in record:
        if not isinstance(canary, str) or not canary:
            raise UserError(f"{where}: has no canary, which the others are encrypted with; give it one or leave it out")
        try:
            question, answer = (decrypted(text, KEYS[field](canary)) for text in (question, answer))
        except (ValueError, binascii.Error):
            raise UserError(f"{where}: cannot be decrypted with its canary ({field!r} and 'answer' must be base64, as "
                            "they are published)") from None  # fmt: skip
    family = next((record[name] for name in _ABOUT if isinstance(record.get(name), str) and record[name]), "all")
    metadata = {"id": str(record.get("id") or place), **({CANARY: canary} if canary else {})}
    return Problem(question.strip(), answer.strip(), family, metadata=metadata)


def _read_csv(path: Path) -> Iterator[tuple[str, dict]]:
    csv.field_size_limit(1 << 24)
    rows = csv.DictReader((line + "\n" for _, line in read_lines(path)), strict=True)
    try:
        for record in rows:
            where = f"{path}:{rows.line_num}"
            if None in record or None in record.values():
                raise UserError(f"{where}: has another number of columns than the first line")
            yield where, record
    except csv.Error as error:
        raise UserError(f"{path}:{rows.line_num}: broken CSV: {error}") from None


def _lower(record: Mapping) -> dict:
    return {str(name).strip().lower(): value for name, value in record.items()}
