"""Answering prompts of a person: from the command line or a file, streamed with gists marked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from lt_jax import notices
from lt_jax.ask import Answer, AskConfig
from lt_jax.data.readers import JSONL, read_lines, read_records
from lt_jax.errors import UserError
from lt_jax.model import Model
from lt_jax.notices import to_stderr


def read_prompts(path: str | Path) -> list[tuple[str, str]]:
    """(question, system) of every prompt of a file: .jsonl with `question` or `prompt` and perhaps `system`, or .txt,
    one prompt a line. Both are UTF-8, see `readers.read_lines`.

    Raises:
        UserError: with file and line: another encoding, a broken line, one without a prompt; a file without any.
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
    model: Model,
    prompts: Sequence[tuple[str, str]],
    how: AskConfig,
    *,
    write: Callable[[str], None] | None = None,
    warn: Callable[[str], None] = to_stderr,
) -> list[Answer]:
    """Answers every prompt, `how.n` times; the answers stand in the order of the prompts.

    Args:
        prompts: (question, system).
        write: takes text as it comes, gists marked; where `n` is above 1, an answer when it is finished. None: nothing.
        warn: takes lines about answers that cannot be what was asked for, see `notices`.

    Raises:
        UserError: see `Model.generate`. If one of several prompts cannot be answered, `warn` gets a line instead.
    """
    asked = [conversation(question, system) for question, system in prompts]
    if line := notices.beyond(_lengths(model, asked), how.max_new, model.config.max_positions):
        warn(line)
    found: dict[tuple[object, int], Answer] = {}
    strict, streamed = len(asked) == 1, write if how.n == 1 else None
    with contextlib.closing(model.answering(asked, how, streamed, strict=strict, mark=None)) as answering:
        for each in filter(None, answering):
            number, sample = each.completion.id, each.completion.sample
            found[number, sample] = each
            name = f"{number}" if how.n == 1 else f"{number}.{sample}"
            if write is not None:
                text = "" if streamed else f"[{name}] {each.text}"
                write(f"{text}\n{f'[{name}] ' if len(asked) * how.n > 1 else ''}{ending(each)}\n")
    answers = [found[number, sample] for number in range(len(asked)) for sample in range(how.n)]
    refused = {number: each.why for (number, _), each in found.items() if each.finish == "refused"}
    lines = [notices.refused(refused, len(asked)), notices.broken(each.finish for each in answers)]
    if model.decoding_as(how.method).scheme.method != "vanilla":
        lines.append(notices.uncompressed([each.counts for each in answers]))
    for line in filter(None, lines):
        warn(line)
    return answers


def conversation(question: str, system: str) -> list[dict[str, str]]:
    """A question as chat messages."""
    opening = [{"role": "system", "content": system}] if system else []
    return [*opening, {"role": "user", "content": question}]


def _lengths(model: Model, asked) -> list[int]:
    lengths = []
    for each in asked:
        with contextlib.suppress(UserError):  # told when it is asked
            lengths.append(len(model.ask(each)))
    return lengths


def ending(answer: Answer) -> str:
    """A line about an answer: what it took, and why it ended if it was cut off."""
    if answer.finish == "refused":
        return f"-- refused: {answer.why}"
    cost, reused = answer.counts, answer.completion.reused
    thoughts = "1 thought" if cost.compressions == 1 else f"{cost.compressions} thoughts"
    reasons = {
        "length": ", cut off at max_new", "capacity": ", cut off: the cache is full",
        "positions": ", cut off: the model was made for no more positions",
        "nan": ", cut off: the model's logits are NaN or infinite", "cancelled": ", stopped",
    }  # fmt: skip
    return (
        f"-- {cost.prompt} tokens of prompt{f' ({reused} reused)' if reused else ''} and {cost.generated} of answer, "
        f"{thoughts} compressed, peak {cost.peak} of {cost.prompt + cost.generated} keys, "
        f"{cost.seconds:.1f} s{reasons.get(answer.finish, '')}"
    )


def as_jsonl(prompts: Sequence[tuple[str, str]], answers: Sequence[Answer]) -> str:
    """One JSON object per answer, prompt by prompt; there are as many answers to each."""
    lines, n = [], len(answers) // len(prompts)
    for number, each in enumerate(answers):
        question, cost = prompts[number // n][0], each.counts
        record = {
            "question": question, **({"sample": number % n} if n > 1 else {}), "text": each.text,
            "finish": each.finish, "prompt_tokens": cost.prompt, "generated": cost.generated,
            "compressions": cost.compressions, "peak": cost.peak, "dependency": cost.dependency,
            **({"why": each.why} if each.why else {}),
        }  # fmt: skip
        lines.append(json.dumps(record, ensure_ascii=False))
    return "\n".join(lines) + "\n"
