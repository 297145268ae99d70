"""A teacher that is a checkpoint folder, through our engine.

Turns of all problems under way are written side by side. A turn's messages begin like those of the turn before it, so
the engine reads them from the first change on. A turn is ended at the closing mark of an action; the marks are ordinary
text to the model, so one of any vendor will do.
"""

from __future__ import annotations

import asyncio
import dataclasses

from lt_jax.ask import AskConfig
from lt_jax.decode import Completion, Request
from lt_jax.memory.environment import SYNTAX
from lt_jax.memory.syntax import ACTIONS
from lt_jax.memory.teachers import Asked, Reply
from lt_jax.model import Model

STOPS = tuple(SYNTAX.text((SYNTAX.pair(name)[1],)) for name in ACTIONS)
FINISHES = {"eos": "stop", "stop": "stop", "length": "length", "capacity": "context", "positions": "context",
            "nan": "nan"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class LocalConfig:
    """How a model teaches; fields as of `ask.AskConfig`."""

    rows: int = 8
    capacity: int = 0
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0

    def about(self, name: str) -> dict:
        """What trajectories say of it: all that decides what is written."""
        sampling = {"temperature": self.temperature, "top_k": self.top_k, "top_p": self.top_p}
        return {"teacher": "local", "model": name, "settings": sampling}


class Local:
    """The teacher; a context manager that holds an engine.

    Args:
        model: decoded as vanilla, which keeps every key.
    """

    def __init__(self, model: Model, config: LocalConfig):
        self.model, self.config = model.decoding_as("vanilla"), config
        self.how = AskConfig(rows=config.rows, capacity=config.capacity, temperature=config.temperature,
                             top_k=config.top_k, top_p=config.top_p)  # fmt: skip
        self.engine = self.model.engine(self.model.decode_config(self.how, config.rows))
        self._fresh: list[tuple[Request, asyncio.Future]] = []
        self._under: dict[int, asyncio.Future] = {}
        self._pump: asyncio.Task | None = None
        self.read = self.reused = self.written = 0

    async def __aenter__(self) -> Local:
        return self

    async def __aexit__(self, *_) -> None:
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            await asyncio.gather(self._pump, return_exceptions=True)  # a step that runs in its thread is waited for
        self.engine.close()

    async def __call__(self, asked: Asked) -> Reply:
        """One reply.

        Raises:
            UserError: the chat template cannot show the messages.
        """
        row = self.model.ask(list(asked.messages))
        request = Request(row, asked.most, asked.seed, sampling=self.how.sampling, stop_text=STOPS)
        future = asyncio.get_running_loop().create_future()
        self._fresh.append((request, future))
        if self._pump is None or self._pump.done():
            self._pump = asyncio.create_task(self._run())
        return self._reply(await future, asked)

    async def _run(self) -> None:
        """Steps the engine, in a thread, as long as there is anything to do."""
        try:
            while self._fresh or self._under:
                for request, future in self._fresh:
                    self._under[self.engine.submit(request)] = future
                self._fresh.clear()
                for event in await asyncio.shield(asyncio.to_thread(self.engine.step)):
                    if event.completion is not None and not (future := self._under.pop(event.handle)).done():
                        future.set_result(event.completion)
        except Exception as error:
            for future in (*self._under.values(), *(future for _, future in self._fresh)):
                if not future.done():
                    future.set_exception(error)
            self._under.clear(), self._fresh.clear()

    def _reply(self, done: Completion, asked: Asked) -> Reply:
        if done.finish == "refused":  # the first turn of a problem, or a context that has outgrown the engine
            return Reply("", "context" if asked.turn else "refused", why=done.why)
        self.read, self.reused = self.read + done.read, self.reused + done.reused
        self.written += len(done.tokens)
        ids = done.tokens[:-1] if done.finish == "eos" else done.tokens
        tokenizer = self.model.tokenizer
        # With special tokens: to a model that was trained with a memory the marks are such.
        text = tokenizer.decode(ids.tolist(), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        if done.stop_text:  # the last token may have more behind it, such as a line's end
            text = text[: text.index(done.stop_text) + len(done.stop_text)]
        return Reply(text, FINISHES[done.finish], done.prompt_length, len(done.tokens))
