"""Writing Hugging Face directories: what other programs read of them, what memory it takes, and what stops it."""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from trainer.storage.manifest import CHECKPOINT
from trainer.weights import hf_write as write
from trainer.weights.beside.side_files import side_files
from trainer.weights.hf_files import BITS, HuggingFaceError, stored_tensors
from trainer.weights.hf_read import DTYPES
from trainer.weights.hf_write import Bundle, OutputTensor, copy_of, write_directory

CONFIG = {"model_type": "qwen3_moe", "note": "größer"}


def tensors() -> dict[str, Tensor]:
    """One of each dtype, with sizes that put wide numbers at odd offsets unless the writer aligns them."""
    generator = torch.Generator().manual_seed(1)
    bits = {name: torch.randint(0, 2, (3, 5), generator=generator) for name in DTYPES}
    return {name: values.to(DTYPES[name]) for name, values in bits.items()} | {"none": torch.empty(0, 4)}


def bundles(named: dict[str, Tensor], together: int = 1) -> list[Bundle]:
    spelling = {dtype: name for name, dtype in DTYPES.items()}
    items = list(named.items())
    found = []
    for first in range(0, len(items), together):
        part = items[first : first + together]
        outputs = tuple(OutputTensor(name, spelling[tensor.dtype], tuple(tensor.shape)) for name, tensor in part)
        found.append(Bundle(outputs, lambda part=part: [tensor for _, tensor in part]))
    return found


def loaded(directory: Path) -> dict[str, Tensor]:
    """All tensors, by the safetensors library."""
    found = {}
    for file in sorted(directory.glob("*.safetensors")):
        with safe_open(file, framework="pt") as handle:
            found |= {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
    return found


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == tensor.dtype, name
        assert found[name].shape == tensor.shape, name
        assert torch.equal(found[name].float(), tensor.float()), name


@pytest.mark.parametrize(("together", "shard_bytes", "files"), [(1, 10**9, 1), (2, 100, 7), (1, 1, 17)])
def test_the_library_reads_every_dtype(tmp_path, together, shard_bytes, files):
    assert set(DTYPES) == set(BITS)
    named, told = tensors(), []
    target = tmp_path / "deeper" / "out"
    total = write_directory(target, bundles(named, together), CONFIG, shard_bytes=shard_bytes, wrote=told.append)
    assert total == sum(told) == sum(tensor.nbytes for tensor in named.values())
    assert len(list(target.glob("*.safetensors"))) == files
    assert_same(loaded(target), named)
    index = json.loads((target / "model.safetensors.index.json").read_text())
    assert index["metadata"] == {"total_size": total}
    assert set(index["weight_map"]) == set(named)
    assert set(index["weight_map"].values()) == {file.name for file in target.glob("*.safetensors")}
    assert json.loads((target / "config.json").read_text()) == CONFIG
    assert [path.name for path in target.parent.iterdir()] == ["out"]
    for tensor in stored_tensors(target).values():
        assert tensor.start % (BITS[tensor.dtype] // 8) == 0, tensor.name
    again = tmp_path / "copy"
    write_directory(again, [copy_of(tensor) for tensor in stored_tensors(target).values()], CONFIG)
    assert_same(load_file(again / "model-00001-of-00001.safetensors"), named)


def test_no_tensors_are_a_directory_too(tmp_path):
    write_directory(tmp_path / "out", [], CONFIG)
    assert stored_tensors(tmp_path / "out") == {}


def test_side_files_and_a_manifest_of_hashes(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    kept = ["tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json", "merges.txt",
            "chat_template.jinja", "generation_config.json", "preprocessor_config.json", "modeling_x.py"]  # fmt: skip
    for name in [*kept, "config.json", "model.safetensors", "model.safetensors.index.json", "optimizer.pt"]:
        (source / name).write_text(name)
    target = tmp_path / "out"
    write_directory(target, bundles(tensors()), CONFIG, side_files(source), manifest={"from": "there"})
    others = {"config.json", "model.safetensors.index.json", "model-00001-of-00001.safetensors", "manifest.json"}
    assert {path.name for path in target.iterdir()} == {*kept, *others}
    assert all((target / name).read_text() == name for name in kept)
    manifest = CHECKPOINT.read(target)
    assert manifest["from"] == "there"
    assert set(manifest["files"]) == {*kept, *others} - {"manifest.json"}
    assert not any(CHECKPOINT.check_file(target, name, facts) for name, facts in manifest["files"].items())


def test_nothing_is_overwritten(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("")
    for name, value, allowed in (
        ("out", None, "a directory that does not exist"),
        ("link", None, "a directory that does not exist"),
        ("file/out", "Not a directory", "a path that can be written, with enough space"),
    ):
        with pytest.raises(HuggingFaceError) as refused:
            write_directory(tmp_path / name, bundles(tensors()), CONFIG)
        error = refused.value
        assert (error.where, error.value, error.allowed) == (str(tmp_path / name), value, allowed)


def test_a_disk_that_is_too_small_is_reported_before_the_first_byte(tmp_path, monkeypatch):
    def never() -> list[Tensor]:
        raise AssertionError("a tensor was made")

    huge = Bundle((OutputTensor("x", "F32", (1 << 40,)),), never)
    with pytest.raises(HuggingFaceError) as refused:
        write_directory(tmp_path / "out", [huge], CONFIG)
    assert refused.value.value < 1 << 42 <= refused.value.allowed
    assert f"{refused.value.allowed / 1e9:,.3f} GB" in refused.value.lines[0]
    free = shutil.disk_usage(tmp_path)._replace(free=100)
    monkeypatch.setattr(write.shutil, "disk_usage", lambda place: free)
    with pytest.raises(HuggingFaceError) as refused:
        write_directory(tmp_path / "out", bundles(tensors()), CONFIG)
    assert (refused.value.where, refused.value.value) == (str(tmp_path / "out"), 100)
    assert refused.value.allowed > 100
    assert list(tmp_path.iterdir()) == []


def test_what_fails_halfway_leaves_nothing(tmp_path):
    def fails() -> list[Tensor]:
        assert list(tmp_path.glob("out.*.octavo.tmp/model-*"))
        raise HuggingFaceError("this one cannot be read", where="x")

    broken = [*bundles(tensors()), Bundle((OutputTensor("x", "F32", (4,)),), fails)]
    with pytest.raises(HuggingFaceError) as failure:
        write_directory(tmp_path / "out", broken, CONFIG, shard_bytes=50)
    assert failure.value.where == "x"
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_process_left_is_written_anew(tmp_path):
    named = tensors()
    if (child := os.fork()) == 0:
        try:
            killed = Bundle((OutputTensor("x", "F32", (4,)),), lambda: os._exit(9))
            write_directory(tmp_path / "out", [*bundles(named), killed], CONFIG, shard_bytes=50)
        finally:
            os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    (left,) = tmp_path.iterdir()
    assert list(left.glob("model-*"))
    others = ["out.octavo.tmp", "out.old.octavo.tmp", "out.0123abcd.octavo.tmp"]  # no process of ours made these
    for name in others:
        (tmp_path / name).mkdir()
        (tmp_path / name / "notes").write_text("")
    write_directory(tmp_path / "out", bundles(named), CONFIG)
    assert_same(loaded(tmp_path / "out"), named)
    assert {path.name for path in tmp_path.iterdir()} == {"out", *others}
    assert all((tmp_path / name / "notes").exists() for name in others)


def test_two_writers_of_one_directory(tmp_path, monkeypatch):
    """The second is refused while the first writes; where both got past that, the first to end has the name."""
    target, told = tmp_path / "out", []

    def second() -> None:
        write_directory(target, bundles({"second": torch.zeros(3)}), CONFIG)

    def first() -> list[Tensor]:
        with pytest.raises(HuggingFaceError) as refused:
            second()
        assert (refused.value.where, refused.value.allowed) == (str(target), "another directory")
        assert re.fullmatch(rf"{target}\.\w{{8}}\.octavo\.tmp", refused.value.value)
        with monkeypatch.context() as blind:
            blind.setattr(write, "remove_unfinished", lambda target: None)
            second()
        told.append(sorted(path.name for path in tmp_path.iterdir()))
        return [torch.ones(3)]

    with pytest.raises(HuggingFaceError) as refused:
        write_directory(target, [Bundle((OutputTensor("first", "F32", (3,)),), first)], CONFIG)
    assert (refused.value.where, refused.value.allowed) == (str(target), "a directory that does not exist")
    assert len(told[0]) == 2
    assert_same(loaded(target), {"second": torch.zeros(3)})
    assert sorted(path.name for path in target.iterdir()) == [
        "config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json",
    ]  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def memory(line: str) -> int:
    """MB of this process: `VmRSS`, what it holds, or `VmHWM`, the most that it ever held."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(found.split()[1]) >> 10 for found in lines if found.startswith(line))


def test_memory_is_that_of_one_tensor(tmp_path):
    """A file of 20 tensors of 8 MB, written, read and written again, holds few of them at a time. The kernel counts
    this in each of its processors apart: a figure may be off by tens of MB where there are many."""
    shape = (8, 1 << 18)
    made = [Bundle((OutputTensor(f"x{n}", "F32", shape),), lambda: [torch.full(shape, 3.0)]) for n in range(20)]
    write_directory(tmp_path / "warm", made, CONFIG)  # what is allocated once for all does not count
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM
    before = memory("VmRSS")
    total = write_directory(tmp_path / "out", made, CONFIG)
    write_directory(tmp_path / "copy", [copy_of(t) for t in stored_tensors(tmp_path / "out").values()], CONFIG)
    assert total == 160 << 20
    assert memory("VmHWM") - before < 90


def test_groups_stay_together(tmp_path):
    named: dict[str, Any] = {f"x{number}": torch.full((10,), float(number)) for number in range(6)}
    write_directory(tmp_path / "out", bundles(named, together=2), CONFIG, shard_bytes=120)
    files = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())["weight_map"]
    assert [files[f"x{number}"][6:11] for number in range(6)] == ["00001", "00001", "00002", "00002", "00003", "00003"]


def test_a_target_that_exists_is_refused_with_its_fields(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(HuggingFaceError) as refused:
        write.make_room(tmp_path / "out", 0)
    assert (refused.value.where, refused.value.allowed) == (str(tmp_path / "out"), "a directory that does not exist")
    with pytest.raises(HuggingFaceError) as refused:
        write.make_room(tmp_path / "new", 1 << 80)
    assert (refused.value.where, refused.value.allowed) == (str(tmp_path / "new"), 1 << 80)
