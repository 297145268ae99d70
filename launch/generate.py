r"""Answers prompts with a trained model, streaming to the terminal; where a thought was put away, its gists are marked.

    python launch/generate.py --model=DIR --prompt="What is 17 * 24?"
    python launch/generate.py --model=DIR --method=vanilla --prompts=questions.jsonl --out=answers.jsonl
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from absl import flags

from launch.main import compile_cache, run
from lt_jax.errors import UserError

MODEL = flags.DEFINE_string("model", None, "checkpoint folder (Hugging Face layout)")
METHOD = flags.DEFINE_enum("method", None, ("lightthinker", "vanilla", "anllm", "memento"),
                           "how to decode; the method the model was trained for if not given")  # fmt: skip
PROMPT = flags.DEFINE_string("prompt", None, "one question")
PROMPTS = flags.DEFINE_string("prompts", None, "file of questions: .txt (one a line) or .jsonl (question, system)")
OUT = flags.DEFINE_string("out", None, "write the answers to this .jsonl file")
SYSTEM = flags.DEFINE_string("system", None, "system turn")
CHAT = flags.DEFINE_enum("chat", None, ("own", "qwen", "llama", "plain"), "chat template; the model's own if not given")
MAX_NEW = flags.DEFINE_integer("max_new", 1024, "most tokens of an answer", lower_bound=1)
ROWS = flags.DEFINE_integer("rows", 8, "questions answered side by side", lower_bound=1)
CAPACITY = flags.DEFINE_integer("capacity", 0, "most keys a row may hold at once; 0: room for all", lower_bound=0)
MAX_THOUGHT = flags.DEFINE_integer("max_thought", 0, "compress a thought this long by force; 0: never", lower_bound=0)
TEMPERATURE = flags.DEFINE_float("temperature", 0.0, "0 is greedy")
TOP_K = flags.DEFINE_integer("top_k", 0, "sample from the k most probable tokens; 0: all")
TOP_P = flags.DEFINE_float("top_p", 1.0, "sample from the most probable tokens that make up this share")
SEED = flags.DEFINE_integer("seed", 0, "of the random numbers")
DTYPE = flags.DEFINE_enum("dtype", "float32", ("float32", "bfloat16"), "of weights and computation")
COMPILE_CACHE = flags.DEFINE_string("compile_cache", "~/.cache/lt_jax/jax", "folder of compiled programs; empty: none")


def main(argv) -> None:
    if MODEL.value is None:
        raise UserError("--model=DIR is needed: a checkpoint folder")
    if (PROMPT.value is None) == (PROMPTS.value is None):
        raise UserError("give one of --prompt=\"...\" and --prompts=FILE")

    from lt_jax.evaluation.folder import open_folder

    from lt_jax.decode import Sampling
    from lt_jax.evaluation import generate
    from lt_jax.evaluation.results import write_whole

    compile_cache(COMPILE_CACHE.value)
    prompts = [(PROMPT.value, "")] if PROMPTS.value is None else generate.read_prompts(PROMPTS.value)
    writer = open_folder(MODEL.value, METHOD.value, dtype=DTYPE.value, chat=CHAT.value, system=SYSTEM.value)
    done = generate.generate(
        writer, prompts, max_new=MAX_NEW.value, rows=ROWS.value, capacity=CAPACITY.value,
        sampling=Sampling(TEMPERATURE.value, TOP_K.value, TOP_P.value), max_thought=MAX_THOUGHT.value or None,
        seed=SEED.value, write=lambda text: print(text, end="", flush=True),
    )  # fmt: skip
    if OUT.value is not None:
        write_whole(OUT.value, generate.as_jsonl(writer, prompts, done))


if __name__ == "__main__":
    run(main)
