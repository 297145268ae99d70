r"""Trajectories of LightThinker++, written by a teacher that works inside the memory.

Why: a model learns to manage its memory from examples, and an example is honest only if its writer really no longer saw
what was committed. The teacher is asked turn by turn; after each action its context is rebuilt from what the memory
shows. Trajectories with wrong answers or jittery actions are pruned (lt_jax/memory/prune.py says how).

    python launch/synthesize.py --config=configs/synthesize.py --config.questions.path=problems.jsonl \
        --config.endpoint.url=https://HOST/v1 --config.endpoint.model=NAME --config.endpoint.key_from=API_KEY

API_KEY is the name of an environment variable that holds the key; the key itself is written nowhere. Each line of the
file is a problem, {"question": ..., "answer": ...}. A checkpoint folder teaches with --config.teacher=local and
--config.local.path=DIR.

Hardware: for an endpoint anything; a local teacher needs what its model needs. Expected: an endpoint that takes ten
seconds for a turn, asked for 32 at once, gives about 750 trajectories of 15 turns in an hour. The paper keeps 55 % of
its trajectories after pruning. A small model without training is no teacher: see what --config.teacher=local writes in
statistics.json before you ask it for many.
"""

from ml_collections import ConfigDict, FieldReference


def get_config() -> ConfigDict:
    config = ConfigDict()
    config.folder = "runs/synthesize"  # of trajectories.jsonl, pruned.jsonl, tfds, statistics.json and statistics.svg
    config.questions = ConfigDict({
        # Exactly one of path, embedded and function says where the problems come from.
        "path": FieldReference("", field_type=object),  # a file or folder, or several, see configs/defaults.py
        "format": "",  # of the records; if empty, it is recognised by their fields
        "system": "",  # the system message of records that have none
        "prefix": "",  # text before every question
        "answers": True,  # False: records may lack an answer; nobody then knows whether they are solved
        "embedded": 0,  # this many of the library's own problems
        "steps": (6, 12),  # the fewest and the most steps of such a problem
        "families": (),  # the kinds of such problems; empty takes all kinds
        "function": "",  # "module:function", called without anything, which gives problems (lt_jax.data.problem)
        "limit": 0,  # only the first so many; 0 is all
    })  # fmt: skip
    config.teacher = "endpoint"  # or "local", or "scripted"
    config.at_once = 8  # problems under way, and requests of an endpoint or rows of a local model
    config.endpoint = ConfigDict({
        "url": "",  # up to and without /chat/completions
        "model": "",  # the name by which the endpoint knows it
        "key_from": "",  # the name of the environment variable that holds the key; if empty, no key is sent
        # Of sampling; if empty, the endpoint's own.
        "temperature": FieldReference("", field_type=object), "top_p": FieldReference("", field_type=object),
        "seeded": False,  # send a seed, which some endpoints refuse
        "limit_name": "max_tokens",  # newer models of OpenAI want "max_completion_tokens"
        "body": ConfigDict(),  # what else requests carry
        "reasoning": "leave_out",  # or "keep": what becomes of `reasoning_content` beside the text
        "attempts": 8,  # how often a request is sent at most
        "seconds": 600.0,  # for one answer
        "first_pause": 1.0, "longest_pause": 120.0,  # seconds between attempts; they double
        "requests_per_minute": 0, "tokens_per_minute": 0,  # 0 is without limit
        # Of a million tokens, for the cost that is told; a cached one costs as one that is read if empty.
        "price_read": 0.0, "price_cached": FieldReference("", field_type=object), "price_written": 0.0,
    })  # fmt: skip
    config.local = ConfigDict({
        "path": "",  # the checkpoint folder that teaches
        "dtype": "",  # in which it computes; if empty, float32 on a CPU and bfloat16 elsewhere
        "capacity": 0,  # the most tokens of a turn's context; 0 is as many as the model has positions
        "temperature": 0.0, "top_k": 0, "top_p": 1.0,  # of sampling; temperature 0 is greedy
    })  # fmt: skip
    config.scripted = ConfigDict({"expert": ""})  # "module:function", from a problem to a trajectory (memory.log.Log)
    # "module:function", called without anything, which gives {name: function} for an agent: it gets the two roles of an
    # actor, which calls them, and a governor, which keeps the memory.
    config.tools = ""
    config.limits = ConfigDict({
        "turn": 1024,  # the most tokens of a turn
        "turns": 64,  # the most turns of a trajectory
        "tokens": 16384,  # the most tokens that are written in it
        "malformed": 3,  # so many impossible turns one after the other end it
        "context": 0,  # the most tokens that a turn may be asked with; 0 is as many as the teacher takes
    })  # fmt: skip
    config.prune = ConfigDict({
        "correct": True, "suite": True, "symmetry": True, "expands": True, "edits": True, "repeated": True,
        "similar": True, "duplicates": True, "similarity": 0.9,
    })  # fmt: skip
    config.seed = 0  # of sampling
    config.leave_out = False  # True writes the files though some problems got no answer; they are counted
    config.compile_cache = "~/.cache/lt_jax/jax"  # folder that keeps compiled programs; if empty, none are kept
    return config
