"""Printed numbers as what they stand for: intervals. Arithmetic is exact, on fractions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from math import ceil, floor

#: Digits after which a number is the noise of double arithmetic (a mean over a million scores is good to 1e-10).
_MOST_DECIMALS = 9
#: Orders of magnitude that a number of a table may have; exact arithmetic on 1e999999 would take for ever.
_MOST_DIGITS = 18


@dataclass(frozen=True)
class Number:
    """All values that round to what is printed: "2.30" stands for 2.295 to 2.305, ends included.

    The ends belong to it because some round half up, others half to even.
    """

    text: str
    low: Fraction
    high: Fraction

    @classmethod
    def parse(cls, text: str, exact: bool = False) -> Number:
        """The number printed as `text`.

        Args:
            text: an ordinary or scientific decimal number.
            exact: the text is a double in full, so a short one is not a rounded one.

        Raises:
            ValueError: it is no finite number, or is not between -1e18 and 1e18.
        """
        try:
            value = Decimal(text)
        except InvalidOperation:
            raise ValueError(f"{text!r} is no number") from None
        exponent = value.as_tuple().exponent
        if not isinstance(exponent, int):
            raise ValueError(f"{text!r} is no finite number")
        if value and not -_MOST_DIGITS <= value.adjusted() < _MOST_DIGITS:
            raise ValueError(f"{text!r} is beyond every scale of scores and rates")
        decimals = min(max(0, -exponent), _MOST_DECIMALS)
        unit = Fraction(1, 10 ** (_MOST_DECIMALS if exact else decimals))
        middle = Fraction(value)
        half = unit / 2 * (max(Fraction(1), abs(middle)) if exact or decimals == _MOST_DECIMALS else 1)
        return cls(text, middle - half, middle + half)

    def __add__(self, other: Number) -> Number:
        return _derived(self.low + other.low, self.high + other.high)

    def __sub__(self, other: Number) -> Number:
        return _derived(self.low - other.high, self.high - other.low)

    def times(self, factor: int) -> Number:
        """The number in a unit `factor` times smaller, `factor` > 0."""
        return _derived(self.low * factor, self.high * factor)

    def meets(self, other: Number) -> bool:
        """Whether some value is in both."""
        return self.low <= other.high and other.low <= self.high

    def is_share_of(self, n: int, scale: int) -> bool:
        """Whether some whole number of `n` things, times `scale`, is in it."""
        return ceil(self.low * n / scale) <= floor(self.high * n / scale)


def _derived(low: Fraction, high: Fraction) -> Number:
    middle = float(low + high) / 2
    return Number(f"{round(middle, 6) + 0.0:g}", low, high)


def mean(numbers: Sequence[Number]) -> Number:
    """The unweighted mean, of the exact values or of the rounded ones; at least one number."""
    n = len(numbers)
    return _derived(sum((x.low for x in numbers), Fraction()) / n, sum((x.high for x in numbers), Fraction()) / n)


def total(numbers: Sequence[Number]) -> Number:
    """The sum."""
    return _derived(sum((x.low for x in numbers), Fraction()), sum((x.high for x in numbers), Fraction()))


def common(numbers: Sequence[Number]) -> bool:
    """Whether one value is in all of them."""
    return max(x.low for x in numbers) <= min(x.high for x in numbers)
