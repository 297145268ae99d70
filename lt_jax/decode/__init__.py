"""Batched decoding: the compiled block, the rows' state machines, and the engine that feeds them."""

from lt_jax.decode.completion import Completion
from lt_jax.decode.config import DecodeConfig
from lt_jax.decode.engine import Engine
from lt_jax.decode.event import Event, Usage
from lt_jax.decode.request import Request
from lt_jax.decode.sample import Sampling
from lt_jax.decode.stream import TextStreamer

__all__ = ["Completion", "DecodeConfig", "Engine", "Event", "Request", "Sampling", "TextStreamer", "Usage"]
