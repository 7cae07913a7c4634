"""The recipes of Transformer Engine that run on a machine, from version numbers alone."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

from trainer.model.experts.te import private
from trainer.model.experts.te.support import (
    RECIPES,
    multiple_of_rows,
    numbers,
    unavailable,
    unavailable_with,
    why_list_path,
)

HOPPER, BLACKWELL = (9, 0), (10, 0)
CPU = torch.device("cpu")


def asked(recipe: str = "fp8_block", **changed: Any) -> str | None:
    machine = {"capability": HOPPER, "cuda": "13.0", "installed": "2.20.2"}
    return unavailable_with(recipe, **(machine | changed))


@pytest.mark.parametrize(
    ("recipe", "capability", "runs"),
    [
        ("fp8_block", (8, 9), False), ("fp8_block", HOPPER, True), ("fp8_block", BLACKWELL, True),
        ("fp8_block", (11, 0), True), ("fp8_block", (12, 0), True), ("fp8_block", (12, 1), True),
        ("fp8_current", (8, 0), False), ("fp8_current", (8, 9), True), ("fp8_current", HOPPER, True),
        ("fp8_delayed", (8, 0), False), ("fp8_delayed", HOPPER, True), ("fp8_delayed", (12, 0), True),
        ("mxfp8", HOPPER, False), ("mxfp8", BLACKWELL, True), ("mxfp8", (10, 3), True), ("mxfp8", (11, 0), True),
        ("mxfp8", (12, 0), False),
    ],
)  # fmt: skip
def test_gpus(recipe, capability, runs):
    assert (asked(recipe, capability=capability) is None) == runs


def test_what_is_missing_and_what_brings_it():
    install = "pip install --no-build-isolation -e '.[gpu]'"
    for reason, data in (
        (asked("mxfp8"), ["Blackwell", "10.0", "9.0"]),
        (asked("mxfp8", capability=(12, 0)), ["12.0", "MXFP8", "fp8_block"]),
        (asked(cuda="12.6"), ["12.9", "12.6"]),
        (asked(installed=None), ["Transformer Engine", install]),
        (asked(installed="2.14.0+abc"), ["2.14.0+abc", "2.15", install]),
        (asked(error="libcublas.so.13"), ["2.20.2", "libcublas.so.13", install]),
        (asked(capability=None, cuda=None, installed=None), ["Hopper", "9.0", "CPU", "Transformer Engine", install]),
        (asked(capability=None), ["Hopper", "9.0", "CPU"]),
    ):
        assert reason is not None
        assert all(datum in reason for datum in data), reason
    assert install not in str(asked(capability=None))


@pytest.mark.parametrize("recipe", RECIPES)
def test_on_a_cpu_nothing_is_imported(recipe, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)  # an import ends in an ImportError
    monkeypatch.setattr(private, "installed", lambda: "2.20.2")
    answer = unavailable(recipe, CPU)
    assert answer is not None
    assert "CPU" in answer


def test_on_a_gpu_the_package_has_to_load(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformer_engine", None)
    monkeypatch.setattr(private, "installed", lambda: "2.20.2")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: HOPPER)
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    answer = unavailable("fp8_block", torch.device("cuda"))
    assert answer is not None
    assert answer.startswith("Transformer Engine 2.20.2 does not load: ")


def test_versions():
    assert numbers("2.20.2") == (2, 20)
    assert numbers("2.9.0+cu13") == (2, 9)
    assert numbers("13.0") == (13, 0)
    assert numbers("2.21.0.dev0") == (2, 21)


@pytest.mark.parametrize(
    ("recipe", "capability", "cublaslt", "reason"),
    [
        ("fp8_block", HOPPER, 130600, None),
        ("fp8_block", HOPPER, 130500, "cuBLASLt 13.5 < 13.6"),
        ("fp8_block", HOPPER, 120905, "cuBLASLt 12.9 < 13.6"),
        ("fp8_block", BLACKWELL, 130800, "Float8BlockScaling has no native grouped GEMM on Blackwell"),
        ("fp8_current", HOPPER, 130500, None),
        ("fp8_current", HOPPER, 130400, "cuBLASLt 13.4 < 13.5"),
        ("fp8_current", (11, 0), 130300, None),
        ("fp8_current", (8, 9), 130800, "Float8CurrentScaling has no native grouped GEMM on compute capability 8.9"),
        ("fp8_delayed", HOPPER, 130800, "DelayedScaling has no native grouped GEMM on Hopper"),
        ("mxfp8", BLACKWELL, 130300, None),
        ("mxfp8", BLACKWELL, 130200, "cuBLASLt 13.2 < 13.3"),
    ],
)
def test_the_native_path(recipe, capability, cublaslt, reason):
    assert why_list_path(recipe, capability, cublaslt, "2.20.2", 64) == reason
    assert why_list_path(recipe, capability, cublaslt, "2.18.0", 64) == "Transformer Engine 2.18.0 < 2.19"


def test_padding():
    assert [multiple_of_rows(recipe, native=False) for recipe in RECIPES] == [16, 16, 16, 32]
    assert {multiple_of_rows(recipe, native=True) for recipe in RECIPES} == {128}
