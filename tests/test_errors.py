"""Errors for people name keys as they are in the configs."""

import ast
import dataclasses
import re
from pathlib import Path

from ml_collections import ConfigDict

from configs import defaults, demo, eval_budget, eval_math, synthesize
from lt_jax.cache.policies import Eviction

ROOT = Path(__file__).parents[1]
KNOWN = [module.get_config() for module in (defaults, eval_math, eval_budget, demo, synthesize)]
GROUPS = sorted({"eviction", *(name for c in KNOWN for name, value in c.items() if isinstance(value, ConfigDict))})
KEY = re.compile(r"(?<![\w./{}])(?:config\.)?(" + "|".join(GROUPS) + r")\.(\{\}\.)?(\w+|\{\})")
FILES = ("model.safetensors",)  # and what looks like a key in a text without a blank is a tensor's name


def texts(tree):
    """Every text of a module but its docstrings, an f-string's values as {}, with its line."""
    docs = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(p.value if isinstance(p, ast.Constant) else "{}" for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs | inside:
            yield node.lineno, node.value


def keys(text):
    """(group, key) of every key that a text names."""
    found = KEY.findall(text) if " " in text else []
    return [(group, key) for group, _, key in found if f"{group}.{key}" not in FILES]


def exists(group, key):
    found = [config[group] for config in KNOWN if group in config]
    if group == "contenders":
        found = [each for config in found for each in config.values()]
    if group == "eviction":
        return key in {field.name for field in dataclasses.fields(Eviction)}
    return key == "{}" or any(key in each for each in found)


def test_what_this_test_looks_for_it_finds():
    code = 'raise UserError(f"data.length is {x}, " f"not contenders.{name}.path or model.{y}")\n"""train.doc is not"""'
    (_, text), *rest = texts(ast.parse(code))
    assert not rest and keys(text) == [("data", "length"), ("contenders", "path"), ("model", "{}")]
    assert not exists("data", "length") and exists("batches", "length") and exists("contenders", "path")
    assert {"data", "batches", "train", "optim", "decode", "suite", "tokens", "scheme"} <= set(GROUPS)


def test_every_key_that_a_message_names_is_one_of_a_config():
    named = [
        (f"{path.relative_to(ROOT)}:{line}", *key)
        for room in ("lt_jax", "launch")
        for path in (ROOT / room).rglob("*.py")
        for line, text in texts(ast.parse(path.read_text()))
        for key in keys(text)
    ]
    assert [each for each in named if not exists(*each[1:])] == []
    assert len(named) > 50 and {group for _, group, _ in named} >= {"data", "batches", "train", "optim", "suite"}
