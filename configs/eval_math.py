r"""Math problems from a file, which a checkpoint solves with LightThinker and, as the baseline, with every key kept.

Why: does a model that was taught to compress still solve what it solved before, and how much memory does it save? Both
get the same problems; the table has accuracy with its 95 % interval, peak, dependency and time.

    python launch/evaluate.py --config=configs/eval_math.py --config.model.path=DIR --config.suite.path=gsm8k_test.jsonl

DIR is a folder that launch/train.py or launch/convert.py wrote. To compare as the paper does, give the baseline a model
of its own that was trained on the same traces without compression: --config.contenders.vanilla.path=DIR2. Each line of
the file is a problem, {"question": ..., "answer": ...}; the answer may stand after "####" or in \boxed{}. Several files
or folders are separated by commas. A checkpoint that was not trained to compress can be evaluated inside a KV budget,
beside itself without one: --kv=rkv,snapkv.

Hardware: anything. In float32 on two CPU cores, a 0.5B model answers a GSM8K problem in about half a minute.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.model = ConfigDict({"path": "", "dtype": "float32"})  # the checkpoint; on accelerators set bfloat16
    config.contenders = ConfigDict({
        "vanilla": contender("vanilla"),
        "lightthinker": contender("lightthinker", max_thought=512),
    })  # fmt: skip
    config.baseline = "vanilla"  # the contender that the others are compared with
    config.suite = ConfigDict({
        # Exactly one of path, tfds and embedded says where the problems come from.
        "path": FieldReference("", field_type=object),  # a file or folder, or several, see configs/defaults.py
        "format": "",  # of the records; if empty, it is recognised by their fields
        "tfds": "",  # the name of a TensorFlow data set such as "gsm8k", which is prepared in data_dir
        "split": "test",  # of that data set
        "data_dir": "",
        "embedded": 0,  # this many of the library's own problems
        "steps": (6, 12),  # the fewest and the most steps of such a problem
        "families": (),  # the kinds of such problems; empty takes all kinds
        "name": "",  # of the suite in tables; if empty, a name is made of the above
        "limit": 0,  # problems that are used, drawn at random; 0 uses all
        "seed": 0,  # of that draw, and of the library's own problems
    })  # fmt: skip
    config.decode = ConfigDict({
        "rows": 8,  # problems that are answered side by side
        "tensor": 1,  # devices that share an answer, for models too large for one; answers are spread over the others
        "capacity": 6144,  # the most keys that a row may hold; vanilla needs room for prompt and answer
        "block_steps": 32,  # decoding steps between two looks at what is finished
        "max_new": 4096,  # the most tokens of an answer
        "temperature": 0.0,  # 0 always takes the most probable token
        "top_k": 0,  # sample from this many of the most probable tokens; 0 from all
        "top_p": 1.0,  # sample from the most probable tokens that make up this share
        "seed": 0,  # of sampling; problem i has seed + i
    })  # fmt: skip
    config.samples = 4  # answers of each contender that the report shows token by token
    config.note = ""  # a line for the reader of the report
    config.out = "runs/eval_math"  # folder for the table, the report and the pictures
    config.compile_cache = "~/.cache/lt_jax/jax"  # folder that keeps compiled programs; if empty, none are kept
    return config


def contender(method: str, path: str = "", max_thought: int = 0) -> ConfigDict:
    """One way to answer the problems. An empty path is model.path; empty chat, system, prefix and
    suffix are the checkpoint's own.

    Args:
        max_thought: a thought that grows to this many tokens is compressed by force; 0 sets no limit.
    """
    return ConfigDict({
        "path": path, "method": method, "chat": "", "system": "",
        "prefix": "Return your final response within \\boxed{}. ", "suffix": "", "max_thought": max_thought,
    })  # fmt: skip
