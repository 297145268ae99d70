"""The embedded world of agents: trails over the pages of a generated corpus, long, with an answer that can be checked.

    question   start 417
    visit      417 f83 417 h25 417 r902 x12 x57 next 561        its food is 83, its home 25, its friend 902
    visit      561 f07 561 h66 561 r140 x90 x31 next f12 h80    -> a search for what has that food and home
    ...
    visit      338 f45 338 h09 338 r771 x26 x48 next r417       -> the friend of 417, which must be recalled
    ...
    visit      620 f11 620 h50 620 r333 x04 x77 end f417 h561
    answer     83 66

Every stop must be visited, for only its page says where the trail goes on; so a question needs as many rounds as its
trail has stops, and a search now and then. What is asked late was read early: the friend of one of the first stops, or
its food, which nothing said would matter. Whoever kept all pages still sees it. Whoever archived them knows which
entity to expand if a summary says which page is whose. (It could also be visited again: a corpus does not forget.)

Questions come in pairs: an easy one, from the shorter half of the lengths, which recalls once, and a hard one, from the
longer half, which recalls several times. Everything follows from the seed. Names are three digits and what is said of
them two, with a letter before it, so that a small model that can copy digits has only the memory to learn.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
import string
from collections.abc import Iterator

from lt_jax.data.problem import Problem
from lt_jax.errors import UserError
from lt_jax.memory.corpus import Corpus, Page
from lt_jax.memory.tools import ToolsConfig

NAMES = [f"{number:03d}" for number in range(1000)]
LETTERS = [each for each in string.ascii_lowercase if each not in "fhrx"]
CAPITALS = [*LETTERS, *string.ascii_uppercase]
VALUES = [f"{number:02d}" for number in range(100)]
EASY, HARD = "easy", "hard"
START, NEXT, END = "start", "next", "end"
FOOD, HOME, FRIEND, NOTHING = "f", "h", "r", "x"
TOOLS = ToolsConfig(results=3, snippet=15)  # as small as will do: of a result what the page's food and home are


@dataclasses.dataclass(frozen=True)
class TrailConfig:
    """How long and how hard trails are.

    Attributes:
        hops: the fewest and the most stops of a trail; the method's paper shows agents of 20 to 100 rounds.
        distractors: other pages for every stop, which look the same.
        filler: words of a page that say nothing.
        recalls: how often an easy and a hard trail ask for what was read early, the question at its end included; that
            of a hard trail asks for two details, and so for one look-up more.
        searches: the share of stops that say only what the next one is like, if a search finds it by that.
        letters: whether a name is one letter in place of three digits, for models that are too small to find three
            digits at once. There are only 22 of them, and 48 with capitals, which are used where a
            trail has more than 22 pages.
    """

    hops: tuple[int, int] = (20, 60)
    distractors: int = 1
    filler: int = 4
    recalls: tuple[int, int] = (1, 4)
    searches: float = 0.1
    letters: bool = False

    @property
    def names(self) -> list[str]:
        """All that a page can be called."""
        letters = LETTERS if self.pages <= len(LETTERS) else CAPITALS
        return letters if self.letters else NAMES

    @property
    def pages(self) -> int:
        """Pages of the longest trail, its distractors included."""
        return self.hops[1] * (1 + self.distractors)

    def __post_init__(self):
        least, most = self.hops
        if not 8 <= least <= most:
            raise UserError(f"trails.hops is {self.hops}; it must be the fewest stops, at least 8, and the most")
        if self.distractors < 0 or self.filler < 0 or not 0 <= self.searches <= 1:
            raise UserError("trails: distractors and filler must not be negative, and searches must be a share")
        if not all(1 <= count < least // 3 for count in self.recalls):
            raise UserError(f"trails.recalls is {self.recalls}; each must be 1 or more, and less than a third of the "
                            f"fewest stops ({least // 3})")  # fmt: skip
        if self.pages > len(self.names):
            raise UserError(f"trails: {most} stops with {self.distractors} distractors each are more pages than there "
                            f"are names, {len(self.names):,}")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class World:
    """A corpus and questions about it. `Problem.family` is the difficulty, `EASY` or `HARD`; the metadata have it too,
    with the id, the stops and the recalls."""

    corpus: Corpus
    problems: tuple[Problem, ...]


def worlds(config: TrailConfig, count: int, seed: int = 0, size: int = 8) -> Iterator[World]:
    """Worlds with `count` questions in all, each with `size` at most, and fewer where the names do not suffice."""
    size = max(1, min(size, len(config.names) // config.pages))
    for number, first in enumerate(range(0, count, size)):
        yield world(config, range(first, min(first + size, count)), seed * 1_000_003 + number)


def world(config: TrailConfig, numbers: range, seed: int) -> World:
    """One world with the questions of these numbers; even ones are easy, odd ones hard."""
    draw = random.Random(seed)
    names = iter(draw.sample(config.names, len(config.names)))
    likes = iter(draw.sample(list(itertools.product(VALUES, VALUES)), len(config.names)))  # no two pages share both
    trails = [_Trail(config, number, names, likes, draw) for number in numbers]
    count = sum(len(trail.about) for trail in trails)
    order = draw.sample(range(1, count + 1), count)
    while True:
        pages = (page for trail in trails for page in trail.pages())
        placed = sorted(zip(order, pages, strict=True), key=lambda each: each[0])
        corpus = Corpus(page for _, page in placed)
        lost = [trail.not_found(corpus) for trail in trails]
        if not any(lost):
            problems = (trail.problem(f"{seed}-{number}") for trail, number in zip(trails, numbers, strict=True))
            return World(corpus, tuple(problems))
        for trail, places in zip(trails, lost, strict=True):
            trail.described -= places


class _Trail:
    """One question: what its stops are like, and how each names the next."""

    def __init__(self, config: TrailConfig, number: int, names, likes, draw: random.Random):
        self.config, self.draw, self.hard = config, draw, number % 2 == 1
        middle = sum(config.hops) // 2
        self.hops = draw.randint(*((middle, config.hops[1]) if self.hard else (config.hops[0], middle)))
        self.recalls = config.recalls[self.hard]
        self.stops = list(itertools.islice(names, self.hops))
        self.others = list(itertools.islice(names, self.hops * config.distractors))
        self.likes = dict(zip([*self.stops, *self.others], likes, strict=False))
        everybody = [*self.stops, *self.others]
        self.friends = {name: draw.choice([each for each in everybody if each != name]) for name in everybody}
        early = draw.sample(range(self.hops // 3), self.recalls + 1)
        late = sorted(draw.sample(range(self.hops // 2, self.hops - 1), self.recalls - 1))
        self.asked = [self.stops[place] for place in early[: 2 if self.hard else 1]]  # at the end
        self.recalled = dict(zip(late, (self.stops[place] for place in early[2:]), strict=True))
        for place, name in self.recalled.items():
            self.friends[name] = self.stops[place + 1]
        linked = [place for place in range(self.hops - 1) if place not in self.recalled]
        self.described = {place for place in linked if draw.random() < config.searches}  # stops that say what is next
        self.about = {name: self._about(name) for name in everybody}
        self.astray = {name: draw.choice(everybody) for name in self.others}

    def problem(self, id: str) -> Problem:
        answer = self.likes[self.asked[0]][0]
        if self.hard:
            answer += f" {self.likes[self.asked[1]][1]}"
        difficulty = HARD if self.hard else EASY
        metadata = {"id": id, "difficulty": difficulty, "hops": self.hops, "recalls": self.recalls}
        return Problem(f"{START} {self.stops[0]}", answer, difficulty, metadata=metadata)

    def pages(self) -> list[Page]:
        onward = {name: self._next(place) for place, name in enumerate(self.stops)}
        onward |= {name: f"{NEXT} {other}" for name, other in self.astray.items()}
        # The id too is the name: titles are found without regard to case, and b and B are two pages.
        return [Page(name, name, f"{about} {onward[name]}") for name, about in self.about.items()]

    def not_found(self, corpus: Corpus) -> set[int]:
        """The stops that are described and that a search by that does not find; they must be named instead."""
        found = lambda name: {page.title for page in corpus.search(self._liked(name), TOOLS.results)}
        following = {place: self.stops[place + 1] for place in self.described}
        return {place for place, name in following.items() if name not in found(name)}

    def _liked(self, name: str) -> str:
        food, home = self.likes[name]
        return f"{FOOD}{food} {HOME}{home}"

    def _about(self, name: str) -> str:
        food, home = self.likes[name]
        said = {FOOD: food, HOME: home, FRIEND: self.friends[name]}
        filler = (f"{NOTHING}{self.draw.choice(VALUES)}" for _ in range(self.config.filler))
        return " ".join([*(f"{name} {kind}{value}" for kind, value in said.items()), *filler])

    def _next(self, place: int) -> str:
        if place == self.hops - 1:
            asked = zip((FOOD, HOME), self.asked, strict=False)
            return " ".join([END, *(f"{kind}{name}" for kind, name in asked)])
        if place in self.recalled:
            return f"{NEXT} {FRIEND}{self.recalled[place]}"
        if place in self.described:
            return f"{NEXT} {self._liked(self.stops[place + 1])}"
        return f"{NEXT} {self.stops[place + 1]}"
