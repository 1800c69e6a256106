"""Units that the tool `convert` knows, and exact conversions between them."""

from __future__ import annotations

from fractions import Fraction
from typing import NamedTuple


class Unit(NamedTuple):
    """One unit: `(value + offset) * factor` is the value in the first unit of its kind.

    Attributes:
        name: as people write it, in the plural.
        short: as people abbreviate it.
        kind: units of one kind can be converted into each other.
        factor, offset: exact decimals or fractions, as text.
    """

    name: str
    short: str
    kind: str
    factor: str
    offset: str = "0"


UNITS = {
    "m": Unit("meters", "m", "length", "1"),
    "mm": Unit("millimeters", "mm", "length", "0.001"),
    "cm": Unit("centimeters", "cm", "length", "0.01"),
    "km": Unit("kilometers", "km", "length", "1000"),
    "in": Unit("inches", "inch", "length", "0.0254"),
    "ft": Unit("feet", "ft", "length", "0.3048"),
    "yd": Unit("yards", "yd", "length", "0.9144"),
    "mi": Unit("miles", "mi", "length", "1609.344"),
    "g": Unit("grams", "g", "mass", "1"),
    "kg": Unit("kilograms", "kg", "mass", "1000"),
    "oz": Unit("ounces", "oz", "mass", "28.349523125"),
    "lb": Unit("pounds", "lbs", "mass", "453.59237"),
    "l": Unit("liters", "l", "volume", "1"),
    "ml": Unit("milliliters", "ml", "volume", "0.001"),
    "cup": Unit("cups", "cups", "volume", "0.2365882365"),  # of the United States, as the next two
    "pt": Unit("pints", "pt", "volume", "0.473176473"),
    "gal": Unit("gallons", "gal", "volume", "3.785411784"),
    "K": Unit("kelvins", "K", "temperature", "1"),
    "C": Unit("degrees Celsius", "°C", "temperature", "1", "273.15"),
    "F": Unit("degrees Fahrenheit", "°F", "temperature", "5/9", "459.67"),
    "m/s": Unit("meters per second", "m/s", "speed", "1"),
    "km/h": Unit("kilometers per hour", "km/h", "speed", "5/18"),
    "mph": Unit("miles per hour", "mph", "speed", "0.44704"),
}
"""By the symbol that a call is written with."""


def convert(value: Fraction, unit: str, to: str) -> Fraction:
    """A value in another unit, exactly.

    Args:
        unit, to: symbols, of `UNITS`.

    Raises:
        ValueError: a symbol that is not known, or units of two kinds; names it.

    >>> convert(Fraction("12.5"), "km", "mi")
    Fraction(390625, 50292)
    >>> convert(Fraction(100), "C", "F"), convert(Fraction("-459.67"), "F", "K")
    (Fraction(212, 1), Fraction(0, 1))
    >>> convert(Fraction(1), "km", "kg")
    Traceback (most recent call last):
    ValueError: 'km' is a length, 'kg' a mass
    """
    for symbol in (unit, to):
        if symbol not in UNITS:
            raise ValueError(f"unknown unit {symbol[:20]!r} (known: {', '.join(UNITS)})")
    old, new = UNITS[unit], UNITS[to]
    if old.kind != new.kind:
        raise ValueError(f"{unit!r} is a {old.kind}, {to!r} a {new.kind}")
    common = (value + Fraction(old.offset)) * Fraction(old.factor)
    return common / Fraction(new.factor) - Fraction(new.offset)
