"""Frame rates as fractions."""

from __future__ import annotations

from fractions import Fraction


def exact_rate(rate: Fraction | float) -> Fraction:
    """Turns frames per second into a fraction, such as 29.97 into 30000/1001.

    Raises:
        ValueError: If the rate is not positive and finite, or too large to write.
    """
    if not 0 < rate <= 100_000:
        raise ValueError(f"rate must be above 0 and at most 100000 frames per second, got {rate}")
    exact = Fraction(rate)
    # Broadcast rates are usually given rounded.
    broadcast = Fraction(round(exact * 1001 / 1000) * 1000, 1001)
    if exact.denominator != 1 and abs(exact - broadcast) < Fraction(1, 200):
        return broadcast
    return max(exact.limit_denominator(65535), Fraction(1, 65535))


__all__ = ["exact_rate"]
