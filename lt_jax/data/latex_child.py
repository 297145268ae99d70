"""The program behind `lt_jax.data.latex`: compares LaTeX expressions with math-verify, one JSON line in, one out.

    python -I latex_child.py '["/folder/with/packages", ...]'

It is run as a file, alone, and imports nothing of ours. Its argument is where to look for packages: what `sys.path` is
in the process that started it. Only math-verify's LaTeX grammar is used; its other reader, for bare expressions, ends
in Python's `eval`, which no output of a model may reach.

Two things of math-verify (0.9) are not used. It compares numbers after rounding both to six decimals and cutting off
what is below 1e-15, so that all small numbers are equal: here `numbers_equal` stands in its place. It drops what looks
like a unit from the end (so that 2t is 2): units are split off before (`lt_jax.data.notation.quantity`).
"""

import faulthandler
import json
import os
import sys

TOLERANCE = 1e-6  # between a decimal number and one that has no finite decimals, relative
DIGITS = 50  # to which exact numbers are compared where algebra leaves a difference
ORPHAN_SECONDS = 60  # for one comparison; who asked has killed this process long before, if it still runs


def numbers_equal(answer, given, *_) -> bool:
    """Whether two sympy expressions are the same number; of matrices, entry by entry.

    Two exact numbers must be equal, and so must two decimal numbers: 1.6e-19 is not 3.2e-19. A decimal number beside an
    exact one without finite decimals (1/3, a root, pi) is taken for an approximation: 1e-6 of it is allowed.
    With symbols: if they are equal once their decimals are fractions.
    """
    import sympy  # in here, as math-verify below: who starts this program reads TOLERANCE, and needs neither

    if getattr(answer, "is_Matrix", False) and getattr(given, "is_Matrix", False):
        answer, given = answer.doit(), given.doit()
        pairs = zip(answer.flat(), given.flat(), strict=True) if answer.shape == given.shape else [(0, 1)]
        return all(numbers_equal(sympy.sympify(a), sympy.sympify(b)) for a, b in pairs)
    decimals = [x.has(sympy.Float) for x in (answer, given)]
    a, b = (x.xreplace({f: sympy.Rational(str(f)) for f in x.atoms(sympy.Float)}).doit() for x in (answer, given))
    if a == b:
        return True
    if a.free_symbols or b.free_symbols:
        return any(decimals) and sympy.simplify(a - b) == 0
    approximate = decimals[0] != decimals[1] and not finite_decimals(b if decimals[0] else a)
    size, other, difference = (abs(x) if x.is_Rational else abs(x.evalf(DIGITS)) for x in (a, b, a - b))
    allowed = sympy.Rational(str(TOLERANCE)) if approximate else sympy.Rational(1, 10 ** (DIGITS - 10))
    return bool(size.is_finite and other.is_finite and difference <= max(size, other) * allowed)


def finite_decimals(x) -> bool:
    """Whether an exact sympy number can be written with finitely many decimals."""
    if not x.is_Rational:
        return False
    rest = int(x.q)
    for factor in (2, 5):
        while rest % factor == 0:
            rest //= factor
    return rest == 1


def comparer():
    """math-verify as a function (answer, given) -> bool."""
    import logging

    import math_verify
    import math_verify.grader
    from latex2sympy2_extended import NormalizationConfig

    if not callable(getattr(math_verify.grader, "sympy_numeric_eq", None)):
        raise ImportError("math-verify has no grader.sympy_numeric_eq; it is not a version known here")
    numeric = lambda *two_and_more: safely(numbers_equal, *two_and_more[:2])
    math_verify.grader.sympy_numeric_eq = numeric
    logging.disable(logging.CRITICAL)
    normal = NormalizationConfig(basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none")
    config = [math_verify.LatexExtractionConfig(normalization_config=normal, boxed_match_priority=-1)]
    read = lambda text: math_verify.parse(f"${text}$", extraction_config=config, fallback_mode="no_fallback")

    def compare(answer: str, given: str) -> bool:
        if answer.count("'") != given.count("'"):  # the reader drops primes: f'(x) is not f(x)
            return False
        answer, given = read(answer), read(given)
        return bool(answer) and bool(given) and bool(math_verify.verify(answer, given))

    return compare


def safely(function, *arguments) -> bool:
    """False for any failure of a reader on a model's text."""
    try:
        return bool(function(*arguments))
    except Exception:
        return False


def main() -> None:
    """Says that it is ready, then compares until its input closes."""
    paths = json.loads(sys.argv[1])
    sys.path[:] = paths + [path for path in sys.path if path not in paths]
    compare = comparer()
    if not compare("1", r"\frac{2}{2}"):
        raise ImportError("math-verify does not find 1 and 2/2 equal")
    print(json.dumps("ready"), flush=True)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # what it says from here on is not read
    for line in sys.stdin:
        pair = json.loads(line)
        faulthandler.dump_traceback_later(ORPHAN_SECONDS, exit=True)  # works while C code runs, as no signal does
        print(json.dumps(safely(compare, pair["answer"], pair["given"])), flush=True)
        faulthandler.cancel_dump_traceback_later()


if __name__ == "__main__":
    main()
