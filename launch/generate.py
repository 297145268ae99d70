r"""Answers prompts, or talks, with a checkpoint. The answer appears as it is written, with a mark at every compression.

    python launch/generate.py --model=DIR --prompt="What is 17 * 24?"
    python launch/generate.py --model=DIR --method=vanilla --prompts=questions.jsonl --out=answers.jsonl
    python launch/generate.py --model=DIR --kv=rkv --budget=512 --buffer=128 --prompt="..."    (inside a KV budget)
    python launch/generate.py --model=DIR                                                      (a conversation)

In a conversation, /reset begins a new one, /quit ends it, and Ctrl-C stops the answer that is being written. Where the
input of a conversation is a file or a pipe, each of its lines is a turn.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from launch.main import METHODS, POLICIES, compile_cache, run
from lt_jax.errors import UserError

MODEL = flags.DEFINE_string("model", None, "the checkpoint: a Hugging Face folder")
METHOD = flags.DEFINE_enum("method", None, METHODS, "how to decode; as the model was trained if not given")
PROMPT = flags.DEFINE_string("prompt", None, "a question; without it and --prompts there is a conversation")
PROMPTS = flags.DEFINE_string("prompts", None, "a file of questions: .txt (one on a line) or .jsonl (question, system)")
OUT = flags.DEFINE_string("out", None, "a .jsonl file that the answers are written to")
SYSTEM = flags.DEFINE_string("system", None, "the system message")
CHAT = flags.DEFINE_enum(
    "chat", None, ("own", "qwen", "llama", "plain"), "the chat template; the model's own if not given"
)
MAX_NEW = flags.DEFINE_integer("max_new", 1024, "the most tokens of an answer", lower_bound=1)
N = flags.DEFINE_integer("n", 1, "how many answers each question gets, at a --temperature above 0", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 8, "how many questions are answered side by side", lower_bound=1)
KV = flags.DEFINE_enum("kv", None, POLICIES, "KV policy: chooses which --budget keys stay whenever a row of the cache "
                       "is full, at budget + buffer keys; no key is evicted if not given")  # fmt: skip
BUDGET = flags.DEFINE_integer("budget", None, "with --kv: how many keys each layer and KV head keeps; 512 if not given")
BUFFER = flags.DEFINE_integer("buffer", None, "with --kv: how many tokens pass between two evictions; 128 if not given")
CAPACITY = flags.DEFINE_integer(
    "capacity", 0, "the most keys that a row may hold; 0: as many as the model has positions", lower_bound=0
)
MAX_THOUGHT = flags.DEFINE_integer(
    "max_thought", 0, "compress a thought by force when it has this many tokens; 0: never", lower_bound=0
)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "temperature of sampling; 0 always takes the most probable token")
TOP_K = flags.DEFINE_integer("top_k", 0, "sample from this many of the most probable tokens; 0: from all")
TOP_P = flags.DEFINE_float("top_p", 1.0, "sample from the most probable tokens that make up this share")
SEED = flags.DEFINE_integer("seed", 0, "seed of sampling; prompt number i has seed + i")
TENSOR = flags.DEFINE_integer("tensor", 1, "devices that share an answer, for models too large for one", lower_bound=1)
DTYPE = flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "the type of weights and computation; float32 on a "
                          "CPU and bfloat16 elsewhere if not given")  # fmt: skip
COMPILE_CACHE = flags.DEFINE_string(
    "compile_cache", "~/.cache/lt_jax/jax", "the folder that keeps compiled programs; empty: keep none"
)


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
    own = dict(dtype=DTYPE.value, chat=CHAT.value, system=SYSTEM.value, tensor=TENSOR.value)
    model = load(MODEL.value, METHOD.value, **own)
    if PROMPT.value is None and PROMPTS.value is None:
        chat.chat(model, how, chat.from_terminal, show)
        return
    answers = prompts.generate(model, asked, how, write=show)
    if OUT.value is not None:
        write_whole(OUT.value, prompts.as_jsonl(asked, answers))


if __name__ == "__main__":
    run(main)
