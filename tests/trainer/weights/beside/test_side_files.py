"""Side files and directories: which go along, through a run, an export and an upcycle."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from launch.cli import main
from tests.trainer.weights.exports import ONE, config, save_at_once
from trainer.run import directory as rundir
from trainer.storage.manifest import CHECKPOINT
from trainer.weights import kept_source
from trainer.weights.beside.side_files import clashes, side_files
from trainer.weights.export import export
from trainer.weights.hf_files import HuggingFaceError, open_directory
from trainer.weights.hf_survey import survey_directory

KEPT = [
    "LICENSE", "additional_chat_templates/deep/er.jinja", "additional_chat_templates/tool.jinja", "added_tokens.json",
    "assets/logo.png", "chat_template.jinja", "chat_template.json", "generation_config.json", "merges.txt",
    "modeling_interns1.py", "preprocessor_config.json", "processor_config.json", "special_tokens_map.json",
    "tokenizer.json", "tokenizer_SMILES.model", "tokenizer_config.json", "video_preprocessor_config.json", "vocab.json",
]  # fmt: skip
NOT = [
    ".gitattributes", ".cache/huggingface/x", "__pycache__/modeling.pyc", "consolidated.safetensors",
    "model.gguf", "onnx/decoder.onnx", "onnx/config.json", "optimizer.pt", "original/params.json",
    "original/consolidated.00.pth", "pytorch_model.bin.index.json", "README.md", "rng_state_0.pth",
]  # fmt: skip


@pytest.fixture
def source(reference: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "source"
    directory.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copyfile(reference / "tiny" / "interns1" / name, directory / name)
    for name in (*KEPT, *NOT):
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(f"{{}} {name}")
    return directory


def test_everything_but_weights_and_hidden_files(source):
    assert list(side_files(source)) == sorted(KEPT)


def test_they_go_through_a_run_into_its_export(source, tmp_path):
    save_at_once(source, tmp_path / "run", ONE)
    assert list(side_files(tmp_path / "run" / "source")) == sorted(KEPT)
    shutil.rmtree(source)
    done = export(tmp_path / "run", tmp_path / "out")
    assert done.side_files == sorted(KEPT)
    assert done.tokenizer == f"that of {source}"
    assert all((tmp_path / "out" / name).read_text() == f"{{}} {name}" for name in KEPT)
    assert [name for name in NOT if (tmp_path / "out" / name).exists()] == ["README.md"]  # ours
    assert [warning.split()[0] for warning in done.warnings] == ["README.md"]
    assert clashes(tmp_path / "out") == []  # a card of ours says nothing that the next one does not


def test_a_damaged_file_in_a_directory_is_found(source, tmp_path, capsys):
    save_at_once(source, tmp_path / "run", ONE)
    file = tmp_path / "run" / "source" / "additional_chat_templates" / "tool.jinja"
    file.write_text("other")
    with pytest.raises(Exception, match=r"tool\.jinja") as refused:
        export(tmp_path / "run", tmp_path / "out")
    assert refused.value.where == str(file)


def test_a_manifest_of_another_program_is_named(source, tmp_path):
    assert clashes(source) == ["README.md"]
    (source / "manifest.json").write_text('{"files": []}')
    assert clashes(source) == ["README.md", "manifest.json"]
    save_at_once(source, tmp_path / "run", ONE)
    done = export(tmp_path / "run", tmp_path / "out")
    assert [warning.split()[0] for warning in done.warnings] == ["README.md", "manifest.json"]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_a_copy_with_directories_can_be_made_again_and_foreign_files_in_it_stay(source, tmp_path):
    run = tmp_path / "run"
    rundir.prepare(rundir.RunDir(run, "new"), config(source, run))
    surveyed = survey_directory(open_directory(source))
    for _ in range(2):  # the second one removes the first
        kept_source._keep(surveyed, run / "source", lambda: None)
    inside = run / "source" / "additional_chat_templates"
    assert CHECKPOINT.holds_only_its_files(run / "source", "kinds")
    for stranger in (inside / "notes", inside / "deep" / "notes", run / "source" / "empty"):
        stranger.mkdir() if stranger.name == "empty" else stranger.write_text("mine")
        assert not CHECKPOINT.holds_only_its_files(run / "source", "kinds")
        CHECKPOINT.remove_directory(run / "source", "kinds")
        assert stranger.exists()
        stranger.rmdir() if stranger.name == "empty" else stranger.unlink()
    CHECKPOINT.remove_directory(run / "source", "kinds")
    assert not (run / "source").exists()


def test_links_are_followed_and_a_broken_one_is_refused(source):
    templates = source / "additional_chat_templates"
    shutil.move(templates, source.parent / "elsewhere")
    templates.symlink_to(source.parent / "elsewhere")
    (source / "assets" / "again").symlink_to(source)  # a circle
    assert list(side_files(source)) == sorted(KEPT)
    (source.parent / "elsewhere" / "gone.jinja").symlink_to("nowhere")
    with pytest.raises(HuggingFaceError) as refused:
        side_files(source)
    assert (refused.value.where, refused.value.value) == (str(templates / "gone.jinja"), "nowhere")


def test_they_go_through_an_upcycle_and_what_another_vocabulary_replaces_is_named(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vocabulary = {f"t{number}": number for number in range(320)}
    tokens = {"model": {"vocab": vocabulary, "type": "WordLevel", "unk_token": "t0"}}
    (source / "tokenizer.json").write_text(json.dumps(tokens))
    for name in ("tokenizer_config.json", "added_tokens.json", "generation_config.json", "vocab.json"):
        (source / name).write_text("{}")
    assert main(["upcycle", "source", "one"]) == 0
    manifest = CHECKPOINT.read(Path("one"))
    assert set(KEPT) < set(manifest["files"])
    assert not any(CHECKPOINT.check_file(Path("one"), name, facts) for name, facts in manifest["files"].items())
    other = Path("other")
    (other / "additional_chat_templates").mkdir(parents=True)
    (other / "tokenizer.json").write_text(json.dumps(tokens))
    (other / "additional_chat_templates" / "tool.jinja").write_text("another")
    (other / "chat_template.jinja").write_bytes((source / "chat_template.jinja").read_bytes())
    assert main(["upcycle", "source", "two", "--vocabulary", "other"]) == 0
    assert Path("two/additional_chat_templates/tool.jinja").read_text() == "another"
    assert Path("two/additional_chat_templates/deep/er.jinja").is_file()
    named = [line.split()[0] for line in CHECKPOINT.read(Path("two"))["upcycle"]["warnings"]]
    assert "additional_chat_templates/tool.jinja" in named
    assert "chat_template.jinja" not in named
