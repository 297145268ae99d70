"""Tools of a user's, for tests of agents."""

import time


def shout(text):
    """says it louder (shout: words)"""
    print("this is not the answer")
    return text.upper()


def fails(text):
    raise ValueError(f"no {text}")


def hangs(text):
    time.sleep(1000)


def long(text):
    return "x" * 1000


def nothing():
    return ""
