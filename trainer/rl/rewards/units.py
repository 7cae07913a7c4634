"""Units of measurement, by pint: the `rewards` extra.

pint's names differ from a scientist's in a few places, which are set right here: pH is a picohenry to it, bp the point
of a printer, and 1 Hz equals 1 rad/s. Names that mean constants to it (`c`, `e`, `k`, `pi`) are not units.
"""

from __future__ import annotations

import re
import threading
from decimal import Decimal
from functools import cache
from typing import Any

from trainer.rl.rewards.base import RewardError
from trainer.rl.rewards.numbers import plain

_CONSTANTS = re.compile(
    r"\w+_constant|elementary_charge|speed_of_light|pi|tau|avogadro_number|standard_gravity|vacuum_\w+"
)
_FORM = re.compile(r"[A-Za-zµΩÅ°%_'\"][A-Za-z0-9µΩÅ°%_'\"/·⋅×*^+\-{}() \u2009]*|1\s*/.+|/.+")
_LONGEST = 60  # characters of a unit
Unit = Any  # a unit of pint


_MAKING = threading.Lock()


def _registry() -> Any:
    """One for all threads: units of two registries cannot be compared."""
    with _MAKING:
        return _made_registry()


@cache
def _made_registry() -> Any:
    try:
        import pint
    except ImportError as error:
        remedy = "pip install -e '.[rewards]'"
        text = f"units need pint, which is not installed; {remedy}"
        raise RewardError(text, where="pint", allowed=remedy) from error
    registry: Any = pint.UnitRegistry(autoconvert_offset_to_baseunit=True, cache_folder=None)
    registry.define("base_pair = [base_pairs] = bp")
    registry.define("nucleotide = base_pair = nt")
    return registry


@cache
def read_unit(text: str) -> Unit | None:
    """The unit that a text names: `kJ/mol`, `kJ mol-1`, `m/s²`, `°C`, `%`; None where it does not name one."""
    text = plain(text)
    if not text or len(text) > _LONGEST or not _FORM.fullmatch(text) or text == "pH":
        return None
    written = re.sub(r"\^\{([+-]?\d+)\}", r"^\1", text).replace("{", "").replace("}", "")
    written = re.sub(r"°\s*([CF])\b", r"deg\1", written).replace("°", "degree")
    written = re.sub(r"([A-Za-zµΩÅ)])\^?([+-]?\d{1,2})(?![\d.])", r"\1**(\2)", written)
    written = re.sub(r"[·⋅×\u2009]|(?<=[\w)%])\s+(?=[A-Za-zµΩÅ(%])", "*", written)
    written = re.sub(r"^\s*/", "1/", written)
    if re.search(r"\d{4,}|(?:\*\*|\^)[^A-Za-z]*(?:\d{3}|\*\*|\^)", written):  # towers of powers take forever
        return None
    try:
        unit = _registry().parse_units(written)
        return None if any(map(_CONSTANTS.fullmatch, _powers(unit))) else unit
    except RewardError:
        raise
    except Exception:  # of pint's parser: undefined names, numbers, brackets, tokens of Python
        return None


def convert(value: Decimal, unit: Unit, into: Unit) -> Decimal | None:
    """The value in another unit, to 15 digits; None where that has another dimension. °C and °F are points of a scale:
    25 °C is 298.15 K.

    Radians have no dimension to pint, so that rad/s would be Hz; here they may not be mixed."""
    if unit == into:
        return value
    if _turns(unit) != _turns(into):
        return None
    try:
        return Decimal(repr(float(_registry().Quantity(float(value), unit).to(into).magnitude)))
    except Exception:  # another dimension, or one of decibels and the like
        return None


def _powers(unit: Unit) -> dict[str, float]:
    return {name: float(power) for name, power in _registry().Quantity(1, unit).unit_items()}


_ANGLES = re.compile(
    r"(?:milli|micro)?(?:radian|degree|turn|revolution|cycle|arcminute|arcsecond|steradian|grade|revolutions_per_\w+)"
)


def _turns(unit: Unit) -> float:
    """The power of angles in a unit."""
    return sum(power for name, power in _powers(unit).items() if _ANGLES.fullmatch(name))
