"""Rewards for tests: of a random model's responses, so that they differ within a group, and some that go wrong."""

import time


def vowels(problem, text):
    """The share of vowels and even digits."""
    return sum(c in "aeiou02468" for c in text) / max(1, len(text))


def length(problem, text):
    return len(text) / 100


def same(problem, text):
    return 1.0


def raises(problem, text):
    raise RuntimeError("no verdict today")


def nan(problem, text):
    return float("nan")


def hangs(problem, text):
    time.sleep(60)


def short(problems, texts):
    return [0.0]
