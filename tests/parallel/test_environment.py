"""The environment of a rank: every variable that is read, with values that torchrun does not set."""

import re

import pytest

from parallel.environment import Environment, read_environment
from parallel.errors import UserError
from parallel.world import WorldError, start_world

RUN = {"WORLD_SIZE": "4", "RANK": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "n0", "MASTER_PORT": "29500"}


def test_what_torchrun_sets_is_read():
    assert read_environment({}) == Environment(1, 0, 0, "", 0)
    assert read_environment(RUN) == Environment(4, 3, 1, "n0", 29500)
    assert read_environment({"MASTER_PORT": "abc"}) == Environment()  # a process alone does not read it


GARBAGE = ["abc", "", " ", "-1", "1.5", "1e3", "0x2", "٣", "²", "9" * 5000, "1 2", "+1", "None"]


@pytest.mark.parametrize("name", ["WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_PORT"])
@pytest.mark.parametrize("text", GARBAGE, ids=[text[:10] for text in GARBAGE])
def test_garbage_is_one_fault_of_its_variable(name, text, monkeypatch):
    with pytest.raises(UserError) as caught:
        read_environment({**RUN, name: text})
    (fault,) = caught.value.faults
    if name == "MASTER_PORT" and not text.strip():
        assert (fault.where, fault.allowed) == ("WORLD_SIZE", "with MASTER_PORT, as torchrun sets them")
        return
    assert (fault.where, fault.value) == (name, text)
    assert len(fault.text) < 300
    for variable, value in {**RUN, name: text}.items():
        monkeypatch.setenv(variable, value)
    with pytest.raises(WorldError) as refused:
        start_world("cpu")
    assert refused.value.where == name


@pytest.mark.parametrize(
    ("name", "text", "allowed"),
    [
        ("WORLD_SIZE", "0", "from 1"),
        ("RANK", "4", "from 0 to 3"),
        ("MASTER_PORT", "65536", "to 65535"),
        ("MASTER_PORT", "0", "from 1"),
    ],
)
def test_numbers_out_of_range_are_refused(name, text, allowed):
    with pytest.raises(UserError) as caught:
        read_environment({**RUN, name: text})
    assert (caught.value.where, caught.value.value) == (name, text)
    assert allowed in caught.value.allowed


@pytest.mark.parametrize("text", ["x", "1", "-1"])
def test_a_process_alone_has_one_rank_to_offer(text):
    with pytest.raises(UserError) as caught:
        read_environment({"RANK": text})
    assert (caught.value.where, caught.value.value) == ("RANK", text)
    assert re.findall(r"\d+", caught.value.allowed) == ["0"]


def test_all_variables_are_reported_at_once():
    with pytest.raises(UserError) as caught:
        read_environment({"WORLD_SIZE": "2", "RANK": "x", "LOCAL_RANK": "y"})
    assert [fault.where for fault in caught.value.faults] == ["RANK", "LOCAL_RANK", "WORLD_SIZE"]
