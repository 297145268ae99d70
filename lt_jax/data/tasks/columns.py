"""Digit-by-digit arithmetic as text: what a small model can do with certainty, one column at a time.

A column is written `abc=xy`: digits a and b and the incoming carry c give the outgoing carry x and the digit y.

    0988-0891 810=07 890=19 981=00 000=00 =0097         8-1=7;  8-9 borrows: 9;  9-8-1=0;  0
    0336*4    640=24 342=14 341=13 041=01 =1344         6*4=24;  3*4+2=14;  3*4+1=13;  0*4+1=1
    0473/2    00=00 04=20 07=31 13=61 =0236             from the left: remainder and digit = quotient digit, remainder
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


def times_digit(a: int, b: int) -> str:
    """a * b for one digit b, units first."""
    columns, carry = [], 0
    for x in _units_first(a):
        total = x * b + carry
        columns.append(f"{x}{b}{carry}={total:02d}")
        carry = total // 10
    return f"{fixed(a)}*{b} {' '.join(columns)} ={fixed(a * b)}"


def halve(a: int) -> str:
    """a // 2, from the left: remainder and digit give quotient digit and remainder."""
    columns, remainder = [], 0
    for x in reversed(_units_first(a)):
        quotient, after = divmod(10 * remainder + x, 2)
        columns.append(f"{remainder}{x}={quotient}{after}")
        remainder = after
    return f"{fixed(a)}/2 {' '.join(columns)} ={fixed(a // 2)}"


def _units_first(n: int) -> list[int]:
    return [int(digit) for digit in reversed(fixed(n))]
