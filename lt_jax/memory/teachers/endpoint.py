"""A teacher behind any OpenAI-compatible chat endpoint.

    async with Endpoint(EndpointConfig("https://host/v1", "some-model"), key) as teacher:
        reply = await teacher(asked)

A request that is answered with 408, 409, 425, 429 or 5xx, that is not answered in time, whose connection breaks, or
whose answer cannot be read, is sent again after a pause, which doubles each time and is drawn at random between its
half and its whole, so that requests that failed together do not come back together. What the endpoint asks for in
`Retry-After` (RFC 9110: seconds or a date) is waited for by all. The key goes into the header of requests and nowhere
else; where the endpoint repeats it in an error, it is taken out.
"""

from __future__ import annotations

import asyncio
import email.utils
import json
import random
import time
from collections.abc import Mapping

import httpx2

from lt_jax.errors import UserError
from lt_jax.layout.encode import SURROGATE
from lt_jax.memory.teachers import Asked, Reply, Unanswered
from lt_jax.memory.teachers.endpoint_config import Counts, EndpointConfig
from lt_jax.memory.teachers.rate import Rate

AGAIN = {408, 409, 425, 429}  # and all from 500 on; as the client of OpenAI does
THIS_ONE = {400, 413, 422}  # the request is refused and the next may not be; any other status ends the run
TOO_LONG = ("context length", "context_length", "context window", "too long")  # how endpoints say that of a request
CHARS = 4  # of a token, where only an estimate is at hand
FINISHES = {"stop": "stop", "length": "length", "content_filter": "refused"}


class _Again(Exception):
    """The request is to be sent again. kind: for the counts. pause: what the endpoint asks for, in seconds."""

    def __init__(self, kind: str, why: str, pause: float = 0.0):
        super().__init__(why)
        self.kind, self.pause = kind, pause


class Endpoint:
    """The teacher; a context manager that holds the connections.

    Args:
        key: sent as a bearer token; "" sends none.
        transport: of httpx2, in place of the network.
    """

    def __init__(self, config: EndpointConfig, key: str = "", transport: httpx2.AsyncBaseTransport | None = None):
        self.config, self.counts, self._key = config, Counts(), key
        self._rate = Rate(config.requests_per_minute, config.tokens_per_minute, config.at_once)
        self._client = httpx2.AsyncClient(
            headers={"Authorization": f"Bearer {key}"} if key else {}, timeout=config.seconds, transport=transport,
            limits=httpx2.Limits(max_connections=config.at_once, max_keepalive_connections=config.at_once),
        )  # fmt: skip
        self._draw = random.Random()  # pauses decide nothing that is written

    async def __aenter__(self) -> Endpoint:
        return self

    async def __aexit__(self, *_) -> None:
        await self._client.aclose()

    async def __call__(self, asked: Asked) -> Reply:
        """One reply.

        Raises:
            Unanswered: none came after all attempts, or this request is refused.
            UserError: the endpoint refuses every request: it has no such model, or the key is wrong.
        """
        body, pause = self._body(asked), self.config.first_pause
        about = sum(len(each["content"]) for each in asked.messages) // CHARS + asked.most
        for attempt in range(1, self.config.attempts + 1):
            try:
                async with self._rate.request(about) as sent:
                    self.counts.requests += 1
                    reply = await self._once(body, asked, attempt)
                    sent.tokens = reply.read + reply.written
                return reply
            except _Again as again:
                last = again
                if attempt == self.config.attempts or again.pause > self.config.longest_pause:
                    break
                self.counts.retries[again.kind] += 1
                if again.pause:
                    self._rate.close(again.pause)
                await asyncio.sleep(max(again.pause, pause * self._draw.uniform(0.5, 1.0)))
                pause = min(2 * pause, self.config.longest_pause)
        self.counts.unanswered += 1
        waits = f", and asks for a pause of {last.pause:.0f} s" if last.pause > self.config.longest_pause else ""
        raise Unanswered(f"{self.config.url}: no answer in {attempt} attempts; the last: {last}{waits}")

    def _body(self, asked: Asked) -> dict:
        config = self.config
        seed = asked.seed if config.seeded else None
        given = {"temperature": config.temperature, "top_p": config.top_p, "seed": seed}
        return {"model": config.model, "messages": list(asked.messages), config.limit_name: asked.most,
                **{name: value for name, value in given.items() if value is not None}, **config.body}  # fmt: skip

    async def _once(self, body: dict, asked: Asked, attempt: int) -> Reply:
        try:
            # httpx2 limits each read, not the whole: an endpoint that sends a byte now and then would never end.
            async with asyncio.timeout(self.config.seconds):
                response = await self._client.post(self.config.url.rstrip("/") + "/chat/completions", json=body)
        except (TimeoutError, httpx2.TimeoutException):
            raise _Again("timeout", f"no answer within {self.config.seconds:g} s") from None
        except httpx2.HTTPError as error:
            raise _Again("connection", self._clean(f"{type(error).__name__} {error}")) from None
        status = response.status_code
        if status in AGAIN or status >= 500:
            raise _Again(str(status), f"status {status} {self._said(response)}", _pause(response.headers))
        if status in THIS_ONE:
            said = self._said(response)
            if any(each in said.lower() for each in TOO_LONG):
                return Reply("", "context", attempts=attempt, why=said)
            self.counts.unanswered += 1
            raise Unanswered(f"{self.config.url}: refuses a request: status {status} {said}")
        if status != 200:
            raise UserError(f"{self.config.url}: refuses requests: status {status} {self._said(response)}; see "
                            "endpoint.url, endpoint.model and endpoint.key_from")  # fmt: skip
        try:
            return self._reply(json.loads(response.content), asked, attempt)
        except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
            why = f"an answer that is none ({type(error).__name__}: {error})"
            raise _Again("malformed", self._clean(why)) from None

    def _reply(self, answer: Mapping, asked: Asked, attempt: int) -> Reply:
        choice = answer["choices"][0]
        message = choice["message"]
        text, thought = message["content"] or "", message.get("reasoning_content") or message.get("reasoning") or ""
        if not isinstance(text, str) or not isinstance(thought, str):
            raise TypeError("the content is no text")
        finish = FINISHES[choice["finish_reason"]]
        counted = answer.get("usage") or {}
        read, written, cached = (int(counted.get(name) or 0) for name in
                                 ("prompt_tokens", "completion_tokens", "prompt_cache_hit_tokens"))  # fmt: skip
        cached = cached or int((counted.get("prompt_tokens_details") or {}).get("cached_tokens") or 0)
        if not counted:
            read = sum(len(each["content"]) for each in asked.messages) // CHARS
            written = (len(text) + len(thought)) // CHARS + 1
        cost = self.counts.count(self.config, read, cached, written, estimated=not counted)
        if thought and self.config.reasoning == "leave_out":
            self.counts.reasoning += 1
        elif thought:
            text = f"{thought}\n{text}"
        why = "the endpoint's filter of contents" if finish == "refused" else ""
        return Reply(SURROGATE.sub("\ufffd", text), finish, read, written, cost, attempt, why)

    def _said(self, response: httpx2.Response) -> str:
        """What an endpoint says of an error, in one line."""
        try:
            said = json.loads(response.content)["error"]
            said = said["message"] if isinstance(said, Mapping) else said
        except (ValueError, KeyError, TypeError, RecursionError):
            said = response.content[:400].decode(errors="replace")
        return f"({self._clean(str(said))})"

    def _clean(self, text: str) -> str:
        """Without the key, and in one line of no great length."""
        text = text.replace(self._key, "***") if self._key else text
        return " ".join(text.split())[:200]


def _pause(headers: Mapping[str, str]) -> float:
    """Seconds that `Retry-After` asks for; 0 if nothing that can be read."""
    said = headers.get("retry-after", "").strip()
    try:
        return max(0.0, float(said))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError, IndexError):
        return 0.0
