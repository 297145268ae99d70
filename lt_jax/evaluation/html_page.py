"""The frame of an HTML page that is one file: it loads nothing, neither fonts nor scripts, from anywhere else."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from importlib import resources


def page(title: str, sections: Iterable[str], script: str = "", style: str = "") -> str:
    """A whole page, as text.

    Args:
        title: plain text.
        sections: HTML, one after the other; empty ones are left out.
        script: the name of a file of this folder that the page runs; "" runs none.
        style: the name of a file of this folder with CSS that comes behind that of all pages.
    """
    read = lambda name: resources.files("lt_jax.evaluation").joinpath(name).read_text(encoding="utf-8")
    return (
        "<!doctype html>\n<html lang=en><head><meta charset=utf-8>"
        '<meta name=viewport content="width=device-width, initial-scale=1">'
        f"<title>{escaped(title)}</title><style>{read('report.css')}{read(style) if style else ''}</style></head>\n"
        "<body><main>"
        + "\n".join(section for section in sections if section)
        + f"</main>{f'<script>{read(script)}</script>' if script else ''}</body></html>\n"
    )


def escaped(value) -> str:
    """Any value as text of a page."""
    return html.escape(str(value))


def table(head: Sequence[str], body: Iterable[Sequence[str]]) -> str:
    """A table; the cells are HTML already. A row of one cell heads those below it."""
    rows = "".join(
        f'<tr><th class=part colspan={len(head)}>{row[0]}</th></tr>' if len(row) == 1 and len(head) > 1
        else f"<tr>{_cells(row, 'td')}</tr>"
        for row in body
    )  # fmt: skip
    return f"<div class=scroll><table><thead><tr>{_cells(head, 'th')}</tr></thead><tbody>{rows}</tbody></table></div>"


def _cells(row: Sequence[str], kind: str) -> str:
    return "".join(f"<{kind}>{cell}</{kind}>" for cell in row)
