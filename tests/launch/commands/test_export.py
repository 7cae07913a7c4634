"""`octavo export` and `octavo inspect` on the command line."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from launch.cli import main
from tests.launch.refused import every_fault, refused
from tests.printed import error_line
from tests.trainer.tiny_run import tiny_config
from trainer.run.process import train


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("runs") / "run"
    assert train(tiny_config(directory, steps=1, model={"router_groups": 1, "positions": "rope"})) == 0
    return directory


def test_export_says_what_it_wrote_and_overwrites_nothing(run, tmp_path, capsys):
    target = tmp_path / "out"
    words = ["export", str(run), str(target), "--dtype", "fp32", "--shard-gb", "0.00005"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert f"{target}: the text model after step 1 in F32; 0.000 GB" in shown.out
    assert len(list(target.glob("model-*.safetensors"))) > 2
    assert main(words) == 2
    error_line(capsys.readouterr().err, target)
    assert refused(*words).where == str(target)
    assert main(["export", str(tmp_path), str(tmp_path / "other")]) == 2
    error_line(capsys.readouterr().err, tmp_path)
    fault = refused("export", "nowhere", str(tmp_path / "other"))
    assert (fault.where, fault.allowed) == ("nowhere", "a run directory, or a step-N directory in one")


def test_export_reports_how_far_it_is(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("launch.progress.BETWEEN", 0.0)
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) > 5
    assert all(re.fullmatch(r"writing: 0\.0 of 0\.0 GB \(\d+\.\d%\), 0\.\d\d GB/s, \d+ s left", line) for line in lines)


def test_export_warns_of_what_others_may_misread(run, tmp_path, capsys):
    assert main(["export", str(run), str(tmp_path / "out"), "--dtype", "fp8"]) == 0
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "model.expert_width=16" in line]
    assert line.startswith("warning: ")
    assert "128" in line


@pytest.mark.parametrize(
    ("words", "where", "value", "allowed"),
    [
        (["--dtype", "fp4"], "--dtype", "fp4", ("source", "bf16", "fp32", "fp8")),
        (["--shard-gb", "0"], "--shard-gb", "0", "a number above 0, such as 5"),
        (["--shard-gb", "inf"], "--shard-gb", "inf", "a number above 0, such as 5"),
        (["--shard-gb", "nan"], "--shard-gb", "nan", "a number above 0, such as 5"),
    ],
)
def test_wrong_words_are_refused(words, where, value, allowed):
    fault = refused("export", "a", "b", *words)
    assert (fault.where, fault.value, fault.allowed) == (where, value, allowed)


def test_missing_arguments_are_refused():
    assert refused("export", "a").where == "DST"
    assert refused("inspect").where == "DIR"


def table(out: str) -> dict[str, list[str]]:
    """Part -> its figures."""
    lines = out.split("\n\n")[1].splitlines()[1:]
    return {line[:20].strip(): line[20:].split() for line in lines}


def test_inspect_a_published_directory(reference, capsys):
    assert main(["inspect", str(reference / "tiny" / "interns1_pro")]) == 0
    out = capsys.readouterr().out
    rows = table(out)
    assert rows["experts"] == ["288", "589,824", "2.359", "F32"]
    assert rows["time series"][:2] == ["62", "3,307,824"]
    assert rows["total"][:2] == ["415", "4,131,792"]
    assert "32 in 8 group(s), 8 per token, in each of 3 layers" in out
    assert "model.hidden_size=64" in out
    for what in ("missing", "unknown", "mismatch"):
        assert f"{what:<12}none\n" in out


def test_inspect_names_what_is_wrong(reference, tmp_path, capsys):
    source = reference / "tiny" / "interns1"
    shutil.copyfile(source / "config.json", tmp_path / "config.json")
    tensors = load_file(source / "model.safetensors")
    for expert in range(11):
        del tensors[f"model.language_model.layers.2.mlp.experts.{expert}.up_proj.weight"]
    tensors["model.language_model.norm.weight"] = torch.zeros(63)
    tensors["model.visual.pos_embed.weight"] = torch.zeros(2)
    save_file(tensors, tmp_path / "model.safetensors")
    assert main(["inspect", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "missing     model.language_model.layers.2.mlp.experts.0.up_proj.weight\n" in out
    assert "            and 1 more\n" in out
    assert "unknown     model.visual.pos_embed.weight\n" in out
    assert "mismatch    model.language_model.norm.weight: the checkpoint has shape [63]; expected [64]\n" in out
    assert out.endswith("NOT complete\n")
    assert table(out)["unknown"][0] == "1"
    (tmp_path / "model.safetensors").write_bytes(b"x" * 100)
    assert main(["inspect", str(tmp_path)]) == 1
    error_line(capsys.readouterr().err, tmp_path / "model.safetensors")


def test_inspect_a_training_checkpoint(run, tmp_path, capsys):
    assert main(["inspect", str(run)]) == 0
    out = capsys.readouterr().out
    assert f"{run}/checkpoints/step-1: training checkpoint of step 1, saved with world size 1" in out
    model = tiny_config(run, model={"router_groups": 1, "positions": "rope"}).model
    rows = table(out)
    counted = [int(row[1].replace(",", "")) for part, row in rows.items() if part != "total"]
    assert sum(counted) == model.num_params() == int(rows["total"][1].replace(",", ""))
    assert rows["optimizer"][1] == "0"
    copy = shutil.copytree(run, tmp_path / "copy")
    shard = next(copy.glob("checkpoints/step-1/*.distcp"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["inspect", str(copy)]) == 1
    size = shard.stat().st_size
    error_line(capsys.readouterr().err, shard, size, size + 1)
    fault = refused("inspect", str(tmp_path / "nothing"))
    kinds = "a Hugging Face directory (with config.json) or a run directory with a checkpoint (step-N)"
    assert (fault.where, fault.allowed) == (str(tmp_path / "nothing"), kinds)


def flip(file: Path) -> None:
    """The last byte, so that names, shapes and sizes stay."""
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


@pytest.fixture
def expansion(reference: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    target = tmp_path / "dst"
    assert main(["upcycle", str(reference / "tiny" / "interns1"), str(target), "--shard-gb", "0.002"]) == 0
    capsys.readouterr()
    return target


def test_inspect_verifies_every_byte_of_an_expansion(expansion, capsys):
    assert main(["inspect", str(expansion), "--verify"]) == 0
    names = {file.name for file in expansion.iterdir()} - {"manifest.json"}
    whole = capsys.readouterr().out
    assert whole.splitlines()[-1] == f"verify      {len(names)} files, 0.006 GB: every byte is as it was written"
    second, third = sorted(expansion.glob("model-*.safetensors"))[1:3]
    config = expansion / "config.json"
    size = config.stat().st_size
    flip(second)
    config.write_text(config.read_text() + "\n")
    assert main(["inspect", str(expansion)]) == 0  # by names, shapes and sizes
    third.unlink()
    capsys.readouterr()
    assert main(["inspect", str(expansion), "--verify"]) == 1
    shown = capsys.readouterr()
    error_line(shown.err, third)
    assert shown.out.splitlines() == [
        f"differs     {config} has {size + 1} bytes instead of {size}",
        f"differs     {second} has changed since it was written (SHA-256 differs)",
        f"differs     {third} is missing",
        f"verify      {len(names)} files, 0.006 GB: 3 of them differ",
    ]


def test_inspect_says_that_nothing_can_be_verified(reference, expansion, capsys):
    published = reference / "tiny" / "interns1"
    assert main(["inspect", str(published), "--verify"]) == 1
    error_line(capsys.readouterr().err, published, "manifest.json", "--verify")
    manifest = expansion / "manifest.json"
    manifest.write_text(manifest.read_text().replace('"seed": 0', '"seed": 1'))
    assert main(["inspect", str(expansion), "--verify"]) == 1
    error_line(capsys.readouterr().err, manifest, "--verify")


def test_inspect_verifies_a_training_checkpoint(run, tmp_path, capsys):
    copy = shutil.copytree(run, tmp_path / "copy")
    assert main(["inspect", str(copy), "--verify"]) == 0
    assert capsys.readouterr().out.endswith("every byte is as it was written\n")
    shard = next(copy.glob("checkpoints/step-1/*.distcp"))
    flip(shard)
    assert main(["inspect", str(copy)]) == 0
    capsys.readouterr()
    assert main(["inspect", str(copy), "--verify"]) == 1
    assert f"differs     {shard} has changed since it was written (SHA-256 differs)\n" in capsys.readouterr().out
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["inspect", str(copy / "checkpoints"), "--verify"]) == 1  # the rest is compared all the same
    shown = capsys.readouterr()
    error_line(shown.err, shard)
    assert f"differs     {shard} has " in shown.out


def test_inspect_of_a_published_directory_needs_no_torch(reference):
    program = (
        "import sys; from launch.cli import main; "
        f"code = main(['inspect', {str(reference / 'tiny' / 'interns1')!r}]); "
        "print(code, *[name for name in ('torch', 'numpy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "0"


def test_a_directory_without_tensors_lacks_all_of_them(tmp_path, capsys):
    """The layers of the 1T model; none of its bytes are here."""
    text = {
        "model_type": "interns1_pro_text", "norm_topk_prob": True,
        "vocab_size": 155008, "hidden_size": 4096, "num_hidden_layers": 6, "num_attention_heads": 64,
        "num_key_value_heads": 4, "head_dim": 128, "num_experts": 512, "num_experts_per_tok": 8, "router_n_groups": 8,
        "moe_intermediate_size": 1536, "rms_norm_eps": 1e-6, "max_position_embeddings": 262144, "rope_theta": 5e6,
        "rope_scaling": {"rope_type": "default", "fope_init_factor": 0.5},
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps({"text_config": text}))
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {}}')
    assert main(["inspect", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert f"and {6 * (512 * 3 + 9) + 5 - 10:,} more" in out


@pytest.mark.parametrize(
    "place", [".", "source", "tokenizer", "tokenizer/export", "checkpoints/step-9", "../run/source"]
)
def test_an_export_into_what_the_run_reads_is_refused(run, place):
    for words in ((), ("--adapter", "peft")):
        fault = every_fault("export", str(run), f"{run}/{place}", *words)[0]
        assert fault.where == str(run / place)
        assert fault.allowed
