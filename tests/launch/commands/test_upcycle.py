"""`octavo upcycle` on the command line: what it makes of a directory, what it refuses, what it plans without one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.cli import main
from launch.commands import upcycle
from tests.launch.refused import every_fault, refused
from tests.printed import error_line
from trainer.config.command_line import Parser
from trainer.storage.manifest import CHECKPOINT
from trainer.weights import hf_write as write
from trainer.weights.hf_files import INDEX, open_directory
from trainer.weights.hf_survey import survey_directory
from trainer.weights.upcycle.coactivation import Counts, model_digest

CONFIG = {
    "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "torch_dtype": "float32", "vocab_size": 64,
    "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16,
    "num_experts": 8, "num_experts_per_tok": 8, "moe_intermediate_size": 16, "rope_theta": 1e6,
    "max_position_embeddings": 128, "rms_norm_eps": 1e-6, "norm_topk_prob": True,
    "tie_word_embeddings": False,
}  # fmt: skip
EXPERT = "model.layers.1.mlp.experts.3.up_proj.weight"


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A text model in two files."""
    path = tmp_path / "src"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(CONFIG))
    (path / "tokenizer.json").write_text("{}")
    generator = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    names, half = list(tensors), len(tensors) // 2
    files = {f"model-0000{n}-of-00002.safetensors": part for n, part in ((1, names[:half]), (2, names[half:]))}
    for file, names in files.items():
        save_file({name: tensors[name] for name in names}, path / file)
    index = {"metadata": {}, "weight_map": {name: file for file, names in files.items() for name in names}}
    (path / INDEX).write_text(json.dumps(index))
    return path


def shapes() -> dict[str, tuple[int, ...]]:
    found: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (64, 32)}
    for layer in range(2):
        at = f"model.layers.{layer}."
        found |= {at + f"{norm}_layernorm.weight": (32,) for norm in ("input", "post_attention")}
        found |= {at + f"self_attn.{letter}_proj.weight": (32, 32) for letter in "qkvo"}
        found |= {at + f"self_attn.{letter}_norm.weight": (16,) for letter in "qk"}
        found[at + "mlp.gate.weight"] = (8, 32)
        for expert in range(8):
            one = f"{at}mlp.experts.{expert}."
            found |= {one + "gate_proj.weight": (16, 32), one + "up_proj.weight": (16, 32)}
            found[one + "down_proj.weight"] = (32, 16)
    return found | {"model.norm.weight": (32,), "lm_head.weight": (64, 32)}


def loaded(directory: Path) -> dict[str, torch.Tensor]:
    return {name: value for file in directory.glob("*.safetensors") for name, value in load_file(file).items()}


def contents(directory: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in directory.iterdir()}


def test_the_published_model_becomes_one_of_eight_groups(reference, tmp_path, capsys):
    source = reference / "tiny" / "interns1"
    words = ["upcycle", str(source), "dst", "--shard-gb", "0.001", "--workers", "2"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert re.match(r"dst: 64 experts in 8 groups, 8 per token; 0\.005 GB in 6 file\(s\), in [\d.]+ s\n", shown.out)
    assert shown.err == ""
    before, after = load_file(source / "model.safetensors"), loaded(tmp_path / "dst")
    manifest = CHECKPOINT.read(tmp_path / "dst")
    assert not any(CHECKPOINT.check_file(tmp_path / "dst", name, facts) for name, facts in manifest["files"].items())
    of_groups = manifest["upcycle"]["placement"]["layers"][2]
    name = "model.language_model.layers.2.mlp.experts.{}.up_proj.weight"
    for expert, its_source in enumerate(" ".join(of_groups).split()):
        was, now = before[name.format(its_source)], after[name.format(expert)]
        assert 0.008 < ((now - was).norm() / was.norm()).item() < 0.012
    towers = [name for name in before if ".language_model." not in name and name != "lm_head.weight"]
    assert len(towers) == 40
    assert all(torch.equal(before[name], after[name]) for name in towers)
    assert main(["inspect", "dst"]) == 0
    assert "64 in 8 group(s), 8 per token, in each of 3 layers" in capsys.readouterr().out
    assert main(words) == 2
    error_line(capsys.readouterr().err, "dst")


# ---- what is refused


def _edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads(path.read_text())
    change(value)
    path.write_text(json.dumps(value))


def _tensors(source: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    """Change the tensors of the file that has EXPERT, and the index with them."""
    file = json.loads((source / INDEX).read_text())["weight_map"][EXPERT]
    tensors = load_file(source / file)
    change(tensors)
    save_file(tensors, source / file)
    _edit(source / INDEX, lambda index: index["weight_map"].update(dict.fromkeys(tensors, file)))


def no_shard(source: Path) -> None:
    (source / "model-00002-of-00002.safetensors").unlink()


def short_shard(source: Path) -> None:
    os.truncate(source / "model-00001-of-00002.safetensors", 5000)


def wrong_shape(source: Path) -> None:
    _tensors(source, lambda tensors: tensors.update({EXPERT: torch.zeros(16, 31)}))


def unknown_tensor(source: Path) -> None:
    _tensors(source, lambda tensors: tensors.update({"model.layers.1.mlp.bias": torch.zeros(1)}))


def missing_tensor(source: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        del tensors[EXPERT]

    _tensors(source, change)
    _edit(source / INDEX, lambda index: index["weight_map"].pop(EXPERT))


def fp8_without_scales(source: Path) -> None:
    _tensors(source, lambda tensors: tensors.update({EXPERT: torch.zeros(16, 32).to(torch.float8_e4m3fn)}))


def nothing(source: Path) -> None:
    pass


@pytest.mark.parametrize(
    ("harm", "words", "data"),
    [
        (no_shard, [], ["src/model-00002-of-00002.safetensors"]),
        (short_shard, [], ["src/model-00001-of-00002.safetensors", "5,000"]),
        (wrong_shape, [], [EXPERT, "[16, 31]", "[16, 32]"]),
        (unknown_tensor, [], ["model.layers.1.mlp.bias"]),
        (missing_tensor, [], [EXPERT]),
        (fp8_without_scales, [], [EXPERT, "F8_E4M3", f"{EXPERT}_scale_inv"]),
        (nothing, ["--factor", "3"], ["--factor=3", "--groups=8", "2 or 4"]),
        (nothing, ["--groups", "6"], ["--groups=6", "8"]),
        (nothing, ["--noise", "-1"], ["--noise=-1"]),
        (nothing, ["--experts-per-token", "7"], ["--factor=4", "--groups=8", "--experts-per-token=8, 16 or 24"]),
    ],
)  # fmt: skip
@pytest.mark.parametrize("dry", [False, True], ids=["", "dry"])
def test_bad_input_is_one_line(source, capsys, harm, words, data, dry):
    harm(source)
    code = main(["upcycle", "src", "dst", *words, *(["--dry-run"] if dry else [])])
    shown = capsys.readouterr()
    assert (code, shown.out) == (2, "")
    error_line(shown.err, *data)
    assert not list(source.parent.glob("dst*"))


@pytest.mark.parametrize("target", ["src/dst", "src/deep/../below/dst"])
@pytest.mark.parametrize("dry", [[], ["--dry-run"]], ids=["", "dry"])
def test_a_destination_inside_the_source(source, target, dry):
    before = sorted(source.iterdir())
    fault = refused("upcycle", "src", target, *dry)
    assert (fault.where, fault.allowed) == (target, "give a directory outside of the source")
    assert sorted(source.iterdir()) == before


def test_a_disk_that_is_too_small(source, capsys, monkeypatch):
    monkeypatch.setattr(write.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    assert main(["upcycle", "src", "dst"]) == 1
    error_line(capsys.readouterr().err, "dst", "0.000 GB")
    assert not list(source.parent.glob("dst*"))
    assert main(["upcycle", "src", "dst", "--dry-run"]) == 0
    assert re.search(r"^warning +.*\bdisk\b.* 0\.000 GB$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize(
    ("words", "where", "allowed"),
    [
        ("src", "DST", "give the directory to create"),
        ("src dst --strategy quarters", "--strategy", ("halves", "coactivation", "spread")),
        ("src dst --workers 0", "--workers", "a whole number, 1 or more"),
        ("src dst --shard-gb 0", "--shard-gb", "a number above 0, such as 5"),
        ("src dst --gb-per-s nan --dry-run", "--gb-per-s", "a number above 0, such as 1"),
        ("src dst more", "more", "see octavo upcycle --help"),
        ("src dst --strategy coactivation", "--counts", "give --strategy coactivation together with --counts FILE, "),
        ("src dst --counts file", "--counts", "give --strategy coactivation together with --counts FILE, "),
        ("src dst --counts file --calibrate text", "--calibrate", "give SRC without DST, and --counts FILE"),
        ("src --calibrate text", "--calibrate", "give SRC without DST, and --counts FILE"),
        ("src dst --seed -1", "--seed", "a whole number, 0 or more"),
        ("src dst --tokens 9", "--tokens", "--calibrate"),
        ("src dst --device cpu --dry-run", "--device", "--calibrate"),
        ("src dst --gb-per-s 2", "--gb-per-s", "--dry-run"),
        ("src --calibrate text --counts file --gb-per-s 2", "--gb-per-s", "--dry-run"),
        ("src --calibrate text --counts file --tokens 0", "--tokens", "a whole number, 1 or more"),
        ("src --calibrate text --counts nowhere/file", "--counts", "a directory that exists"),
    ],
)
def test_wrong_words_are_refused(source, words, where, allowed):
    Path("text").write_text("text")
    fault = refused("upcycle", *words.split())
    assert (fault.where, fault.allowed[: len(allowed)]) == (where, allowed)


ALL = {
    "": ["src"],
    "--factor 0 --noise nan": ["src", "--noise", "--factor"],
    "--groups 6 --vocabulary there": ["src", "--factor, --groups", "there"],
    "--tokens 1 --experts-per-token 0": ["--tokens", "src", "--experts-per-token"],
    "--positions fope --rope-theta 0 --fope-gain -1": ["src", "--rope-theta", "--fope-gain"],
    "--calibrate a b --counts c/d --factor 3": ["--calibrate", "--counts", "src", "--factor", "a", "b"],
}


@pytest.mark.parametrize("words", ALL)
def test_all_mistakes_are_reported_at_once_the_source_among_them(words):
    faults = every_fault("upcycle", "src", "dst", *words.split())
    assert [fault.where for fault in faults] == ALL[words]
    assert all(fault.allowed for fault in faults)


def test_the_documentation_has_every_option():
    parser = Parser("octavo upcycle", "")
    upcycle._options(parser)
    rows = re.findall(r"^\| `(--[a-z-]+)", (Path(__file__).parents[3] / "docs" / "upcycling.md").read_text(), re.M)
    assert rows == [action.option_strings[0] for action in parser._actions if action.option_strings][1:]


def test_another_request_is_refused_while_one_is_unfinished(source, capsys, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr("trainer.weights.upcycle.engine.complete", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            main(["upcycle", "src", "dst"])
    for words, differs in ((["--seed", "1"], "options"), (["--shard-gb", "0.0001"], "files")):
        assert main(["upcycle", "src", "dst", *words]) == 1
        error_line(capsys.readouterr().err, "dst.octavo-upcycle.tmp", differs)
        assert main(["upcycle", "src", "dst", *words, "--dry-run"]) == 0
        assert re.search(rf"^warning +\S+dst\.octavo-upcycle\.tmp\b.*\b{differs}\b", capsys.readouterr().out, re.M)
    work = source.parent / "dst.octavo-upcycle.tmp"
    before = contents(work / "model"), (work / "journal.jsonl").read_bytes()
    assert main(["upcycle", "src", "dst", "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert re.search(r"\nunfinished  1 of 1 files are finished in \S+tmp: model-00001-of-00001\.safetensors\n", out)
    assert "without --dry-run verifies them and resumes from there\n" in out
    assert "disk        0.000 GB needed" in out
    assert (contents(work / "model"), (work / "journal.jsonl").read_bytes()) == before
    (source.parent / "described").mkdir()
    shutil.copy(source / "config.json", source.parent / "described")
    assert main(["upcycle", "described", "dst", "--dry-run"]) == 0
    assert "tmp; without the weights, its options cannot be compared with these\n" in capsys.readouterr().out
    assert main(["upcycle", "src", "dst"]) == 0
    assert "0.000 GB in 1 file(s), 1 of them kept from an earlier start" in capsys.readouterr().out


# ---- kills


def started(words: list[str], log: Path) -> int:
    """The command in a process of its own, forked: a fresh one would take seconds to import torch."""
    pid = os.fork()
    if pid:
        return pid
    code = 99
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where the tests run in the background of a shell
    with contextlib.suppress(BaseException):
        sys.stdout = sys.stderr = open(log, "w")  # noqa: SIM115  # until the process ends
        code = main(words)
        sys.stderr.flush()
    os._exit(code)


def ended(pid: int) -> int:
    """Exit code, or minus the signal."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def lines_of(journal: Path) -> int:
    return journal.read_bytes().count(b"\n") if journal.exists() else 0


def wait_for(journal: Path, lines: int) -> None:
    until = time.monotonic() + 60
    while lines_of(journal) < lines:
        assert time.monotonic() < until
        time.sleep(0.0005)


@pytest.fixture
def slow_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that take 5 ms longer, between their bytes and their end, so that a kill finds some in the making."""
    real = write.HashedFile.finish

    def finish(self: write.HashedFile) -> dict[str, Any]:
        time.sleep(0.005)
        return real(self)

    monkeypatch.setattr(write.HashedFile, "finish", finish)


def test_five_kills_change_no_byte(source, tmp_path, slow_files):
    words = ["upcycle", "src", "dst", "--shard-gb", "0.00001", "--workers", "2"]
    assert main(["upcycle", "src", "undisturbed", "--shard-gb", "0.00001"]) == 0
    files = len(list((tmp_path / "undisturbed").glob("*.safetensors")))
    assert files > 50
    work = tmp_path / "dst.octavo-upcycle.tmp"
    kept = []
    for kill in range(5):
        pid = started(words, tmp_path / "log")
        before = lines_of(work / "journal.jsonl")
        wait_for(work / "journal.jsonl", before + 7)
        time.sleep(0.0015 * kill)  # elsewhere in the making of a file each time
        os.kill(pid, signal.SIGKILL)  # of the first process alone: its workers have to find out
        assert ended(pid) == -signal.SIGKILL
        kept.append(lines_of(work / "journal.jsonl"))
        assert before + 7 <= kept[-1] < files
    pid = started(words, tmp_path / "log")
    assert ended(pid) == 0
    said = re.search(r"(\d+) of them kept from an earlier start", (tmp_path / "log").read_text())
    assert said is not None
    assert int(said[1]) >= kept[-1]
    assert contents(tmp_path / "dst") == contents(tmp_path / "undisturbed")
    assert not work.exists()


def test_an_interrupted_one_says_how_to_resume(source, tmp_path, slow_files):
    words = ["upcycle", "src", "dst", "--shard-gb", "0.00001"]
    pid = started(words, tmp_path / "log")
    wait_for(tmp_path / "dst.octavo-upcycle.tmp" / "journal.jsonl", 3)
    os.kill(pid, signal.SIGINT)
    assert ended(pid) == 130
    said = (tmp_path / "log").read_text()
    assert re.fullmatch(r"\n.*\d+ of \d+.* \S+dst\.octavo-upcycle\.tmp\b.*\n", said)
    assert main(words) == 0


# ---- progress


def test_lines_in_a_file_and_a_bar_on_a_terminal(source, capsys, monkeypatch):
    monkeypatch.setattr("launch.progress.BETWEEN", 0.0)
    assert main(["upcycle", "src", "dst", "--shard-gb", "0.0001"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 5
    assert all(re.fullmatch(r"writing: 0\.0 of 0\.0 GB \(\d+\.\d%\), 0\.\d\d GB/s, \d+ s left", line) for line in lines)

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    assert main(["upcycle", "src", "dst2", "--shard-gb", "0.0001"]) == 0
    assert re.search(r"GB/s.*0 s left", terminal.getvalue())


def test_a_line_now_and_then_while_cuts_are_searched(source, capsys, monkeypatch):
    monkeypatch.setattr("launch.progress.BETWEEN", 0.0)
    opened = survey_directory(open_directory(source))
    pairs = np.ones((2, 8, 8), np.int64)
    Counts(pairs.sum(1), pairs, 128, model_digest(opened)).save(source.parent / "counts")
    words = ["upcycle", "src", "dst", "--strategy", "coactivation", "--counts", "counts"]
    assert main([*words, "--dry-run"]) == 0
    assert re.fullmatch(r"choosing cuts: 1 of 2 layers \(50\.0%\), \d+ s left\n", capsys.readouterr().err)
    monkeypatch.setattr("launch.progress.BETWEEN", 60.0)
    assert main([*words, "--dry-run"]) == 0
    assert capsys.readouterr().err == ""


# ---- dry runs


VISION = {
    "model_type": "interns1_vision", "hidden_size": 3200, "intermediate_size": 12800, "num_hidden_layers": 45,
    "num_attention_heads": 25, "num_channels": 3, "patch_size": [14, 14], "image_size": [448, 448],
    "attention_bias": False, "use_qk_norm": True, "norm_type": "rms_norm",
}  # fmt: skip
REAL = {
    "architectures": ["InternS1ForConditionalGeneration"], "model_type": "interns1", "torch_dtype": "bfloat16",
    "downsample_ratio": 0.5, "vision_config": VISION, "tie_word_embeddings": False,
    "text_config": CONFIG | {
        "vocab_size": 153216, "hidden_size": 4096, "num_hidden_layers": 94, "num_attention_heads": 64,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 128, "num_experts_per_tok": 8,
        "moe_intermediate_size": 1536, "max_position_embeddings": 40960, "torch_dtype": None,
    },
}  # fmt: skip


def test_the_published_size_by_its_config_alone(tmp_path, capsys):
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "config.json").write_text(json.dumps(REAL))
    began = time.process_time()
    assert main(["upcycle", "src", "dst", "--dry-run", "--gb-per-s", "0.5"]) == 0
    assert time.process_time() - began < 15
    out = capsys.readouterr().out
    attention = 2 * 4096 * 64 * 128 + 2 * 4096 * 4 * 128 + 2 * 128
    dense, expert = 94 * (attention + 2 * 4096) + 2 * 153216 * 4096 + 4096, 3 * 4096 * 1536
    before, after = (dense + 94 * n * (4096 + expert) for n in (128, 512))
    active = [dense + 94 * (n * 4096 + 8 * expert) for n in (128, 512)]
    assert f"parameters, text{before:>24,}{after:>20,}\n" in out
    width, inner, merged = 3200, 12800, 4 * 3200
    layer = (4 * width**2 + width) + 2 * width + 2 * width + 2 * width + (2 * inner * width + inner + width)
    vision = 45 * layer + width * (3 * 14 * 14 + 1) + width + (32 * 32 + 1) * width
    projector = 2 * merged + (merged * 4096 + 4096) + (4096 * 4096 + 4096)
    towers = vision + projector
    assert f"parameters, all{before + towers:>25,}{after + towers:>20,}\n" in out
    assert f"active per token{active[0]:>24,}{active[1]:>20,}\n" in out
    assert round(before / 1e9, 1) == 235.1
    assert "experts                              128                 512\n" in out
    assert "64 experts in each group, 4 copies of each; experts twice in a group: 0\n" in out
    assert vision == pytest.approx(5.54e9, rel=1e-3)  # InternViT-6B's published size
    need = float(re.search(r"disk +([\d,.]+) GB needed", out)[1].replace(",", ""))
    assert need == pytest.approx(2 * (after + towers) / 1e9, rel=1e-4)
    count, largest = re.search(r"files +(\d+) of [\d.]+ to ([\d.]+) GB: model-00001-of-(\d{5})", out).groups()[:2]
    assert float(largest) <= 5.01
    assert need / 5 < int(count) < need / 4.9
    minutes = round(need / 0.5 / 60)
    assert f"time        {minutes // 60} h {minutes % 60} min at 0.5 GB/s" in out
    assert "no weights and no model.safetensors.index.json: sizes by config.json alone\n" in out
    assert [entry.name for entry in tmp_path.iterdir()] == ["src"]


def test_a_dry_run_plans_what_a_run_makes(source, tmp_path, capsys):
    def planned() -> list[str]:
        assert main(["upcycle", "src", "dst", "--dry-run", "--shard-gb", "0.0001"]) == 0
        lines = capsys.readouterr().out.splitlines()
        return [line for line in lines if not line.startswith(("source", "disk"))]

    whole = planned()
    for file in source.glob("*.safetensors"):
        file.unlink()
    assert planned() == whole  # by the index
    index = (source / INDEX).read_text()
    (source / INDEX).unlink()
    assert planned() == whole  # by config.json
    (source / INDEX).write_text(index)
    _edit(source / INDEX, lambda index: index["weight_map"].pop(EXPERT))
    assert main(["upcycle", "src", "dst", "--dry-run"]) == 2
    error_line(capsys.readouterr().err, EXPERT)
    (source / INDEX).write_text(index)
    _edit(source / INDEX, lambda index: index["weight_map"].update({"model.layers.0.bias": "x"}))
    assert main(["upcycle", "src", "dst", "--dry-run"]) == 2
    error_line(capsys.readouterr().err, "model.layers.0.bias")
    shutil.rmtree(source)
    source.mkdir()
    assert main(["upcycle", "src", "dst", "--dry-run"]) == 2
    error_line(capsys.readouterr().err, "src", "config.json")
