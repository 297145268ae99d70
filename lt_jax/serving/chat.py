"""A conversation in the terminal.

    you> What is 17 * 24?
    17 * 20 = 340, 17 * 4 = 68.
    [9 gists for 41 keys]
    340 + 68 = 408.
    -- 14 tokens of prompt and 52 of answer, 1 thought compressed, peak 48 of 66 keys, 0.9 s
    you> And half of it?

/reset begins a new conversation, /quit or Ctrl-D ends, and Ctrl-C stops the answer that is being written; what there is
of it stays in the conversation. Where the input is no terminal, each of its lines is a turn.
"""

from __future__ import annotations

import contextlib
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator

from lt_jax.ask import Answer, AskConfig
from lt_jax.errors import UserError
from lt_jax.model import Model
from lt_jax.serving.prompts import ending

ASK = "you> "
COMMANDS = ("/reset", "/quit")
_COMMAND = re.compile(r"/\w+$")


def chat(model: Model, how: AskConfig, read: Callable[[], str | None], write: Callable[[str], None]) -> None:
    """Talks until there is nothing more to read.

    Args:
        read: the next line of the person; None at the end.
        write: takes text as it comes.

    Raises:
        UserError: nothing can be answered with these settings; before anything is read.
    """
    own = model.decoding_as(how.method)
    own.check(own.decode_config(how, 1), [], how.max_new)
    history: list[dict[str, str]] = []
    while (line := read()) is not None:
        said = line.strip()
        if said == "/quit":
            return
        if said == "/reset":
            history.clear()
            write("-- a new conversation\n")
        elif _COMMAND.match(said):
            write(f"-- {said} is no command; there are {' and '.join(COMMANDS)}\n")
        elif said:
            asked = [*history, {"role": "user", "content": said}]
            try:
                answer = _answer(model, asked, how, write)
            except UserError as error:
                write(f"error: {error}\n")
                continue
            write(f"\n{ending(answer)}\n")
            if answer.text.strip():  # a template may not show a turn in which nothing is said
                history = [*asked, {"role": "assistant", "content": answer.text}]


def _answer(model: Model, asked: list[dict[str, str]], how: AskConfig, write: Callable[[str], None]) -> Answer:
    with interruptible() as pressed:
        with contextlib.closing(model.answering([asked], how, write, mark=None, ended=pressed)) as answering:
            return next(filter(None, answering))


@contextlib.contextmanager
def interruptible() -> Iterator[Callable[[], bool]]:
    """Within, the first Ctrl-C is only taken note of; a second one interrupts as ever. Yields what tells of the first.

    An interruption in the middle of a step would leave the engine with half of it.
    """
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def first(number, frame):
        pressed.set()
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, first)
    try:
        yield pressed.is_set
    finally:
        signal.signal(signal.SIGINT, before)


def from_terminal() -> str | None:
    """A line of standard input, asked for if a person sits there; None at its end."""
    if not sys.stdin.isatty():
        return sys.stdin.readline() or None
    with contextlib.suppress(ImportError):  # arrow keys and former lines, where there is such a thing
        import readline  # noqa: F401
    while True:
        try:
            return input(ASK)
        except EOFError:
            print()
            return None
        except KeyboardInterrupt:
            print("\n-- /quit or Ctrl-D ends")
