import pickle

import pytest

from parallel.errors import Fault, UserError


def test_one_fault_is_its_fields_and_its_line():
    text = "parallel.ep=6 does not divide 8; use 1, 2, 4 or 8"
    error = UserError(text, where="parallel.ep", value=6, allowed=(1, 2, 4, 8))
    assert (error.where, error.value, error.allowed) == ("parallel.ep", 6, (1, 2, 4, 8))
    assert error.lines == ["error: parallel.ep=6 does not divide 8; use 1, 2, 4 or 8"]


def test_several_faults_are_a_line_each_and_survive_another_process():
    faults = [Fault("a=1 is too small; use 2 or more", "a", 1, "2 or more"), Fault("b is missing", "b")]
    error = pickle.loads(pickle.dumps(UserError(faults)))
    assert list(error.faults) == faults
    assert str(error) == "a=1 is too small; use 2 or more\nb is missing"
    assert error.lines == ["error: a=1 is too small; use 2 or more", "error: b is missing"]


def test_no_fault_is_a_mistake_of_the_caller():
    with pytest.raises(ValueError, match="at least one"):
        UserError([])
