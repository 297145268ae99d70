r"""Math problems from a file, a checkpoint decoded with LightThinker and, as the baseline, with nothing ever dropped.

Why: does a model that was taught to compress still solve what it solved, and what does it save? Accuracy with its 95 %
interval, peak, dependency, time; the same problems for both.

    python launch/evaluate.py --config=configs/eval_math.py --config.model.path=DIR --config.suite.path=gsm8k_test.jsonl

DIR is a folder that launch/train.py or launch/convert.py wrote. For the paper's comparison give the baseline a model of
its own, trained on the same traces without compression: --config.contenders.vanilla.path=DIR2. The file has a problem a
line: {"question": ..., "answer": ...}, where the answer may stand after "####" or in \boxed{}. Several files or folders
are written with commas. A checkpoint that was not trained to compress can be evaluated in a KV budget, beside itself
without one: --kv=rkv,snapkv.

Hardware: anything; a 0.5B model on two CPU cores in float32 answers a GSM8K problem in about half a minute.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = ConfigDict({"path": "", "dtype": "float32"})  # bfloat16 on accelerators
    config.contenders = ConfigDict({
        "vanilla": contender("vanilla"),
        "lightthinker": contender("lightthinker", max_thought=512),
    })  # fmt: skip
    config.baseline = "vanilla"  # the contender that the others are compared with
    config.suite = ConfigDict({
        "path": FieldReference("", field_type=object),  # or several, see configs/defaults.py
        "format": "",  # of the records; seen from their fields if empty
        "tfds": "",  # or a TFDS name such as "gsm8k", prepared in data_dir
        "split": "test",
        "data_dir": "",
        "embedded": 0,  # or this many embedded problems
        "steps": (6, 12),
        "families": (),
        "name": "",
        "limit": 0,
        "seed": 0,
    })  # fmt: skip
    config.decode = ConfigDict({
        "rows": 8,
        "tensor": 1,  # devices that share a row's heads; rows are spread over the others
        "capacity": 6144,  # keys of a row: vanilla needs prompt and answer
        "block_steps": 32,
        "max_new": 4096,
        "temperature": 0.0,
        "top_k": 0,
        "top_p": 1.0,
        "seed": 0,
    })  # fmt: skip
    config.samples = 4  # kept token by token for the report
    config.note = ""
    config.out = "runs/eval_math"
    config.compile_cache = "~/.cache/lt_jax/jax"
    return config


def contender(method: str, path: str = "", max_thought: int = 0) -> ConfigDict:
    """A method; an empty path is model.path, and an empty chat, system and prefix are the model's own."""
    return ConfigDict({
        "path": path, "method": method, "chat": "", "system": "",
        "prefix": "Return your final response within \\boxed{}. ", "max_thought": max_thought,
    })  # fmt: skip
