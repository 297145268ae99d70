"""How every script here starts. It parses the flags, and an error meant for people becomes one line and exit code 2.

A script ends with

    if __name__ == "__main__":
        run(main)

and its `main(argv)` may raise `UserError` anywhere, also out of a jitted loop or a data thread that re-raises.
"""

from __future__ import annotations

import difflib
import re
import runpy
import sys
from pathlib import Path

from absl import app, flags, logging
from ml_collections import ConfigDict

from lt_jax.errors import UserError

# `cache.policies.POLICIES`, and `layout.scheme.METHODS` but memory, whose models launch/agent.py runs; without the
# seconds JAX takes
METHODS = ("lightthinker", "vanilla", "anllm", "memento")
POLICIES = ("full", "streaming", "h2o", "tova", "knorm", "keydiff", "snapkv", "rkv", "sepllm", "random")
STOPPED = 3  # the exit code of a script that was asked to stop, and saved
ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
INSTALLED = ROOT.parts[-2:] == ("lt_jax", "commands")  # of a wheel, see lt_jax/commands; else a clone


def run(main) -> None:
    """Parses flags, calls `main(argv)` and exits: 0, or 2 after one line on stderr for a `UserError`."""
    logging.set_verbosity(logging.ERROR)  # JAX tells which backends it does not find, Orbax what it need not merge
    try:
        app.run(main, flags_parser=parse)
    except UserError as error:
        print("error: " + as_called(" ".join(str(error).split())), file=sys.stderr)
        sys.exit(2)


def compile_cache(folder: str) -> None:
    """Makes JAX keep compiled programs in `folder`, so that the next start is quicker; "" keeps none."""
    import jax

    if folder:
        jax.config.update("jax_compilation_cache_dir", str(Path(folder).expanduser()))


def as_called(text: str) -> str:
    """`text` with scripts and configs as they are written where this was installed: lt-train, --config=eval_math."""
    if not INSTALLED:
        return text
    command = lambda script: "lt-" + script[2].replace("_", "-")
    scripts = "train|generate|evaluate|convert|curves|rl_demo|synthesize|agent|trajectory"
    text = re.sub(rf"(?<![\w/.])(python )?launch/({scripts})\.py\b", command, text)
    names = "|".join(path.stem for path in CONFIGS.glob("[a-z]*.py"))
    return re.sub(rf"(?<![\w/.])configs/({names})\.py\b", r"\1", text)


def parse(argv: list[str]) -> list[str]:
    """absl's parser, except that a bad flag or an unknown config key is a `UserError`; returns what is left of argv."""
    if any(argument.lstrip("-") in ("help", "helpshort", "h") for argument in argv[1:]):
        _, _, ours = flags.FLAGS.main_module_help().partition(":\n")  # after the path of the script
        print(as_called(f"{sys.modules['__main__'].__doc__ or ''}\nflags:\n{ours}"))
        sys.exit(0)
    argv = named_configs(argv)
    try:
        rest = flags.FLAGS(argv)
    except flags.Error as error:
        raise UserError(f"flags: {error}") from None
    except (AttributeError, KeyError, TypeError) as error:
        raise UserError(unknown_key(argv) or f"flags: {error}") from None
    except SyntaxError as error:
        raise UserError(f"{error.filename}, line {error.lineno}: {error.msg}") from None
    if len(rest) > 1:
        raise UserError(f"unexpected argument {rest[1]!r}; options are written --name=value")
    return rest


def named_configs(argv: list[str]) -> list[str]:
    """`argv` with the file of a config in place of its name: --config=eval_math stands for the one that comes along.

    A path (something that ends in .py, or the name of a file) stays as it is. A name may be followed by an argument for
    the config, as a path may: --config=name:argument.

    Raises:
        UserError: there is no config of that name.
    """
    out = list(argv)
    for place, argument in enumerate(argv[1:], 1):
        option, equals, given = argument.partition("=")
        if argv[place - 1].lstrip("-") == "config" and not argument.startswith("-"):
            option, equals, given = "", "", argument
        elif not equals or option.lstrip("-") != "config" or not option.startswith("-"):
            continue
        name, colon, rest = given.partition(":")
        if not name or name.endswith(".py") or Path(name).is_file():
            continue
        file = CONFIGS / f"{name}.py"
        if not file.is_file():
            known = ", ".join(sorted(path.stem for path in CONFIGS.glob("[a-z]*.py")))
            raise UserError(f"--config={name}: there is no config of that name (there are {known}), and no such file")
        out[place] = f"{option}{equals}{file}{colon}{rest}"
    return out


def unknown_key(argv: list[str]) -> str | None:
    """The line about the first `--config.a.b=...` of `argv` that the config file does not have; None if all exist."""
    options = [argument.lstrip("-").partition("=")[::2] for argument in argv[1:]]
    files = {name: value for name, value in options if name in flags.FLAGS and value}
    for name, _ in options:
        holder, _, path = name.partition(".")
        if not path or holder not in files:
            continue
        file, _, argument = files[holder].partition(":")
        node, seen = runpy.run_path(file)["get_config"](*([argument] if argument else [])), holder
        for part in path.split("."):
            if not isinstance(node, ConfigDict):
                return f"unknown config key --{name}: {seen} is a value, not a group of keys"
            if part not in node:
                close = difflib.get_close_matches(part, node.keys(), n=1)
                hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(sorted(node.keys()))}"
                return f"unknown config key --{name}: {seen} has no key {part!r}; {hint}"
            node, seen = node[part], f"{seen}.{part}"
    return None


def several(value) -> tuple[str, ...]:
    """The paths that a config key names: those of a tuple, or of a text with commas between them.

    A text that is the name of a file or folder as it stands is that one, commas and all.
    """
    if isinstance(value, tuple | list):
        return tuple(str(path) for path in value if path != "")
    text = str(value)  # a folder named 7 is a number to the parser of flags
    parts = [text] if Path(text).expanduser().exists() else [part.strip() for part in text.split(",")]
    return tuple(filter(None, parts))


def resolved(holder, *, example: str) -> ConfigDict:
    """The config of a `config_flags.DEFINE_config_file` flag, or a `UserError` that says how to give one.

    Args:
        holder: what `DEFINE_config_file` returned.
        example: a config file of the kind wanted, for the message.
    """
    if holder.value is None:
        raise UserError(f"--{holder.name}=FILE is needed, for example --{holder.name}={example}")
    try:
        holder.value.keys()
    except (OSError, AttributeError, TypeError) as error:
        reason = str(error).split("Attempted")[-1]  # config_flags wraps the real reason twice
        raise UserError(f"--{holder.name}: cannot read the config file:{reason}") from None
    return holder.value
