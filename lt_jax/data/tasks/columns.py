"""Digit-by-digit arithmetic as text: what a small model can do with certainty, one column at a time.

A column of a sum or difference is written `abc=xy`: digits a and b and the incoming carry c give the outgoing carry x
and the digit y. A column of a division is `rd=qs`: remainder r and digit d give quotient digit q and remainder s.

    0336+0098 680=14 391=13 301=04 000=00 =0434         6+8=14;  3+9+1=13;  3+0+1=4;  0
    0988-0891 810=07 890=19 981=00 000=00 =0097         8-1=7;  8-9 borrows: 9;  9-8-1=0;  0
    0473/2 00=00 04=20 07=31 13=61 =0236                from the left

Every number has four digits, so that a digit is always found at the same distance: small models learn that at once, and
finding one among several by its name only late.
"""

from __future__ import annotations

WIDTH = 4
LIMIT = 10**WIDTH


def fixed(n: int) -> str:
    """n in exactly four digits."""
    if not 0 <= n < LIMIT:
        raise ValueError(f"{n} does not fit in {WIDTH} digits")
    return f"{n:0{WIDTH}d}"


def add(a: int, b: int) -> str:
    """a + b, units first."""
    columns, carry = [], 0
    for x, y in zip(_units_first(a), _units_first(b), strict=True):
        total = x + y + carry
        columns.append(f"{x}{y}{carry}={total:02d}")
        carry = total // 10
    return f"{fixed(a)}+{fixed(b)} {' '.join(columns)} ={fixed(a + b)}"


def subtract(a: int, b: int) -> str:
    """a - b for a >= b, units first; the carry is a borrow."""
    columns, borrow = [], 0
    for x, y in zip(_units_first(a), _units_first(b), strict=True):
        lent = int(x - y - borrow < 0)
        columns.append(f"{x}{y}{borrow}={lent}{x - y - borrow + 10 * lent}")
        borrow = lent
    return f"{fixed(a)}-{fixed(b)} {' '.join(columns)} ={fixed(a - b)}"


def divide(a: int, b: int) -> str:
    """a // b for one digit b, from the left."""
    columns, remainder = [], 0
    for digit in reversed(_units_first(a)):
        quotient, after = divmod(10 * remainder + digit, b)
        columns.append(f"{remainder}{digit}={quotient}{after}")
        remainder = after
    return f"{fixed(a)}/{b} {' '.join(columns)} ={fixed(a // b)}"


def _units_first(n: int) -> list[int]:
    return [int(digit) for digit in reversed(fixed(n))]
