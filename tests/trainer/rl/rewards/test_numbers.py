"""Numbers, units and final answers. Conversions are checked against CODATA and SI values typed here by hand."""

from decimal import Decimal

import pytest

from trainer.rl.rewards.final import final_answer
from trainer.rl.rewards.numbers import close, read_number

pytest.importorskip("pint", reason="pip install -e '.[rewards]'")
from trainer.rl.rewards.units import convert, read_unit

NUMBERS = [
    ("1.5e-3", "0.0015", ""),
    ("1.5 × 10⁻³", "0.0015", ""),
    (r"$1.5\times 10^{-3}$", "0.0015", ""),
    ("10^{-8}", "1e-8", ""),
    ("-10**-8", "-1e-8", ""),
    ("1,234.5", "1234.5", ""),
    (r"12{,}345", "12345", ""),
    ("6.62607015(12)e-34 J s", "6.62607015e-34", "J s"),
    ("1.2 ± 0.1 cm", "1.2", "cm"),
    (r"v = 3\times10^{8}\ \mathrm{m\,s^{-1}}", "3e8", "m\u2009s^{-1}"),
    ("1e5m", "1e5", "m"),
    ("50 %", "50", "%"),
    (r"50\%", "50", "%"),
    ("−40 °C", "-40", "°C"),
    ("5.", "5", ""),
]


@pytest.mark.parametrize(("text", "value", "unit"), NUMBERS, ids=[text for text, _, _ in NUMBERS])
def test_numbers_as_science_writes_them(text, value, unit):
    assert read_number(text) == (Decimal(value), unit)


@pytest.mark.parametrize("text", ["", "x", "1,23", "1 234", "5!", "1.5e-3.2", "1e99999", "Infinity", "5 × 3", "(1, 2)"])
def test_other_texts_are_not_numbers(text):
    assert read_number(text) is None


@pytest.mark.parametrize("text", ["3 or 4", "2x", "1/3", "2e", "3 pi", "2 c", "7 pH", "4 m^2000", "9 m**9**9"])
def test_what_follows_is_a_unit_or_the_text_is_not_a_number(text):
    found = read_number(text)
    assert found is None or read_unit(found.unit) is None


@pytest.mark.parametrize(
    ("value", "unit", "into", "expected"),
    [
        (25, "°C", "K", 298.15),
        (1, "kcal/mol", "kJ mol⁻¹", 4.184),
        (1, "eV", "J", 1.602176634e-19),
        (9.81, "m/s²", "cm s-2", 981),
        (50, "%", "dimensionless", 0.5),
        (180, "°", "rad", 3.141592653589793),
        (1, "atm", "Pa", 101325),
        (1, "kbp", "nt", 1000),
        (5, "cm", "s", None),
        (1, "rad/s", "Hz", None),
        (60, "rpm", "Hz", None),
    ],
)
def test_conversions(value, unit, into, expected):
    found = convert(Decimal(value), read_unit(unit), read_unit(into))
    assert found == expected if expected is None else float(found) == pytest.approx(expected, rel=1e-9)


def test_numbers_near_0_are_compared_in_relation():
    assert not close(Decimal("1e-30"), Decimal("2e-30"), 1e-6)
    assert close(Decimal("1.0000001e-30"), Decimal("1e-30"), 1e-6)
    assert not close(Decimal("1e-30"), Decimal(0), 0.5)
    assert close(Decimal("1e-30"), Decimal(0), 0.0, absolute=1e-20)


@pytest.mark.parametrize(
    ("text", "final"),
    [
        (r"so \boxed{1} or \boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"$\boxed{x^{2^{3}}}$", "x^{2^{3}}"),
        (r"\boxed{1} then \boxed{2", "1"),
        ("The answer is 42.", "42"),
        ("The answer is 1.5 m. It is long.", "1.5 m"),
        ("<think>Answer: 1</think>Answer: **3.5 m**", "3.5 m"),
        ("thinking without its first mark</think>7", "7"),
        ("<think>The answer is 42.", None),
        ("first\nlast", "last"),
        ("", None),
    ],
)
def test_the_final_answer(text, final):
    assert final_answer(text) == final
