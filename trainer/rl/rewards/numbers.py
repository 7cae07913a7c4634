r"""Numbers as science writes them: 1.5e-3, 1.5 × 10⁻³, $1.5\times 10^{-3}$, 1,234.5, 6.626(15)e-34, 9.81 m/s², 50 %.

A number is read exactly, as a decimal fraction. Behind it may be a unit, and nothing else: "3 or 4", "2x" and "1/3" are
not numbers here.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation
from typing import NamedTuple

MOST_DIGITS = 400  # of a number, and its largest exponent: more is not science
_SUPERSCRIPTS = str.maketrans("⁺⁻⁰¹²³⁴⁵⁶⁷⁸⁹", "+-0123456789")
_PLAIN = (
    (re.compile(r"[−–‒]"), "-"),
    (re.compile(r"\\(?:left|right|displaystyle|!)(?![a-zA-Z])"), ""),
    (re.compile(r"\\(?:text|mathrm|mathbf|textbf|operatorname|rm|mbox|si|unit)\s*\{((?:[^{}]|\{[^{}]*\})*)\}"), r"\1"),
    (re.compile(r"\\(?:,|;|:|>|quad|qquad|\s)|~|[\u00a0\u2009\u202f]"), "\u2009"),
    (re.compile(r"\{,\}"), ","),
    (re.compile(r"\\%"), "%"),
    (re.compile(r"\^\s*\{?\s*\\circ\s*\}?|\\degree\b|\\textdegree\b"), "°"),
    (re.compile(r"\\mu(?![a-zA-Z])|\\micro\b|μ"), "µ"),
    (re.compile(r"\\Omega(?![a-zA-Z])|\\ohm\b"), "Ω"),
    (re.compile(r"\\(?:AA|angstrom)(?![a-zA-Z])"), "Å"),
    (re.compile(r"\\(?:times|cdot)(?![a-zA-Z])"), "×"),
    (re.compile(r"\\pm(?![a-zA-Z])"), "±"),
    (re.compile(r"\\(?:approx|simeq|sim)(?![a-zA-Z])"), "≈"),
    (re.compile(r"\$|\\\(|\\\)"), ""),
)
_NAME = re.compile(r"^\s*(?:[A-Za-z][\w\\{}^]{0,12}\s*(?:=|≈)|≈|~|approximately|about|roughly)\s*", re.IGNORECASE)
_GAP = r"(?:,|\u2009)"
_DIGITS = rf"(?:\d{{1,3}}(?:{_GAP}\d{{3}})+(?!\d)|\d+)(?:\.\d*)?|\.\d+"
_POWER = r"10\s*(?:\^|\*\*)\s*\{?\s*([+-]?\d+)\s*\}?"
_NUMBER = re.compile(
    rf"\s*([+-]?)\s*(?:{_POWER}|({_DIGITS})(?:\(\d+\))?(?:[eE]([+-]?\d+)|[\s\u2009]*[×x*·⋅][\s\u2009]*{_POWER})?)"
    rf"(?:[\s\u2009]*(?:±|\+/-)[\s\u2009]*(?:{_DIGITS})(?:[eE][+-]?\d+)?)?[\s\u2009]*"
)
_UNIT = re.compile(r"^[A-Za-zµΩÅ°%'\"/][A-Za-z0-9µΩÅ°%'\"/·⋅×*^+\-_{}() \u2009]*$")


class Number(NamedTuple):
    """value: the number in front of the unit. unit: as it was written, without the spaces around it."""

    value: Decimal
    unit: str = ""

    @property
    def whole(self) -> bool:
        """True if it was written without a fraction or an exponent."""
        return self.value.as_tuple().exponent == 0


def plain(text: str) -> str:
    """The text with LaTeX of numbers and units replaced by characters, and superscripts by `^`."""
    for pattern, instead in _PLAIN:
        text = pattern.sub(instead, text)
    return re.sub(r"[⁺⁻]?[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda found: "^" + found[0].translate(_SUPERSCRIPTS), text).strip()


def read_number(text: str) -> Number | None:
    """The number that a text is, perhaps with a name in front ("x = 5", "about 5"), an uncertainty, which is dropped,
    and a unit; None for any other text. A per cent sign is a unit."""
    text = plain(text)
    text = text[found.end() :] if (found := _NAME.match(text)) else text
    matched = _NUMBER.match(text)
    if matched is None or len(text) > MOST_DIGITS:
        return None
    sign, alone, digits, exponent, of_ten = matched.groups()
    unit = text[matched.end() :].strip().strip("\u2009")
    if unit and not _UNIT.match(unit):
        return None
    try:
        power = int(exponent or of_ten or alone or 0)
        written = re.sub(_GAP, "", digits or "1").removesuffix(".")
        value = Decimal(f"{sign}{written}") if not power else Decimal(f"{sign}{written}e{power}")
    except (InvalidOperation, ValueError):
        return None
    return Number(value, unit) if abs(power) <= MOST_DIGITS else None


def close(found: Decimal, wanted: Decimal, relative: float, absolute: float = 0.0) -> bool:
    """True if found differs from wanted by at most `relative` of wanted, or by `absolute`. Near 0 too, a number is
    compared in relation to the one that is wanted; only `absolute` makes 1e-30 equal to 0."""
    gap = abs(found - wanted)
    return gap <= abs(wanted) * Decimal(repr(relative)) or gap <= Decimal(repr(absolute))
