"""bf16: log-probabilities of generation beside those of a training forward pass of the same model."""

import pytest

from tests.trainer.engine.bf16 import compare, usual
from trainer.model.exact.check import dependent_products


@pytest.mark.slow
def test_log_probabilities_are_near_those_of_training_in_either_arithmetic():
    found = compare(20)
    for of in found.values():
        assert of.tokens > 500
        assert of.mean <= 0.01
        assert of.k3 <= 1e-4
    assert found["exact"].differing <= 0.01 * found["exact"].tokens < found["usual"].differing


@pytest.mark.slow
def test_they_are_equal_where_no_product_depends_on_the_number_of_blocks():
    assert dependent_products(usual(24)) == []
    found = compare(24)
    assert found["exact"].differing == 0 < found["usual"].differing
    assert found["exact"].routes == 1
