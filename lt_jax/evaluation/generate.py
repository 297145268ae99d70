"""Answering prompts of a person: from the command line or a file, streamed with gists marked."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from lt_jax.data.readers import JSONL, read_lines, read_records
from lt_jax.decode import Completion, DecodeConfig, Request, Sampling, TextStreamer
from lt_jax.errors import UserError
from lt_jax.evaluation import metrics, notices
from lt_jax.evaluation.folder import Writer
from lt_jax.evaluation.notices import to_stderr

GREEDY = Sampling()
SPARE = 64  # keys beyond prompt and answer, for the last gists


def read_prompts(path: str | Path) -> list[tuple[str, str]]:
    """(question, system) of every prompt of a file: .jsonl with `question` or `prompt` and perhaps `system`, or .txt,
    one prompt a line.

    Raises:
        UserError: with file and line: a broken line, or one without a prompt; a file without any.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file; give a .txt or .jsonl file of prompts")
    if path.name.endswith(JSONL):
        found = [_prompt(record, where) for where, record in read_records(path)]
    elif path.suffix == ".txt":
        found = [(line, "") for _, line in read_lines(path) if line.strip()]
    else:
        raise UserError(f"{path}: unknown kind of file; give a .txt or .jsonl file of prompts")
    if not found:
        raise UserError(f"{path}: there is no prompt in it")
    return found


def _prompt(record: dict, where: str) -> tuple[str, str]:
    question = record.get("question", record.get("prompt"))
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: no text in 'question' or 'prompt' (fields here: {', '.join(record) or 'none'})")
    system = record.get("system") or ""
    if not isinstance(system, str):
        raise UserError(f"{where}: 'system' must be text, not {type(system).__name__}")
    return question, system


def generate(
    writer: Writer,
    prompts: Sequence[tuple[str, str]],
    *,
    max_new: int = 1024,
    rows: int = 8,
    capacity: int = 0,
    sampling: Sampling = GREEDY,
    max_thought: int | None = None,
    seed: int = 0,
    write: Callable[[str], None] | None = None,
    warn: Callable[[str], None] = to_stderr,
) -> list[Completion]:
    """Answers every prompt.

    Args:
        prompts: (question, system).
        max_new: most tokens sampled for one.
        rows: most prompts answered side by side.
        capacity: most keys a row may hold; 0 is enough for the longest prompt and an answer that is never compressed.
        seed: prompt i is decoded with seed + i.
        write: takes text as it comes, gists marked; None streams nothing.
        warn: takes lines about answers that cannot be what was asked for, see `notices`.
    """
    asked = [writer.ask(question, system) for question, system in prompts]
    room = capacity or max(len(row) for row in asked) + max_new + SPARE
    config = DecodeConfig(rows=min(rows, len(asked)), capacity=room, sampling=sampling, max_thought=max_thought)
    if line := notices.beyond([len(row) for row in asked], max_new, writer.model.max_positions):
        warn(line)
    engine = writer.engine(config)
    streamer = None if write is None else TextStreamer(writer.text, write, prefix=len(asked) > 1)
    done = []
    for each in engine.run((Request(row, max_new, seed + i, i) for i, row in enumerate(asked)), streamer):
        if streamer is not None:
            streamer.close(each.id)
            write(f"\n{f'[{each.id}] ' if len(asked) > 1 else ''}{_ending(each)}\n")
        done.append(each)
    lines = [notices.broken(each.finish for each in done)]
    if writer.scheme.method != "vanilla":
        lines.append(notices.uncompressed([each.compressions for each in done]))
    for line in filter(None, lines):
        warn(line)
    return sorted(done, key=lambda each: each.id)


def _ending(done: Completion) -> str:
    sampled = int((~done.forced).sum())
    peak = metrics.count(done).peak
    reasons = {
        "length": ", cut off at max_new", "capacity": ", cut off: the cache is full",
        "positions": ", cut off: the model was made for no more positions",
        "nan": ", cut off: the model's logits are NaN or infinite",
    }  # fmt: skip
    return (
        f"-- {done.prompt_length} tokens of prompt and {sampled} of answer, {done.compressions} thoughts compressed, "
        f"peak {peak} of {done.prompt_length + sampled} keys, {done.seconds:.1f} s{reasons.get(done.finish, '')}"
    )


def as_jsonl(writer: Writer, prompts: Sequence[tuple[str, str]], done: Sequence[Completion]) -> str:
    """One JSON object per completion."""
    lines = []
    for (question, _), each in zip(prompts, done, strict=True):
        cost = metrics.count(each)
        record = {
            "question": question, "text": writer.text(each.tokens[each.written]), "finish": each.finish,
            "prompt_tokens": cost.prompt, "generated": cost.generated, "compressions": cost.compressions,
            "peak": cost.peak, "dependency": cost.dependency,
        }  # fmt: skip
        lines.append(json.dumps(record, ensure_ascii=False))
    return "\n".join(lines) + "\n"
