"""Tools of agents: functions from a text to a text, by name, as `trajectories.Trajectories` takes them.

    search: words            the best pages of the corpus, with their beginnings
    visit: title, 2          a page by its title or id; long ones in pieces, here the second
    python: print(1)         off by default: runs a program in a process that can compute and print, nothing else
    module:function          any function of the user's, in a process of its own, by the name of the function

The first line of a tool's docstring is what an agent is told of it. What goes wrong is an observation and never an
exception: an agent reads what it should have asked. Search and visit know nothing but the corpus: what a model writes
is looked up in a table, and never is the name of a file. What runs in processes has a limit of time and of memory.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator

from lt_jax.errors import UserError
from lt_jax.memory.corpus import Corpus, Page
from lt_jax.memory.tool_process import Processes

Tool = Callable[[str], str]
_NAMED = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")
_PIECE = re.compile(r"^(.*?)[,#]\s*(?:page\s*)?(\d{1,6})$", re.DOTALL | re.I)
PYTHON = "python"


@dataclasses.dataclass(frozen=True)
class ToolsConfig:
    """Which tools there are.

    Attributes:
        results: pages that a search gives at most.
        snippet: characters of each that it shows.
        piece: characters of a page that a visit shows at once.
        python: whether agents may run programs.
        functions: of the user's, "module:function", each called as function(text).
        seconds: for one call of what runs in a process.
        memory: megabytes of such a process.
        most: characters of its answer; what is longer is cut, and says so.
        processes: of each such tool, at the same time.
    """

    results: int = 5
    snippet: int = 200
    piece: int = 4000
    python: bool = False
    functions: tuple[str, ...] = ()
    seconds: float = 30.0
    memory: int = 1024
    most: int = 4000
    processes: int = 2

    def __post_init__(self):
        for name in ("results", "snippet", "piece", "memory", "most", "processes"):
            if getattr(self, name) < 1:
                raise UserError(f"tools.{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.seconds > 0:
            raise UserError(f"tools.seconds is {self.seconds}; it must be above 0")
        names = ["search", "visit", PYTHON]
        for each in self.functions:
            if not isinstance(each, str) or not _NAMED.fullmatch(each):
                raise UserError(f"tools.functions has {each!r}; it must name functions as module:function")
            name = each.partition(":")[2]
            if name in names:
                raise UserError(f"tools.functions has {each!r}, but there is a tool {name!r} already; rename it")
            names.append(name)


@contextlib.contextmanager
def tools(config: ToolsConfig, corpus: Corpus | None = None) -> Iterator[dict[str, Tool]]:
    """The tools of a config; what runs in processes ends with the block.

    Args:
        corpus: None leaves search and visit out.

    Raises:
        UserError: a function cannot be had, or programs cannot be kept in on this machine.
    """
    found = {} if corpus is None else {"search": search(corpus, config), "visit": visit(corpus, config)}
    with contextlib.ExitStack() as stack:
        for kind in (*((PYTHON,) if config.python else ()), *config.functions):
            processes = stack.enter_context(Processes(kind, config.processes, config.seconds, config.memory))
            found[kind.rpartition(":")[2]] = _within(processes, config.most)
        yield found


def described(tools: dict[str, Tool]) -> str:
    """A line on each tool, for the system prompt."""
    first = lambda tool: ((tool.__doc__ or "").strip().splitlines() or [""])[0].strip()
    return "\n".join(f"{name}: {first(tool)}".removesuffix(": ") for name, tool in tools.items())


def search(corpus: Corpus, config: ToolsConfig = ToolsConfig()) -> Tool:
    """The tool that finds pages."""

    def search(text: str) -> str:
        found = corpus.search(text, config.results)
        if not found:
            return "no page has any of these words" if text.strip() else "search needs words: search: words"
        shown = (f"{place}. {_name(corpus, page)}: {_start(page.text, config.snippet)}"
                 for place, page in enumerate(found, 1))  # fmt: skip
        return "\n".join(shown)

    search.__doc__ = f"finds pages by words and shows the best {config.results} (search: words)"
    return search


def visit(corpus: Corpus, config: ToolsConfig = ToolsConfig()) -> Tool:
    """The tool that shows a page."""

    def visit(text: str) -> str:
        name, number = text.strip(), 1
        found = corpus.called(name)
        if not found and (cut := _PIECE.match(name)):
            name, number = cut[1].strip(), int(cut[2])
            found = corpus.called(name)
        if not found:
            return f"there is no page {_start(name, 80)!r}; visit needs a title or an id that a search has shown"
        if len(found) > 1:
            ids = ", ".join(each.id for each in found[:9])
            return f"{len(found)} pages have this title; visit one by its id: {ids}"
        pieces = _pieces(found[0].text, config.piece)
        if not 1 <= number <= len(pieces):
            return f"{name} has no page {number}; its pages are 1 to {len(pieces)}"
        head = f"page {number} of {len(pieces)}\n" if len(pieces) > 1 else ""
        return head + pieces[number - 1]

    visit.__doc__ = "shows a page by its title or id, long ones in pieces (visit: title, or visit: title, 2)"
    return visit


def _within(processes: Processes, most: int) -> Tool:
    def ask(text: str) -> str:
        said = processes.ask(text)
        return said if len(said) <= most else f"{said[:most]} ... ({len(said) - most} characters were cut)"

    ask.__doc__ = processes.description
    return ask


def _name(corpus: Corpus, page: Page) -> str:
    """By what a search names a page: by its title, if that will do for a visit."""
    if not page.title or len(corpus.called(page.title)) != 1 or corpus.called(page.title)[0] is not page:
        return f"{page.id} ({page.title})" if page.title else page.id
    return page.title


def _start(text: str, most: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else text[:most].rstrip() + " ..."


def _pieces(text: str, most: int) -> list[str]:
    """A text cut at blanks, in the last quarter of a piece if there is one."""
    pieces = []
    while len(text) > most:
        blank = max(text.rfind(mark, most - most // 4, most) for mark in " \n")
        end = most if blank < 0 else blank + 1
        pieces.append(text[:end])
        text = text[end:]
    return [*pieces, text]
