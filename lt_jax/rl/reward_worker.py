"""The program behind `lt_jax.rl.workers`: rewards of responses, one JSON line in, one out for each of its calls.

    python -I reward_worker.py '["/folder/with/packages", ...]' '{"kinds": ["math"], ...}'

It is run as a file, so that it never imports JAX (as the package around it does). What a reward function prints goes to
where its starter's errors go; what it reads is empty.

A call is a kind, problems and texts. Its answer is {"values": [...]}, or {"raised": "why"}, or {"late": true} if there
was no verdict in time, or {"refused": "why"} if nothing can be said about any response.
"""

import dataclasses
import faulthandler
import functools
import json
import math
import os
import string
import sys
import warnings

ORPHAN_SECONDS = 2.0  # on top of the limit of a call; who started this process has killed it before, if it still runs
FLOAT32 = 3.4e38


class Refused(Exception):
    """A reward function does not do what it must; the text says what, in one line."""


class RunsCode(Exception):
    """A scorer was about to run text as Python code."""


class Late(Exception):
    """There was no verdict in time."""


def math_reward():
    """1 for a right answer, as an evaluation judges it (`data.answers`)."""
    from lt_jax.data import answers  # in here, as all of ours: main() says where it is

    answers.check()

    def score(problem, text: str) -> float:
        correct = answers.judge(problem, text)[1]
        if correct is None:
            answers.check()  # starts what compares again, which would take time of the next call
            raise Late
        return float(correct)

    return score


def choice_reward():
    """1 for the right letter or the right option's text; the options are the letters if the problem has none."""
    from lt_jax.data import answers

    def score(problem, text: str) -> float:
        choices = problem.choices or tuple(string.ascii_uppercase)
        return float(answers.judge(dataclasses.replace(problem, choices=choices), text)[1])

    return score


def format_reward():
    """1 if a response ends its reasoning, where it opened one, and gives a final answer behind it, right or wrong."""
    from lt_jax.data import answers
    from lt_jax.layout import thinking

    def score(problem, text: str) -> float:
        behind = text[thinking.length(text) :]
        return float(not thinking.starts_open(text) and answers.given(problem, behind) is not None)

    return score


def reasoning_gym_reward():
    """The score of reasoning-gym's own scorer for the data set that the metadata name as `source_dataset`, or else the
    problem's family; 0 without an answer.

    A scorer that reads text with Python's `eval` (n_queens, countdown and some more) is stopped before it does.
    """
    from lt_jax.data import answers

    with warnings.catch_warnings():  # compiling one of its packages writes lines to stderr
        warnings.simplefilter("ignore", SyntaxWarning)
        import reasoning_gym
    scorer = functools.cache(reasoning_gym.get_score_answer_fn)
    state = {"scoring": False, "tried": False}

    def watch(event: str, arguments: tuple) -> None:
        if event == "exec" and state["scoring"] and arguments[0].co_filename.startswith("<") and not _importing():
            state["tried"] = True
            raise RuntimeError("no text is run as code")

    sys.addaudithook(watch)

    def score(problem, text: str) -> float:
        given = answers.given(problem, text)
        if given is None:
            return 0.0
        metadata = {"source_dataset": problem.family, **(problem.metadata or {})}
        source = metadata["source_dataset"]
        entry = {"question": problem.question, "answer": problem.answer, "metadata": metadata}
        function = scorer(source)
        state.update(scoring=True, tried=False)
        try:
            return function(given, entry)
        finally:
            state["scoring"] = False
            if state["tried"]:
                raise RunsCode(f"reasoning-gym's scorer of {source!r} runs text as Python code, which is "
                               "not done; leave such problems out, or give a function of your own")  # fmt: skip

    return score


def _importing() -> bool:
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


KINDS = {"math": math_reward, "choice": choice_reward, "format": format_reward, "reasoning_gym": reasoning_gym_reward}


def answer(function, listed: bool, problems: list, texts: list) -> dict:
    """What a call comes to; see the top of this file."""
    try:
        if not listed:
            return {"values": [number(function(problems[0], texts[0]))]}
        values = list(function(problems, texts))
        if len(values) != len(texts):
            raise Refused(f"it gave {len(values)} numbers for {len(texts)} responses")
        return {"values": [number(value) for value in values]}
    except Late:
        return {"late": True}
    except Refused as error:
        return {"refused": str(error)}
    except RunsCode as error:
        return {"raised": str(error), "code": True}
    except BaseException as error:  # SystemExit too
        from lt_jax.user_function import told

        return {"raised": told(error)}


def number(value) -> float:
    """A finite number as a float; TypeError or ValueError if it is none."""
    if isinstance(value, str | bytes) or not hasattr(type(value), "__float__"):
        raise TypeError(f"a number was wanted and {value!r} was given")
    found = float(value)
    if not math.isfinite(found) or abs(found) > FLOAT32:
        raise ValueError(f"a finite number was wanted and {found} was given")
    return found


def main() -> None:
    """Says what functions it has, or which it cannot have, then answers until its input closes."""
    paths, how = map(json.loads, sys.argv[1:])
    sys.path[:] = list(dict.fromkeys([*paths, *sys.path, *how["more"]]))
    asked, said = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0), os.dup2(how["stderr"], 1), os.dup2(how["stderr"], 2)
    sys.stdout.reconfigure(line_buffering=True)  # it may be killed at any moment
    from lt_jax.data.problem import Problem
    from lt_jax.user_function import user_function

    say = lambda value: print(json.dumps(value), file=said, flush=True)
    functions = {}
    for kind in how["kinds"]:
        try:
            own = KINDS.get(kind)
            functions[kind] = own() if own else user_function(kind, None, "", takes="a problem and a text")
        except Exception as error:
            say({"wrong": f"reward {kind!r}: {error}"})
            return
    say("ready")
    for line in asked:
        for kind, problems, texts in json.loads(line):
            problems = [Problem(**{**each, "choices": each["choices"] and tuple(each["choices"])}) for each in problems]
            faulthandler.dump_traceback_later(how["seconds"] + ORPHAN_SECONDS, exit=True, file=nothing)
            found = answer(functions[kind], kind in how["listed"], problems, texts)
            faulthandler.cancel_dump_traceback_later()
            say(found)


if __name__ == "__main__":
    main()
