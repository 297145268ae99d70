"""What an endpoint is, how it is asked, and what it was asked."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from lt_jax.errors import UserError

REASONING = ("leave_out", "keep")


@dataclasses.dataclass(frozen=True)
class EndpointConfig:
    """An endpoint, and how it is asked.

    Attributes:
        url: up to and without "/chat/completions".
        model: the name by which the endpoint knows it.
        temperature, top_p: of sampling; None leaves it to the endpoint.
        seeded: whether requests carry a seed, which some endpoints refuse.
        limit_name: of the field with the most tokens; newer models of OpenAI want "max_completion_tokens".
        body: what else requests carry, such as {"thinking": {"type": "enabled"}}.
        reasoning: what becomes of `reasoning_content` beside the text: "leave_out", counted, or "keep" before the text.
        attempts: how often a request is sent at most.
        seconds: for one answer.
        first_pause, longest_pause: seconds between attempts. An endpoint that asks for a longer pause is given up.
        at_once, requests_per_minute, tokens_per_minute: see `rate.Rate`.
        price_read, price_cached, price_written: of a million tokens; a cached one (of a prompt that the endpoint held)
            costs as one that is read if not given.
    """

    url: str
    model: str
    temperature: float | None = None
    top_p: float | None = None
    seeded: bool = False
    limit_name: str = "max_tokens"
    body: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    reasoning: str = "leave_out"
    attempts: int = 8
    seconds: float = 600.0
    first_pause: float = 1.0
    longest_pause: float = 120.0
    at_once: int = 8
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    price_read: float = 0.0
    price_cached: float | None = None
    price_written: float = 0.0

    def __post_init__(self):
        if not self.url.startswith(("http://", "https://")):
            raise UserError(f"endpoint.url is {self.url!r}; it must begin with http:// or https://")
        if "@" in self.url.partition("//")[2].partition("/")[0] or "?" in self.url:
            raise UserError("endpoint.url has a user, a password or a query in it; name a key in endpoint.key_from")
        if not self.model:
            raise UserError("endpoint.model is empty; it must be the name by which the endpoint knows the model")
        if self.reasoning not in REASONING:
            raise UserError(f"endpoint.reasoning is {self.reasoning!r}; it must be one of {', '.join(REASONING)}")
        for name in ("attempts", "at_once"):
            if getattr(self, name) < 1:
                raise UserError(f"endpoint.{name} is {getattr(self, name)}; it must be 1 or more")
        if not self.seconds > 0:
            raise UserError(f"endpoint.seconds is {self.seconds}; it must be above 0")

    def about(self) -> dict:
        """What trajectories say of it: all that decides what is written."""
        settings = {"temperature": self.temperature, "top_p": self.top_p, "seeded": self.seeded,
                    "body": dict(self.body), "reasoning": self.reasoning}  # fmt: skip
        return {"teacher": "endpoint", "model": self.model, "url": self.url, "settings": settings}


@dataclasses.dataclass
class Counts:
    """What an endpoint was asked in this process.

    Attributes:
        requests: sent. retries: of these, by what was wrong with the one before. unanswered: given up.
        read, cached, written: tokens. cost: in the unit of the prices.
        estimated: replies that did not say their tokens, which were then estimated from characters.
        reasoning: replies whose `reasoning_content` was left out.
    """

    requests: int = 0
    retries: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    unanswered: int = 0
    read: int = 0
    cached: int = 0
    written: int = 0
    cost: float = 0.0
    estimated: int = 0
    reasoning: int = 0

    def count(self, config: EndpointConfig, read: int, cached: int, written: int, estimated: bool) -> float:
        """Counts a reply; its cost."""
        price = config.price_read if config.price_cached is None else config.price_cached
        cost = ((read - cached) * config.price_read + cached * price + written * config.price_written) / 1e6
        self.read, self.cached, self.written = self.read + read, self.cached + cached, self.written + written
        self.cost, self.estimated = self.cost + cost, self.estimated + estimated
        return cost

    def describe(self) -> str:
        """One line for a terminal."""
        again = ", ".join(f"{count:,} {why}" for why, count in sorted(self.retries.items())) or "none"
        parts = [f"{self.requests:,} requests, {self.read:,} tokens read ({self.cached:,} cached) and {self.written:,} "
                 f"written, cost {self.cost:.4f}; sent again: {again}; given up: {self.unanswered:,}"]  # fmt: skip
        parts += [f"tokens of {self.estimated:,} estimated"] if self.estimated else []
        parts += [f"reasoning of {self.reasoning:,} left out"] if self.reasoning else []
        return "; ".join(parts)
