"""A corpus of pages that agents search and read: JSONL or Parquet with `id`, `title` and `text`, indexed for BM25.

    {"id": "17", "title": "red fox", "text": "food rice . home lake ."}

Ranks are those of BM25 as Lucene has it (k1 = 1.5, b = 0.75, by the library bm25s), over title and text. Words are runs
of letters and digits without regard to case; of Chinese and Japanese, which have no blanks, every character is a word.
"""

from __future__ import annotations

import array
import dataclasses
import logging
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from lt_jax.data.readers import read_records, trace_files
from lt_jax.errors import UserError

_SINGLE = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
_WORD = re.compile(rf"[{_SINGLE}]|[^\W{_SINGLE}]+")


@dataclasses.dataclass(frozen=True)
class Page:
    """One page.

    Attributes:
        id: its own name, which no other page has.
        title: may be that of other pages too; "" for none.
    """

    id: str
    title: str
    text: str


def words(text: str) -> list[str]:
    """What a text is found by."""
    return _WORD.findall(text.casefold())


class Corpus:
    """Pages and their index. It is never changed, so any number of threads may read it."""

    def __init__(self, pages: Iterable[Page]):
        """Indexes the pages, one after the other.

        Raises:
            UserError: there is no page or no word, or an id comes twice.
        """
        import bm25s  # here: it starts JAX

        logging.getLogger("bm25s").setLevel(logging.WARNING)  # it says of every index that it is built

        self.pages: list[Page] = []
        self._ids: dict[str, int] = {}
        self._titles: dict[str, list[int]] = {}
        known: dict[str, int] = {}
        texts: list[array.array] = []
        for page in pages:
            if page.id in self._ids:
                raise UserError(f"corpus: the id {page.id!r} comes twice; every page needs one of its own")
            self._ids[page.id] = len(self.pages)
            if page.title:
                self._titles.setdefault(_key(page.title), []).append(len(self.pages))
            self.pages.append(page)
            found = words(f"{page.title} {page.text}")
            texts.append(array.array("i", [known.setdefault(word, len(known)) for word in found]))
        if not known:
            raise UserError("corpus: there is no page with a word in it")
        self._index = bm25s.BM25(backend="numpy")
        self._index.index((texts, known), create_empty_token=False, show_progress=False)
        self._known = known

    def __len__(self) -> int:
        return len(self.pages)

    def called(self, name: str) -> list[Page]:
        """The page of that id, or else the pages of that title."""
        if (place := self._ids.get(name)) is not None:
            return [self.pages[place]]
        return [self.pages[place] for place in self._titles.get(_key(name), ())]

    def search(self, text: str, most: int) -> list[Page]:
        """The best pages, at most `most`, best first; equal ones in their order. A page without any of the words is
        none of them."""
        ids = [self._known[word] for word in dict.fromkeys(words(text)) if word in self._known]
        if not ids:
            return []
        scores = self._index.get_scores_from_ids(ids)
        best = np.lexsort((np.arange(len(scores)), -scores))[:most]
        return [self.pages[place] for place in best if scores[place] > 0]


def read_corpus(paths: str | Path | Sequence[str | Path]) -> Corpus:
    """The corpus of files or folders, read one record at a time.

    Raises:
        UserError: with file and line: a field is missing or no text; what `readers.read_records` raises.
    """
    return Corpus(_pages(paths))


def _pages(paths) -> Iterator[Page]:
    for path in trace_files(paths):
        for where, record in read_records(path):
            id = record.get("id")
            id = str(id) if isinstance(id, int) and not isinstance(id, bool) else id
            fields = {"id": id, "title": record.get("title", ""), "text": record.get("text")}
            for name, value in fields.items():
                if not isinstance(value, str) or (name != "title" and not value.strip()):
                    raise UserError(f"{where}: a page of a corpus needs a text in {name!r}; it has id, title and text")
            yield Page(**fields)


def _key(title: str) -> str:
    return " ".join(title.casefold().split())
