r"""Answers prompts with a trained model, streaming to the terminal; where a thought was put away, its gists are marked.

    python launch/generate.py --model=DIR --prompt="What is 17 * 24?"
    python launch/generate.py --model=DIR --method=vanilla --prompts=questions.jsonl --out=answers.jsonl
    python launch/generate.py --model=DIR --kv=rkv --budget=512 --buffer=128 --prompt="..."    (inside a KV budget)
    python launch/generate.py --model=DIR                (a conversation: /reset, /quit, and Ctrl-C stops an answer)

Where the input of a conversation is a file or a pipe, each of its lines is a turn.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from launch.main import METHODS, POLICIES, compile_cache, run
from lt_jax.errors import UserError

MODEL = flags.DEFINE_string("model", None, "checkpoint folder (Hugging Face layout)")
METHOD = flags.DEFINE_enum("method", None, METHODS, "how to decode; the method the model was trained for if not given")
PROMPT = flags.DEFINE_string("prompt", None, "one question; without it and --prompts there is a conversation")
PROMPTS = flags.DEFINE_string("prompts", None, "file of questions: .txt (one a line) or .jsonl (question, system)")
OUT = flags.DEFINE_string("out", None, "also write the answers to this .jsonl file")
SYSTEM = flags.DEFINE_string("system", None, "system message; the model's own if not given")
CHAT = flags.DEFINE_enum("chat", None, ("own", "qwen", "llama", "plain"), "chat template; the model's own if not given")
MAX_NEW = flags.DEFINE_integer("max_new", 1024, "most tokens of an answer", lower_bound=1)
N = flags.DEFINE_integer("n", 1, "answers to each question, at a --temperature above 0", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 8, "most answers written side by side", lower_bound=1)
KV = flags.DEFINE_enum("kv", None, POLICIES, "KV policy: chooses which --budget keys stay whenever a row of the cache "
                       "is full, at budget + buffer keys; no key is evicted if not given")  # fmt: skip
BUDGET = flags.DEFINE_integer("budget", None, "keys that each layer and kv head keeps under --kv; 512 if not given")
BUFFER = flags.DEFINE_integer("buffer", None, "tokens between two evictions under --kv; 128 if not given")
CAPACITY = flags.DEFINE_integer("capacity", 0, "most keys of a row, where its answer is cut off, without --kv; 0: as "
                                "many as the model has positions", lower_bound=0)  # fmt: skip
MAX_THOUGHT = flags.DEFINE_integer("max_thought", 0, "most tokens of a thought before it is compressed by force; 0: no "
                                   "limit", lower_bound=0)  # fmt: skip
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "of sampling; 0 takes the most probable token each time")
TOP_K = flags.DEFINE_integer("top_k", 0, "sample from the k most probable tokens; 0: from all")
TOP_P = flags.DEFINE_float("top_p", 1.0, "sample from the most probable tokens that make up this share; 1: from all")
SEED = flags.DEFINE_integer("seed", 0, "of the random numbers; prompt i has seed + i")
DTYPE = flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "of weights and computation; float32 on a CPU and "
                          "bfloat16 elsewhere if not given")  # fmt: skip
COMPILE_CACHE = flags.DEFINE_string("compile_cache", "~/.cache/lt_jax/jax", "folder of compiled programs; empty: none")


def main(argv) -> None:
    if MODEL.value is None:
        raise UserError("--model=DIR is needed: a checkpoint folder")
    if PROMPT.value is not None and PROMPTS.value is not None:
        raise UserError("--prompt and --prompts are both given; give one, or neither for a conversation")
    if PROMPT.value is not None and not PROMPT.value.strip():
        raise UserError("--prompt is empty; give a question, or no --prompt for a conversation")
    if PROMPT.value is None and PROMPTS.value is None:
        if OUT.value is not None:
            raise UserError("--out needs --prompt or --prompts; a conversation is not written to a file")
        if N.value > 1:
            raise UserError("--n needs --prompt or --prompts; a conversation has one answer to each turn")
    if OUT.value is not None and Path(OUT.value).is_dir():
        raise UserError(f"--out={OUT.value}: that is a folder; give a file to write, such as answers.jsonl")

    from lt_jax.ask import AskConfig
    from lt_jax.evaluation.results import write_whole
    from lt_jax.model import load
    from lt_jax.serving import chat, prompts

    compile_cache(COMPILE_CACHE.value)
    how = AskConfig(
        max_new=MAX_NEW.value, n=N.value, temperature=TEMPERATURE.value, top_k=TOP_K.value, top_p=TOP_P.value,
        seed=SEED.value, kv=KV.value, budget=BUDGET.value, buffer=BUFFER.value, rows=ROWS.value,
        capacity=CAPACITY.value, max_thought=MAX_THOUGHT.value or None,
    )  # fmt: skip
    show = lambda text: print(text, end="", flush=True)
    asked = [(PROMPT.value, "")] if PROMPTS.value is None else prompts.read_prompts(PROMPTS.value)
    model = load(MODEL.value, METHOD.value, dtype=DTYPE.value, chat=CHAT.value, system=SYSTEM.value)
    if PROMPT.value is None and PROMPTS.value is None:
        chat.chat(model, how, chat.from_terminal, show)
        return
    answers = prompts.generate(model, asked, how, write=show)
    if OUT.value is not None:
        write_whole(OUT.value, prompts.as_jsonl(asked, answers))


if __name__ == "__main__":
    run(main)
