"""A key that an error names is one that a user can write: it stands in a config file, or in the config of an engine."""

import ast
import dataclasses
import re
import runpy
from pathlib import Path

from lt_jax.data.pipeline import PipelineConfig
from lt_jax.decode import DecodeConfig
from lt_jax.models.config import LoraConfig

ROOT = Path(__file__).parents[1]
ENDINGS = ("safetensors", "py", "json", "jsonl")  # of files' names
CONFIGS = ("defaults", "eval_math")
NAMED = re.compile(r"(?<![\w./])(?:--config\.)?([a-z_]+)\.([a-z_]+(?:\.[a-z_]+)*)(?=[^\w./(]|$)")


def known() -> dict[str, set[str]]:
    """Groups of keys, from the config files; some have more that only Python can set."""
    groups = {}
    for name in CONFIGS:
        for group, values in runpy.run_path(str(ROOT / "configs" / f"{name}.py"))["get_config"]().items():
            if hasattr(values, "keys"):
                groups.setdefault(group, set()).update(values.keys())
    for group, config in (("decode", DecodeConfig), ("lora", LoraConfig), ("batches", PipelineConfig)):
        groups[group] |= {field.name for field in dataclasses.fields(config)}
    return groups


def texts(path: Path):
    """(line, text) of every UserError of a file; what is filled in reads as ?."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "UserError" and node.args:
            said = [part for part in ast.walk(node.args[0]) if isinstance(part, ast.Constant | ast.FormattedValue)]
            yield node.lineno, "".join(p.value if isinstance(getattr(p, "value", 0), str) else "?" for p in said)


def test_errors_name_keys_that_are_there():
    groups, found = known(), 0
    for path in [*(ROOT / "lt_jax").rglob("*.py"), *(ROOT / "launch").rglob("*.py")]:
        for line, text in texts(path):
            for group, key in NAMED.findall(text):
                if group in groups and group != "contenders" and key.split(".")[0] not in ENDINGS:
                    found += 1
                    assert key.split(".")[0] in groups[group], f"{path.name}:{line}: {group}.{key} is no key"
    assert found > 50
