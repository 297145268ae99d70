"""The embedded world of agents: trails over the pages of a generated corpus, long, with an answer that can be checked.

    question   start red fox
    visit      red fox food rice , red fox home lake , red fox friend green cat . the moss hums . next blue owl .
    visit      blue owl food soup , ... . the fog rolls . next has bean and cave .       -> a search
    ...
    visit      tame ant food milk , ... . the rain sings . next is friend of red fox .   -> recalled
    ...
    visit      end : food of red fox and home of blue owl .
    answer     rice lake

Every stop must be visited, for only its page says where the trail goes on; so a question needs as many rounds as its
trail has stops, and a search now and then. What is asked late was read early: the friend of one of the first stops, or
its food, which nothing said would matter. Whoever kept all pages still sees it. Whoever archived them knows which
entity to expand if a summary says which page is whose. (It could also be visited again: a corpus does not forget.)

Questions come in pairs: an easy one, from the shorter half of the lengths, which recalls once, and a hard one, from the
longer half, which recalls several times. Everything follows from the seed. Words are few and pages short, for the
smallest models: each word is one token of a tokenizer that was trained on such pages.
"""

from __future__ import annotations

import dataclasses
import itertools
import random
from collections.abc import Iterator

from lt_jax.data.problem import Problem
from lt_jax.errors import UserError
from lt_jax.memory.corpus import Corpus, Page
from lt_jax.memory.tools import ToolsConfig

KINDS = """red blue green grey white black brown pink gold dark pale old new big small tall thin fat slow fast calm wild
shy bold sad glad kind mean warm cold wet dry soft hard loud mild rich poor neat rude safe weak odd lazy busy tame wise
young""".split()
ANIMALS = """fox owl cat elk bee dog cow pig hen duck goat sheep horse mouse rat bat bear wolf deer hare frog toad newt
crab fish shark whale seal crow dove swan goose hawk ant moth fly wasp snail worm slug mole vole lynx lion tiger camel
mule donkey""".split()
FOODS = """rice soup bean milk corn bread cheese butter honey jam salt pepper apple pear plum peach grape melon lemon
lime onion leek carrot beet turnip potato tomato cabbage spinach lentil pea nut seed oat rye wheat flour sugar syrup tea
cider broth stew pie cake tart cookie candy""".split()
HOMES = """lake hill cave pond river creek bay beach cliff peak ridge valley canyon meadow field farm barn shed hut
cabin house castle tower bridge road path gate wall garden forest grove marsh swamp desert dune island reef harbor dock
ship tent nest den burrow hollow attic cellar roof""".split()
THINGS = "moss fog rain wind snow leaf stone cloud star moon sun sand dust smoke wave flame".split()
DOINGS = "hums rolls sings falls shines rests drifts waits grows fades turns sleeps glows hides spins stirs".split()
EASY, HARD = "easy", "hard"
START, NEXT, END, AND = "start", "next", "end :", " and "
FRIEND, FOOD, HOME = "friend", "food", "home"
TOOLS = ToolsConfig(results=3, snippet=60)  # as small as will do: of a result what the page's food and home are


@dataclasses.dataclass(frozen=True)
class TrailConfig:
    """How long and how hard trails are.

    Attributes:
        hops: the fewest and the most stops of a trail; the method's paper shows agents of 20 to 100 rounds.
        distractors: other pages for every stop, which look the same.
        filler: sentences of a page that say nothing.
        recalls: how often an easy and a hard trail ask for what was read early, the question at its end included.
        searches: the share of stops that say only what the next one is like, if a search finds it by that.
    """

    hops: tuple[int, int] = (20, 60)
    distractors: int = 1
    filler: int = 6
    recalls: tuple[int, int] = (1, 4)
    searches: float = 0.1

    def __post_init__(self):
        least, most = self.hops
        if not 8 <= least <= most:
            raise UserError(f"trails.hops is {self.hops}; it must be the fewest stops, at least 8, and the most")
        if self.distractors < 0 or self.filler < 0 or not 0 <= self.searches <= 1:
            raise UserError("trails: distractors and filler must not be negative, and searches must be a share")
        if not all(1 <= count < least // 3 for count in self.recalls):
            raise UserError(f"trails.recalls is {self.recalls}; each must be 1 or more, and less than a third of the "
                            f"fewest stops ({least // 3})")  # fmt: skip
        if most * (1 + self.distractors) > len(KINDS) * len(ANIMALS):
            raise UserError(f"trails: {most} stops with {self.distractors} distractors each are more pages than there "
                            f"are names, {len(KINDS) * len(ANIMALS):,}")  # fmt: skip


@dataclasses.dataclass(frozen=True)
class World:
    """A corpus and questions about it. `Problem.family` is the difficulty, `EASY` or `HARD`; the metadata have it too,
    with the id, the stops and the recalls."""

    corpus: Corpus
    problems: tuple[Problem, ...]


def worlds(config: TrailConfig, count: int, seed: int = 0, size: int = 8) -> Iterator[World]:
    """Worlds with `count` questions in all, each with `size` at most, and fewer where the names do not suffice."""
    names = len(KINDS) * len(ANIMALS)
    size = max(1, min(size, names // (config.hops[1] * (1 + config.distractors))))
    for number, first in enumerate(range(0, count, size)):
        yield world(config, range(first, min(first + size, count)), seed * 1_000_003 + number)


def world(config: TrailConfig, numbers: range, seed: int) -> World:
    """One world with the questions of these numbers; even ones are easy, odd ones hard."""
    draw = random.Random(seed)
    shuffled = lambda *parts: draw.sample(list(itertools.product(*parts)), len(parts[0]) * len(parts[1]))
    names = iter([" ".join(each) for each in shuffled(KINDS, ANIMALS)])
    likes = iter(shuffled(FOODS, HOMES))  # no two pages have the same two
    trails = [_Trail(config, number, names, likes, draw) for number in numbers]
    count = sum(len(trail.about) for trail in trails)
    order = draw.sample(range(1, count + 1), count)
    while True:
        pages = (page for trail in trails for page in trail.pages())
        placed = (dataclasses.replace(page, id=str(place)) for place, page in zip(order, pages, strict=True))
        corpus = Corpus(sorted(placed, key=lambda page: int(page.id)))
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
        return [Page("", name, f"{about} {onward[name]} .") for name, about in self.about.items()]

    def not_found(self, corpus: Corpus) -> set[int]:
        """The stops that are described and that a search by that does not find; they must be named instead."""
        found = lambda name: {page.title for page in corpus.search(AND.join(self.likes[name]), TOOLS.results)}
        following = {place: self.stops[place + 1] for place in self.described}
        return {place for place, name in following.items() if name not in found(name)}

    def _about(self, name: str) -> str:
        food, home = self.likes[name]
        about = f"{name} {FOOD} {food} , {name} {HOME} {home} , {name} {FRIEND} {self.friends[name]} ."
        said = (f"the {self.draw.choice(THINGS)} {self.draw.choice(DOINGS)} ." for _ in range(self.config.filler))
        return " ".join([about, *said])

    def _next(self, place: int) -> str:
        if place == self.hops - 1:
            asked = [f"{kind} of {name}" for kind, name in zip((FOOD, HOME), self.asked, strict=False)]
            return f"{END} {AND.join(asked)}"
        if place in self.recalled:
            return f"{NEXT} is {FRIEND} of {self.recalled[place]}"
        if place in self.described:
            return f"{NEXT} has {AND.join(self.likes[self.stops[place + 1]])}"
        return f"{NEXT} {self.stops[place + 1]}"
