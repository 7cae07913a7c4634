"""Rewards of answers: numbers and expressions, quantities, choices, form and combinations."""

import threading
from concurrent.futures import ThreadPoolExecutor
from decimal import Decimal

import pytest

from trainer.rl.rewards import units
from trainer.rl.rewards.base import Question, RewardError, Verdict, build_reward, close_reward, counts_of

pytest.importorskip("pint", reason="pip install -e '.[rewards]'")
pytest.importorskip("math_verify", reason="pip install -e '.[rewards]'")


def ask(answer, **data):
    return Question(7, "?", answer, data)


MATH = [
    # reference, answer, right
    ("1.5e-3", "1.5e-3", 1),
    ("0.0015", r"\boxed{1.5e-3}", 1),
    ("1.5", r"\boxed{1.5e-3}", 0),
    ("1e-8", r"\boxed{2e-8}", 0),
    ("0", r"\boxed{1e-9}", 0),
    ("0.5", r"\boxed{50\%}", 1),
    ("50", r"\boxed{50\%}", 0),
    ("50 %", r"\boxed{0.5}", 1),
    ("50 %", r"\boxed{50}", 0),
    ("5 cm", r"\boxed{5\,\text{m}}", 0),
    ("5 cm", r"\boxed{0.05\,\text{m}}", 1),
    ("5 cm", r"\boxed{5}", 0),
    ("5", r"\boxed{5\,\text{cm}}", 1),
    ("10000001", r"\boxed{10000000}", 0),
    ("12,345", r"\boxed{12{,}345}", 1),
    ("42", "It is 41. The answer is 42.", 1),
    ("42", "The answer is 42. No: the answer is 41.", 0),
    ("42", "", 0),
    ("42", "<think>42", 0),
    (r"Half of 84: $x=\boxed{42}$.", "42", 1),
    (r"Half of 84: $x=\boxed{1e-8}$.", r"\boxed{2e-8}", 0),
]
EXPRESSIONS = [
    (r"\frac{1}{3}", r"\boxed{1/3}", 1),
    (r"\frac{1}{3}", r"\boxed{0.33}", 0),
    (r"So $\boxed{\frac{1}{\sqrt{2}}}$.", r"\boxed{\frac{\sqrt{2}}{2}}", 1),
    ("0.25", r"\boxed{\frac{1}{4}}", 1),
    ("x^2+2x+1", r"\boxed{(x+1)^2}", 1),
    ("x^2+2x+1", r"\boxed{(x-1)^2}", 0),
    (r"\{1, 2\}", r"\boxed{\{2, 1\}}", 1),
    ("[0,1)", r"\boxed{(0,1)}", 0),
    (r"\frac{3}{2} \times 10^{-8}", r"\boxed{1.5e-8}", 1),
    (r"\frac{3}{2} \times 10^{-8}", r"\boxed{2.5e-8}", 0),
    (r"\sqrt{2} \times 10^{-9}", r"\boxed{0}", 0),
    ("3", r"\boxed{2x}", 0),
    ("2x", r"\boxed{2}", 0),
]


@pytest.fixture(scope="module")
def math():
    reward = build_reward("math")
    yield reward
    close_reward(reward)


@pytest.mark.parametrize(("reference", "answer", "value"), [*MATH, *EXPRESSIONS])
def test_mathematics(math, reference, answer, value):
    assert math(ask(reference), answer).value == value


def test_the_units_that_a_question_asks_for_may_be_left_out(math):
    assert math(ask("5", unit="cm"), r"\boxed{5}").value == 1
    assert math(ask("5", unit="cm"), r"\boxed{0.05 \text{ m}}").value == 1
    assert math(ask("5", unit="cm"), r"\boxed{5 \text{ m}}").value == 0


def test_a_comparison_that_takes_too_long_ends_and_is_counted():
    reward = build_reward({"name": "math", "seconds": 0.3})
    reward(ask("x"), r"\boxed{y}")  # starts the process
    verdict = reward(ask(r"\sum_{k=1}^{20000} \frac{1}{k^{30}} x"), r"\boxed{\prod_{k=1}^{30000} (1+\frac{x}{k^{3}})}")
    assert verdict.value == 0
    assert verdict.reason
    assert counts_of(reward) == {"math/timeouts": 1}
    assert reward(ask("x+x"), r"\boxed{2x}").value == 1  # another process
    close_reward(reward)


QUANTITIES = [
    ("101325 Pa", {}, "The answer is 1 atm.", 1),
    ("101325 Pa", {}, "The answer is 1.02 atm.", 0),
    ("101325 Pa", {"tolerance": 0.05}, "The answer is 1.02 atm.", 1),
    ("101325 Pa", {}, "The answer is 101325.", 0),
    (101325, {"unit": "Pa"}, "The answer is 101325.", 1),
    (101325, {"unit": "Pa"}, "The answer is 101.3 kPa.", 1),
    (101325, {"unit": "Pa"}, "The answer is 101.3 kJ.", 0),
    (0, {}, "1e-9", 0),
    (0, {"absolute": 1e-6}, "1e-9", 1),
    ("1e-9", {}, "1.02e-9", 0),
    ("298.15 K", {}, "25 °C", 1),
    ("298.15 K", {}, "about 25 degrees or so", 0),
    (3.2, {}, "3.2 furlongs", 1),
    (r"So it boils at $\boxed{298.15\,\text{K}}$.", {}, "25 °C", 1),
    (3.2, {}, "3.2 or 3.3", 0),
]


@pytest.mark.parametrize(("reference", "data", "answer", "value"), QUANTITIES)
def test_quantities(reference, data, answer, value):
    assert build_reward("quantity")(ask(reference, **data), answer).value == value


def test_a_unit_can_be_required():
    strict = build_reward({"name": "quantity", "unit_required": True})
    assert strict(ask(5, unit="cm"), "5").value == 0
    assert strict(ask(5, unit="cm"), "5 cm").value == 1


@pytest.mark.parametrize(
    ("reward", "question"),
    [
        ("quantity", ask("high")),
        ("quantity", ask(5, unit="smoots per blink")),
        ("quantity", ask(5, tolerance=-1)),
        ("choice", ask("E", options=["one", "two"])),
        ("choice", ask("A", options=3)),
    ],
)
def test_a_question_that_cannot_be_graded_is_named(reward, question):
    with pytest.raises(RewardError) as caught:
        build_reward(reward)(question, r"\boxed{x_1}")
    assert "question 7" in caught.value.where


def test_a_reference_that_is_nothing_is_named(math):
    with pytest.raises(RewardError) as caught:
        math(ask(""), "x")
    assert caught.value.where == "question 7"


GASES = {"A": "helium", "B": "neon", "C": "argon", "D": "krypton"}
CHOICES = [
    ("B", "B", 1),
    ("B", "(B)", 1),
    ("B", "**B. neon**", 1),
    ("B", "The answer is (B), as neon is lighter.", 1),
    ("B", r"Not A. \boxed{\text{B}}", 1),
    ("B", "neon", 1),
    ("B", "The answer is neon.", 1),
    ("neon", "The answer is B.", 1),
    (r"It is light: \boxed{\text{(B)}}", "B", 1),
    ("$B$", "A", 0),
    ("**Neon**.", "B", 1),
    ("B", "The answer is (A) or (B).", 0),
    ("B", "B, or A", 0),
    ("B", "B, C", 0),
    ("B", "A", 0),
    ("B", "It may be anything.", 0),
    ("B", "Because it is light.", 0),
    ("B", "", 0),
    ("AC", "A, C", 1),
    ("AC", "The answer is A and C.", 1),
    ("AC", "A", 0),
    ("AC", "ABC", 0),
]


@pytest.mark.parametrize(("reference", "answer", "value"), CHOICES)
def test_choices(reference, answer, value):
    assert build_reward("choice")(ask(reference, options=GASES), answer).value == value
    assert build_reward("choice")(ask(reference, options=[*GASES.values()]), answer).value == value


@pytest.mark.parametrize(
    ("options", "answer", "value"),
    [
        ({"thinking": True}, "<think>so</think>4", 1),
        ({"thinking": True}, "so</think>4", 1),
        ({"thinking": True}, "<think></think>4", 0),
        ({"thinking": True}, "<think>so</think>", 0),
        ({"thinking": True}, "<think>a</think>b<think>c</think>d", 0),
        ({"thinking": True}, "4", 0),
        ({"boxed": True}, r"\boxed{4}", 1),
        ({"boxed": True}, r"\boxed{4} \boxed{5}", 0),
        ({"boxed": True}, r"\boxed{ }", 0),
        ({"boxed": True, "thinking": True}, r"<think>\boxed{3}?</think>\boxed{4}", 1),
        ({"pattern": r"\d+ m"}, "x</think> 12 m", 1),
        ({"pattern": r"\d+ m"}, "12 m.", 0),
        ({"longest": 3}, "1234", 0),
    ],
)
def test_form(options, answer, value):
    assert build_reward({"name": "format", **options})(ask(""), answer).value == value


def test_sums_and_products():
    parts = ["exact", {"name": "format", "longest": 2}]
    total = build_reward({"name": "sum", "parts": parts, "weights": [1, -0.5]})
    assert [total(ask("42"), answer).value for answer in ("42", "41", "423")] == [0.5, -0.5, 0]
    gates = build_reward({"name": "product", "parts": parts})
    assert [gates(ask("42"), answer).value for answer in ("42", "41", "423")] == [1, 0, 0]


def test_a_product_does_not_ask_behind_a_0():
    from trainer.rl.rewards.combine import Product

    asked = []

    def costly(question, answer):
        asked.append(answer)
        return Verdict(0.5)

    gates = Product([build_reward("exact"), costly])
    assert [gates(ask("42"), answer).value for answer in ("41", "42")] == [0, 0.5]
    assert asked == ["42"]


@pytest.mark.parametrize(
    ("cfg", "where"),
    [
        ({"name": "sum", "parts": ["exact"], "weights": [1, 2]}, "rl.reward.weights"),
        ({"name": "sum", "parts": ["exact"]}, "rl.reward.weights"),
        ({"name": "sum", "parts": [], "weights": []}, "rl.reward.parts"),
        ({"name": "product", "parts": ["exact", "mth"]}, "rl.reward.parts[1]"),
        ({"name": "format"}, "rl.reward.name"),
        ({"name": "format", "pattern": "("}, "rl.reward.pattern"),
    ],
)
def test_faults_name_the_option(cfg, where):
    with pytest.raises(RewardError) as caught:
        build_reward(cfg)
    assert caught.value.where == where
    assert caught.value.allowed


@pytest.mark.parametrize(
    ("name", "references", "answer", "value"),
    [
        ("exact", ["a", "b"], "b", 1), ("math", ["1/3", "2"], "2", 1), ("math", ["1/3", "2"], "3", 0),
        ("quantity", ["5 cm", "3 s"], "0.05 m", 1), ("choice", ["A", "C"], "(C)", 1), ("choice", ["A", "C"], "B", 0),
        ("overlap", ["12", "34"], "32", 0.5),
    ],
)  # fmt: skip
def test_one_of_several_references_is_enough(name, references, answer, value):
    reward = build_reward(name)
    assert reward(ask(references), answer).value == value
    close_reward(reward)


@pytest.mark.parametrize(
    ("reference", "answer", "value"),
    [
        ("zinc  sulfide", "It is Zinc sulfide.", 0), ("zinc  sulfide", r"\boxed{Zinc sulfide}.", 1),
        ("a > b", "So:\nThe answer is **a > b**.", 1), (["a > b", "a, b"], "a, b", 1), ("a > b", "b > a", 0),
        ("2", "<think>2", 0), ("2", "", 0),
        (r"\boxed{2}", r"\boxed{2}", 1), (r"So $\boxed{\frac{1}{2}}$.", r"It is $\frac{1}{2}$", 0),
        (r"So $\boxed{\frac{1}{2}}$.", r"The answer is $\frac{1}{2}$", 1),
    ],
)  # fmt: skip
def test_a_final_answer_is_a_text(reference, answer, value):
    assert build_reward("final")(ask(reference), answer).value == value


def test_the_record_names_the_reward_of_its_kind():
    parts = {"number": {"name": "quantity", "relative": 0.1}, "option": "choice", "math": "math"}
    reward = build_reward({"name": "kind", "parts": parts, "key": "of"})
    assert reward(ask("10 K", of="number"), "10.5 K").value == 1
    assert reward(ask("A", of="option"), "A").value == 1
    assert reward(ask("1/2", of="math"), "2/4").value == 1
    assert reward(ask("A", of="option"), "10.5 K").value == 0
    for other in ({"of": "word"}, {}, {"of": None}):
        with pytest.raises(RewardError) as caught:
            reward(ask("A", **other), "A")
        assert caught.value.allowed == ("number", "option", "math")
    assert {name.partition("/")[0] for name in counts_of(reward)} <= {"math"}
    close_reward(reward)


def test_units_that_threads_read_at_once_are_of_one_registry():
    """Two threads each made a registry, and their units cannot be compared."""
    units._made_registry.cache_clear()
    units.read_unit.cache_clear()
    barrier = threading.Barrier(8)

    def read(number):
        barrier.wait()
        return units.read_unit("kJ/mol" if number % 2 else "J/mol")

    with ThreadPoolExecutor(8) as pool:
        found = [*pool.map(read, range(8))]
    assert [units.convert(Decimal(1), unit, found[0]) for unit in found] == [1, 1000] * 4
