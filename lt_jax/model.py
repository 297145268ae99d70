"""A checkpoint folder as one object that answers prompts, scores texts, and can be saved again.

    import lt_jax

    model = lt_jax.load("DIR")
    print(model.generate("What is 17 * 24?"))
    print(model.generate("What is 17 * 24?", kv="rkv", budget=512, n=8, temperature=1.0))
    print(model.generate([{"role": "user", "content": "Hello"}, ...]))
    for piece in model.stream("What is 17 * 24?"):
        print(piece, end="")

Engines are kept between calls. So programs are compiled once, and a prompt that begins like one whose keys are still in
the cache, such as the next turn of a chat, is read only from where it differs.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from lt_jax import scoring
from lt_jax.ask import Answer, AskConfig, Message, asked, one_prompt, read_conversation
from lt_jax.attention import Split
from lt_jax.cache.policies import Eviction, published
from lt_jax.data.prompts import Prompter
from lt_jax.decode import Completion, DecodeConfig, Engine, Event, Request, Sampling, TextStreamer
from lt_jax.decode.admit import check_request
from lt_jax.decode.completion import refused
from lt_jax.decode.control import Rules
from lt_jax.decode.counts import count
from lt_jax.decode.setup import check, rules_of, size_for
from lt_jax.decode.spread import Spread, over_devices
from lt_jax.errors import UserError
from lt_jax.layout.card import NAME, Card, read_card
from lt_jax.layout.closing import closing
from lt_jax.layout.encode import encoder
from lt_jax.layout.prompt import build_prompt
from lt_jax.layout.row import Row
from lt_jax.layout.scheme import Scheme
from lt_jax.layout.separators import separators
from lt_jax.layout.special import SpecialTokens
from lt_jax.layout.tokenizer import load_tokenizer
from lt_jax.lifetimes import Lifetimes
from lt_jax.models import huggingface
from lt_jax.models.config import DecoderConfig, round_up
from lt_jax.models.hf_ends import read_ends
from lt_jax.training.folder import save_trained
from lt_jax.training.score import Given, score_rows

ENGINES = 4  # kept with their caches; the weights they share

Prompts = str | Sequence[Message] | Sequence[str | Sequence[Message]]


@dataclasses.dataclass(frozen=True)
class Model:
    """A model with everything that is needed to ask it something. `load` makes one.

    Attributes:
        params: the weights.
        config: the sizes of the model.
        card: how the model was trained: its method, special tokens and chat template.
        trained: whether its folder says so, in an `lt_jax.json`; if not, the card is that of an ordinary model.
        scheme: the method by which it writes: the card's, or vanilla.
        tokenizer: a `transformers` tokenizer.
        prompt: a function (question, system, history) -> chat prompt, see `data.prompts.Prompter`.
        origin: the folder that the weights came from.
        stop: ids that end an answer besides `special.eos`, see `models.hf_ends`.
        split: the devices it is on, see `decode.spread`; None is one.
    """

    params: dict = dataclasses.field(repr=False)
    config: DecoderConfig
    card: Card
    scheme: Scheme
    tokenizer: Any = dataclasses.field(repr=False)
    prompt: Prompter = dataclasses.field(repr=False)
    origin: str = ""
    stop: tuple[int, ...] = ()
    trained: bool = True
    split: Split | None = None
    engines: dict = dataclasses.field(init=False, repr=False, compare=False, default_factory=dict)

    @property
    def special(self) -> SpecialTokens:
        return self.card.special

    @property
    def parts(self) -> int:
        """Devices, or groups of them, over which answers are spread."""
        return 1 if self.split is None else self.split.parts

    @property
    def tokenize(self) -> Callable[[str], list[int]]:
        return encoder(self.tokenizer)

    # Asking.

    def generate(self, prompts: Prompts, *, stream: Callable[[str], None] | None = None, **settings):
        """Answers prompts, and returns the answers as text.

        Args:
            prompts: a question, a conversation (a list of chat messages), or a list of questions and conversations.
            stream: a function that is called with each piece of text as it is written. With several prompts, each line
                begins with the number of its prompt.
            settings: the fields of `ask.AskConfig`, such as method, max_new, temperature, kv, budget and n.

        Returns:
            a str for one prompt, and a list of str for several. Where `n` is above 1, each str is a list of n instead.

        Raises:
            UserError: a setting is wrong, or a prompt cannot be answered. It is raised before anything is decoded.
        """
        found = self._answers(prompts, asked(**settings), stream, strict=True)
        return _nested(lambda answer: answer.text, found)

    def answer(self, prompts: Prompts, *, stream: Callable[[str], None] | None = None, **settings):
        """Answers prompts as `generate` does, and returns each answer as an `ask.Answer`.

        An `Answer` says why it ended, which tokens it has and what it cost. If one of several prompts cannot be
        answered, nothing is raised: the `finish` of its answer is "refused", and `why` says why.
        """
        return self._answers(prompts, asked(**settings), stream, strict=one_prompt(prompts))

    def stream(self, prompt: str | Sequence[Message], **settings) -> Iterator[str]:
        """Yields the answer to one prompt piece by piece, as it is written. Closing the iterator ends the answer.

        Raises:
            UserError: see `generate`.
        """
        if not one_prompt(prompt):
            raise UserError("stream() answers one prompt; for several, give generate() a function as `stream`")
        pieces: list[str] = []
        with contextlib.closing(self.answering([prompt], asked(**settings), pieces.append)) as answering:
            for _ in answering:
                yield from pieces
                pieces.clear()

    def answering(
        self,
        prompts: Sequence[str | Sequence[Message]],
        how: AskConfig,
        stream: Callable[[str], None] | None = None,
        *,
        strict: bool = True,
        mark: Callable[[int, int], str] | None = lambda gists, keys: "",
        ended: Callable[[], bool] = lambda: False,
    ) -> Iterator[Answer | None]:
        """Yields answers in the order in which they are finished, and None after every block of decoding steps.

        Args:
            stream: a function that is called with each piece of text, before what is yielded next.
            strict: raise for a prompt that cannot be answered; if False, its answer says so instead.
            mark: what is streamed in place of gist tokens, see `TextStreamer`. By default nothing, so that the pieces
                together are the text.
            ended: a function that is called after every block. Once it returns True, unfinished answers end with finish
                "cancelled".
        """
        if stream is not None and how.n > 1:
            raise UserError(f"n is {how.n}; streaming shows one answer to each prompt")
        own = self.decoding_as(how.method)
        if own.scheme.method == "memory":
            raise UserError(
                "the model manages its memory by actions, which something must answer: run it with launch/agent.py or "
                "lt_jax.memory.trajectories; method 'vanilla' takes it for a plain model"
            )
        how = dataclasses.replace(how, method=own.scheme.method)
        rows, refusals = own._read(prompts)
        config = own.decode_config(how, len(prompts) * how.n, rows.values())
        requests = own._admitted(rows, refusals, how, config)
        if refusals and strict:
            number, why = next(iter(refusals.items()))
            raise UserError(why if len(prompts) == 1 else f"prompt {number}: {why}")
        for number, why in refusals.items():
            for sample in range(how.n):
                yield own._answer(refused(number, sample, why), how)
        streamer = None if stream is None else TextStreamer(self.text, stream, prefix=len(prompts) > 1, mark=mark)
        with contextlib.closing(self._events(own, requests, config, ended)) as rounds:
            for events in rounds:
                for event in events:
                    if streamer is not None and event.start < len(event.record):
                        streamer(event.record, event.start)
                for done in (event.completion for event in events if event.completion is not None):
                    if streamer is not None:
                        streamer.close(done.id)
                    yield own._answer(done, how)
                yield None

    def _answers(self, prompts: Prompts, how: AskConfig, stream, strict: bool):
        one = one_prompt(prompts)
        prompts = [prompts] if one else list(prompts)
        with contextlib.closing(self.answering(prompts, how, stream, strict=strict)) as answering:
            found = {(each.completion.id, each.completion.sample): each for each in answering if each is not None}
        samples = [[found[number, sample] for sample in range(how.n)] for number in range(len(prompts))]
        nested = samples if how.n > 1 else [each[0] for each in samples]
        return nested[0] if one else nested

    def _answer(self, done: Completion, how: AskConfig) -> Answer:
        tokens = done.tokens[done.written]
        return Answer(self.text(tokens), done.finish, tokens, done.logp[done.written], count(done), done.why, done, how)

    def _read(self, prompts) -> tuple[dict[int, Row], dict[int, str]]:
        """The prompts as rows, and of those that are none why, by number."""
        rows, refusals = {}, {}
        for number, prompt in enumerate(prompts):
            try:
                rows[number] = self.ask(prompt)
            except UserError as error:
                refusals[number] = str(error)
        return rows, refusals

    def _admitted(self, rows: dict[int, Row], refusals: dict[int, str], how, config: DecodeConfig) -> list[Request]:
        """The requests of the prompts that can be answered; why the others cannot goes into `refusals`."""
        rules, requests = self.rules(config), []
        check(self.scheme, self.config, config, rules)
        for number, row in rows.items():
            try:
                request = how.request(row, number)
                check_request(request, number, self.config, config, rules)
                requests.append(request)
            except UserError as error:
                refusals[number] = str(error).removeprefix(f"request {number}: ")
        return requests

    # Decoding.

    def decoding_as(self, method: str | None) -> Model:
        """The same model with another method: the one it was trained for, or "vanilla".

        Raises:
            UserError: it was not trained for `method`.
        """
        if method is None or method == self.scheme.method:
            return self
        return dataclasses.replace(self, scheme=scheme_of(self.card, method, self.trained, self.origin))

    def ask(self, prompt: str | Sequence[Message], system: str = "") -> Row:
        """Turns a question or a conversation into the prompt of a request.

        Args:
            system: the system message, where the conversation has none.
        """
        history, between = [], []
        if not isinstance(prompt, str):
            prompt, own, history, between = read_conversation(prompt)
            system = own or system
        text = self.prompt(prompt, system, history, between)
        return build_prompt(self.scheme, self.special, text, self.tokenize)

    def text(self, ids: Sequence[int]) -> str:
        """The text of token ids, without special tokens."""
        return self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)

    def pieces(self, ids: Sequence[int]) -> list[str]:
        """The text of each token id, special tokens included. A character of several tokens stands with its last."""
        out, waiting = [], []
        for token in ids:
            waiting.append(int(token))
            text = self.tokenizer.decode(waiting, skip_special_tokens=False, clean_up_tokenization_spaces=False)
            whole = not text.endswith("\ufffd") or len(waiting) == 4
            out.append(text if whole else "")
            waiting = [] if whole else waiting
        return out

    def eviction(self, **settings) -> Eviction:
        """A KV budget from `policy`, `budget` and what shall differ from the paper, see `policies.published`."""
        known = {field.name for field in dataclasses.fields(Eviction)}
        if missing := [name for name in ("policy", "budget") if name not in settings]:
            raise UserError(f"eviction: {missing[0]} is missing")
        if unknown := sorted(set(settings) - known):
            raise UserError(f"eviction: unknown setting {unknown[0]!r}; it is one of {', '.join(sorted(known))}")
        if settings["policy"] == "sepllm" and "separators" not in settings:
            settings["separators"] = separators(self.tokenizer)
        return published(**settings)

    def decode_config(self, how: AskConfig, answers: int, prompts: Iterable[Row] = ()) -> DecodeConfig:
        """The engine for this many answers. It has 1, 2, 4 ... rows (few sizes to compile), at most `how.rows`, and as
        many on each device as on any other.

        Args:
            prompts: of these answers; how long they are says how much there is to record.
        """
        rows = round_up(min(how.rows, 1 << max(0, answers - 1).bit_length()), self.parts)
        eviction = None if how.eviction is None else self.eviction(**how.eviction)
        rule = closing(self.scheme, self.special, self.tokenize)
        most = self.config.max_positions + (0 if rule is None else len(rule)) + 1  # so that positions end a row first
        capacity = how.capacity or most
        horizon = self.horizon(prompts, how.max_new) if how.records and eviction is not None else 0
        return DecodeConfig(
            rows=rows, capacity=capacity, eviction=eviction, max_thought=how.max_thought, horizon=horizon
        )

    def horizon(self, prompts: Iterable[Row], max_new: int) -> int:
        """Tokens that no row of these prompts grows beyond, for `DecodeConfig.horizon`: any of the sampled ones may
        close a thought. One of few sizes, as an engine is compiled for it."""
        rule = closing(self.scheme, self.special, self.tokenize)
        longest = max(map(len, prompts), default=0)
        need = longest + max_new * (1 if rule is None else 1 + len(rule)) + 1
        return min(size_for(need), self.config.max_positions)

    def engine(self, config: DecodeConfig, weights: dict | None = None) -> Engine:
        """A new engine. It can share the `weights` of another engine of this model."""
        stopping = self._stopping(config)
        own = self.tokenize, self.text, weights, self.split
        return Engine(self.params, self.config, self.scheme, self.special, stopping, *own)

    def rules(self, config: DecodeConfig) -> Rules:
        """The decoding rules (special tokens, when thoughts end, what may be sampled) of an engine of this config."""
        return rules_of(self.config, self.scheme, self.special, self._stopping(config), self.tokenize)

    def check(self, config: DecodeConfig, prompts: Sequence[Row], max_new: int) -> None:
        """Raises UserError if no engine of this config can be made, or if it would refuse one of the prompts."""
        rules = self.rules(config)
        check(self.scheme, self.config, config, rules)
        for number, prompt in enumerate(prompts):
            check_request(Request(prompt, max_new), number, self.config, config, rules)

    def _stopping(self, config: DecodeConfig) -> DecodeConfig:
        return dataclasses.replace(config, stop=tuple(sorted({*config.stop, *self.stop})))

    def _events(self, own: Model, requests: list[Request], config: DecodeConfig, ended) -> Iterator[list[Event]]:
        """Sends requests to the engine that is kept for this scheme and config, and yields its events.

        An engine that was interrupted by something unforeseen (Ctrl-C, no memory) may have done half of a step, so it
        is closed and not used again.
        """
        key = own.scheme, config
        engine = self.engines.pop(key, None)
        if engine is None:
            idle = [each for each, kept in self.engines.items() if kept.owner is None]
            for old in idle[: max(0, len(self.engines) - ENGINES + 1)]:
                self.engines.pop(old).close()
            engine = own.engine(config, next((kept.weights for kept in self.engines.values()), None))
        self.engines[key] = engine  # the last one used stands last
        try:
            with contextlib.closing(engine.events(requests)) as rounds:
                for events in rounds:
                    yield events
                    if ended():
                        for handle in {event.handle for event in events}:
                            engine.cancel(handle)
        except (UserError, GeneratorExit):
            raise
        except BaseException:
            self.engines.pop(key).close()
            raise

    # Scoring and saving.

    def score(self, texts, *, temperature: float | None = None, dense: bool = False):
        """The log-prob of each token of given texts, after the tokens before it.

        Args:
            texts: one of the following, or a list of them, or of such lists. A text is tokenised as it is, without a
                chat template. A list of token ids is scored as it is. A `layout.Row` is scored under its lifetimes. An
                `Answer` or a `Completion` is scored with its prompt, under the lifetimes that it was written with.
            temperature: divides the logits. None is 1, and for an `Answer` the temperature of its own sampling.
            dense: score answers as if no key had been evicted, under the lifetimes of the method alone; for vanilla
                that is full attention. The difference to the score without `dense` is the mismatch of Sparse-RL.

        Returns:
            [N] float32 for N tokens, or a list of such arrays. The first token has 0, and so have tokens of an answer
            that were fed and not sampled, such as gist tokens. Without `dense` the sampled tokens of an answer get the
            log-probs that they were drawn with, within 1e-4 in float32.

        Raises:
            UserError: there is no token; an id is outside of the vocabulary; the evictions of an answer were not
                recorded (ask with `records=True`); top_k or top_p narrowed the choice of an answer, and no temperature
                is given, by which alone it would be scored; or an answer is of a model of another shape.
        """
        flat: list = []
        scoring.each(flat.append, texts)
        heads = None if self.split is None else dataclasses.replace(self.split, rows=())  # each device has all rows
        found = score_rows(self.params, self.config, [self._given(text, temperature, dense) for text in flat], heads)
        for text, logp in zip(flat, found, strict=True):
            if isinstance(text, Answer | Completion):
                done = text.completion if isinstance(text, Answer) else text
                logp[done.prompt_length :][done.forced] = 0.0
        logps = iter(found)
        return scoring.each(lambda text: next(logps), texts)

    def _given(self, text, temperature: float | None, dense: bool) -> Given:
        own = 1.0 if temperature is None else Sampling(temperature).temperature
        if isinstance(text, Answer | Completion):
            done, model = scoring.completion_of(text, temperature, dense), self
            if isinstance(text, Answer):
                model = self.decoding_as(text.asked.method)
                own = text.asked.temperature if temperature is None else own
            never = model.rules(DecodeConfig()).never
            return Given(done.row, scoring.lifetimes_of(done, self.config), done.position, own, never)
        if isinstance(text, Row):
            gist = None if self.scheme.gist_rule == "causal" else text.gist[None]
            lifetimes = Lifetimes(text.death[None], text.since[None], gist, self.scheme.gist_rule)
            return Given(text.tokens, lifetimes, text.position, own)
        return Given(self.tokenize(text) if isinstance(text, str) else text, temperature=own)

    def save(self, folder: str | Path, *, dtype: str | None = None, overwrite: bool = False) -> Path:
        """Writes the model as a Hugging Face folder, as training does, together with its card.

        Args:
            dtype: of the tensors; None is the one that the model was loaded in.
            overwrite: replace a checkpoint that is in the folder.

        Raises:
            UserError: a checkpoint is in the folder, or the disk is full.
        """
        return save_trained(folder, self.params, self.config, self.tokenizer, self.card if self.trained else None,
                            source=self.origin or None, dtype=dtype, overwrite=overwrite)  # fmt: skip


def _nested(what: Callable, found):
    return [_nested(what, each) for each in found] if isinstance(found, list) else what(found)


def load(folder: str | Path, method: str | None = None, *, dtype: str | None = None, chat: str | None = None,
         system: str | None = None, prefix: str | None = None, suffix: str | None = None, tensor: int = 1,
         weights: tuple[dict, DecoderConfig] | None = None) -> Model:  # fmt: skip
    """Opens a Hugging Face folder, whether this library wrote it (with an `lt_jax.json`) or not.

    All devices of the process are used: answers that are written side by side are spread over them.

    Args:
        method: how to decode. None is as the model was trained; "vanilla", which keeps every key, works for any model.
        dtype: of weights and computation; None is float32 on a CPU and bfloat16 elsewhere.
        chat: the chat template: "own", "qwen", "llama" or "plain"; None is what the folder says.
        system: the system message of conversations that have none; None is what the folder says.
        prefix, suffix: text that is put before and after every question; None is what the folder says.
        tensor: how many devices share one answer, each with a part of the model's heads, MLP and vocabulary; for models
            that are too large for a single device.
        weights: parameters and config, if they were read from this folder before, in `dtype` and for as many devices.

    Raises:
        UserError: the folder cannot be read, or the model was not trained for `method`, or the devices cannot share it.
    """
    if not Path(folder).is_dir():
        raise UserError(f"{folder}: no such folder; give a checkpoint folder")
    sizes = huggingface.read_config(folder)  # its complaints come before the tokenizer's
    tokenizer = load_tokenizer(folder)
    card = read_card(folder, tokenizer)
    trained = card is not None
    card = card or _plain(folder, tokenizer)
    scheme = scheme_of(card, method, trained, folder)
    dtype = dtype or ("float32" if jax.default_backend() == "cpu" else "bfloat16")
    split = over_devices(tensor=tensor)
    place = Spread(split, 0, sizes).params()
    params, config = weights or huggingface.load(folder, dtype, compute_dtype=dtype, shardings=place)
    own = lambda given, otherwise: otherwise if given is None else given
    prompt = Prompter(own(chat, card.chat), tokenizer, own(system, card.system), own(prefix, card.prefix),
                      own(suffix, card.suffix))  # fmt: skip
    stop = tuple(i for i in read_ends(folder, tokenizer) if i != card.special.eos)
    return Model(params, config, card, scheme, tokenizer, prompt, str(folder), stop, trained, split)


def scheme_of(card: Card, method: str | None, trained: bool, folder: str | Path) -> Scheme:
    """The scheme by which a model is decoded with `method`; UserError if it was not trained for that method."""
    if method in (None, card.scheme.method):
        return card.scheme
    if method == "vanilla":
        return Scheme("vanilla")
    if not trained:
        raise UserError(
            f"{folder}: has no {NAME}, so its tokenizer has no special tokens for {method}; train it with "
            "launch/train.py, or describe a released checkpoint with launch/convert.py --table; as it is, it can be "
            "evaluated in a KV budget, launch/evaluate.py --kv=rkv,snapkv, and generate with --method=vanilla"
        )
    able = " or ".join(dict.fromkeys((card.scheme.method, "vanilla")))
    raise UserError(f"{folder}: trained for {card.scheme.method}; it can be decoded as {able}, not as {method}")


def _plain(folder: str | Path, tokenizer) -> Card:
    """The card of a model whose folder has none, because another program wrote it."""
    ends = read_ends(folder, tokenizer)
    if not ends:
        raise UserError(
            f"{folder}: generation_config.json and config.json name no eos_token_id and the tokenizer no eos_token, so "
            "an answer would never end"
        )
    eos = tokenizer.eos_token_id if tokenizer.eos_token_id in ends else ends[0]
    special = SpecialTokens(eos=eos, pad=eos if tokenizer.pad_token_id is None else tokenizer.pad_token_id)
    return Card(Scheme("vanilla"), special, "own" if tokenizer.chat_template else "plain")
