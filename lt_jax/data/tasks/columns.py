"""Digit-by-digit arithmetic as text: what a small model can do with certainty, one column at a time.

Every thought of every family has the same shape: what is to be done, the columns, and what is known afterwards.

    0336+098 24 680=14 391=13 301=04 000=00 34 0434 098
    ---- --- -- --------------------------- -- ---- ---
    A    B   notes, columns                 notes, A, B afterwards

A has four digits, B three, the notes two (gcd has none), so that a digit is always found at the same distance: small
models learn that at once, and finding one among several by its name only late. A column of a sum or difference is
written `abc=xy`: digits a and b and the incoming carry c give the outgoing carry x and the digit y. A column of a
division is `rd=qs`: remainder r and digit d give quotient digit q and remainder s.

    0336+098  680=14 391=13 301=04 000=00       6+8=14;  3+9+1=13;  3+0+1=4;  0         0434
    0988-891  810=07 890=19 981=00 000=00       8-1=7;  8-9 borrows: 9;  9-8-1=0;  0    0097
    0473/002  00=00 04=20 07=31 13=61           from the left                           0236
"""

from __future__ import annotations

LIMIT = 10**4  # of A
SMALL = 10**3  # of B


def wide(n: int) -> str:
    """A number in exactly four digits."""
    if not 0 <= n < LIMIT:
        raise ValueError(f"{n} does not fit in four digits")
    return f"{n:04d}"


def slim(n: int) -> str:
    """A number in exactly three digits."""
    if not 0 <= n < SMALL:
        raise ValueError(f"{n} does not fit in three digits")
    return f"{n:03d}"


def add(a: int, b: int) -> str:
    """The columns of a + b, units first."""
    columns, carry = [], 0
    for x, y in zip(_units_first(a), _units_first(b), strict=True):
        total = x + y + carry
        columns.append(f"{x}{y}{carry}={total:02d}")
        carry = total // 10
    return " ".join(columns)


def subtract(a: int, b: int) -> str:
    """The columns of a - b for a >= b, units first; the carry is a borrow."""
    columns, borrow = [], 0
    for x, y in zip(_units_first(a), _units_first(b), strict=True):
        lent = int(x - y - borrow < 0)
        columns.append(f"{x}{y}{borrow}={lent}{x - y - borrow + 10 * lent}")
        borrow = lent
    return " ".join(columns)


def divide(a: int, b: int) -> str:
    """The columns of a // b for one digit b, from the left."""
    columns, remainder = [], 0
    for digit in reversed(_units_first(a)):
        quotient, after = divmod(10 * remainder + digit, b)
        columns.append(f"{remainder}{digit}={quotient}{after}")
        remainder = after
    return " ".join(columns)


def compare(a: int, b: int) -> str:
    """One sign for each of the last three digits: 187 and 153 give `=>>`."""
    signs = {-1: "<", 0: "=", 1: ">"}
    return "".join(signs[(x > y) - (x < y)] for x, y in zip(slim(a), slim(b), strict=True))


def _units_first(n: int) -> list[int]:
    return [int(digit) for digit in reversed(wide(n))]
