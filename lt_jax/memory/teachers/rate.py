"""Limits of an endpoint: requests and tokens of any minute, and requests at once."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import time

WINDOW = 60.0  # seconds


@dataclasses.dataclass
class Sent:
    """A request that was let through: when, and its tokens, estimated until they are known."""

    at: float
    tokens: int


class Rate:
    """Lets requests through in the order in which they come.

    Args:
        requests, tokens: of any `WINDOW` seconds at most; 0 is without limit. A request of more tokens than that goes
            alone.
        at_once: requests under way at most.
    """

    def __init__(self, requests: int = 0, tokens: int = 0, at_once: int = 8):
        self.requests, self.tokens = requests, tokens
        self.room, self.order = asyncio.Semaphore(at_once), asyncio.Lock()
        self.sent: collections.deque[Sent] = collections.deque()
        self.closed_until = 0.0

    @contextlib.asynccontextmanager
    async def request(self, tokens: int):
        """Waits until a request of about so many tokens may be sent, and holds its place while it is under way.

        Yields:
            its `Sent`, whose tokens are to be set right when they are known.
        """
        async with self.room:
            async with self.order:
                while wait := self._wait(tokens):
                    await asyncio.sleep(wait)
                sent = Sent(time.monotonic(), tokens)
                if self.requests or self.tokens:
                    self.sent.append(sent)
            yield sent

    def close(self, seconds: float) -> None:
        """Lets nothing through for so long, because the endpoint asked for that."""
        self.closed_until = max(self.closed_until, time.monotonic() + seconds)

    def _wait(self, tokens: int) -> float:
        """Seconds until it is worth looking again; 0 if a request of so many tokens may go now."""
        now = time.monotonic()
        while self.sent and self.sent[0].at <= now - WINDOW:
            self.sent.popleft()
        if self.closed_until > now:
            return self.closed_until - now
        many = self.requests and len(self.sent) >= self.requests
        much = self.tokens and self.sent and sum(each.tokens for each in self.sent) + tokens > self.tokens
        return max(self.sent[0].at + WINDOW - now, 0.001) if many or much else 0.0
