"""`octavo data`: on a mixture that is whole and on one that is not, without torch."""

from __future__ import annotations

import base64
import importlib.metadata
import os
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from launch.cli import main
from launch.commands import data
from tests.launch.refused import refused
from tests.printed import error_line
from tests.trainer.data.media import illustrated
from tests.trainer.data.small_mixture import make_mixture
from trainer.config.command_line import Parser

CHECKOUT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def recipes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with recipe/small.yaml, over a small mixture."""
    root = tmp_path_factory.mktemp("recipes")
    with pytest.MonkeyPatch.context() as patch:
        mixture = make_mixture(root, patch)
    (root / "data").mkdir()
    (root / "data" / "small.yaml").write_text(yaml.safe_dump(asdict(mixture), sort_keys=False))
    (root / "recipe").mkdir()
    (root / "recipe" / "small.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: toy\n  - override /data: small\ntrain: {steps: 45}\n"
    )
    return root


def test_a_whole_mixture_is_checked_and_counted_and_shown_without_torch(recipes: Path, tmp_path: Path) -> None:
    program = (
        "import sys; from launch.cli import main\n"
        f"where = ['--config-dir', {str(recipes)!r}]\n"
        "codes = [main(['data', *words, *where]) for words in (['check', 'small'], ['show', 'small', '7'], "
        "['stats', 'small', 'train.micro_batch=2'])]\n"
        "print(codes, sorted({'torch', 'datasets', 'megatron'} & set(sys.modules)))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    assert done.stderr == ""
    out = done.stdout
    assert out.splitlines()[-1] == "[0, 0, 0] []"
    assert "3 sources are intact" in out
    assert "sample 7 · phase stable · source " in out
    assert "document 1, " in out
    assert "R = 4    1." in out


def test_images_are_checked_and_counted_and_shown_without_torch(tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mixture = illustrated.make_mixture(tmp_path, patch)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "pictures.yaml").write_text(yaml.safe_dump(asdict(mixture), sort_keys=False))
    (tmp_path / "recipe").mkdir()
    image, signal = illustrated.ids("<IMG_CONTEXT>", "<TS_CONTEXT>")
    (tmp_path / "recipe" / "pictures.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: toy_multimodal\n  - override /data: pictures\n"
        f"train: {{steps: 6}}\nmodel: {{image_token: {image}, signal_token: {signal}}}\n"
    )
    program = (
        "import sys; from launch.cli import main\n"
        f"where = ['--config-dir', {str(tmp_path)!r}]\n"
        "actions = (['check', 'pictures'], *(['show', 'pictures', str(n)] for n in range(4)), ['stats', 'pictures'])\n"
        "codes = [main(['data', *words, *where]) for words in actions]\n"
        "codes.append(main(['data', 'check', 'pictures', 'model.image_token=7', *where]))\n"
        "print(codes, sorted({'torch', 'datasets', 'megatron'} & set(sys.modules)))\n"
    )
    env = {**os.environ, "PYTHONPATH": str(CHECKOUT), "COLUMNS": "120"}
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True, timeout=60)
    out = done.stdout
    assert out.splitlines()[-1] == "[0, 0, 0, 0, 0, 0, 1] []"
    assert "[image, 1 token]" in out
    assert "tokens of padding" in out
    assert "padding of packs" in out
    assert "2 sources are intact" in out
    error_line(done.stderr, "model.image_token=7")


def test_check_counts_documents_that_are_left_out(tmp_path: Path, capsys) -> None:
    with pytest.MonkeyPatch.context() as patch:
        mixture = illustrated.make_mixture(tmp_path, patch)
    name, source = next((n, s) for n, s in mixture.sources.items() if s.modality == "image")
    large = [{"type": "image", "bytes": base64.b64encode(illustrated.image(1, 6, 6)).decode()}]
    content = [*illustrated.rows(60), large, large, [{"type": "image", "path": "missing.png"}]]
    path = illustrated.write_rows(tmp_path, content)
    place = Path(mixture.root, source.path)
    made = yaml.safe_load((place / "manifest.json").read_text())
    shutil.rmtree(place)
    illustrated.make(tmp_path, [path], out=place, name=made["name"], domain=made["domain"], group=source.prefix or None,
                     prefixes=mixture.prefixes, bad_media="skip", heldout_fraction=0.2)  # fmt: skip
    (tmp_path / "data").mkdir()
    mixture = replace(mixture, seq_len=32, on_fault="skip")
    (tmp_path / "data" / "pictures.yaml").write_text(yaml.safe_dump(asdict(mixture), sort_keys=False))
    image, signal = illustrated.ids("<IMG_CONTEXT>", "<TS_CONTEXT>")
    words = ["toy", "data=pictures", "model=toy_multimodal", f"model.image_token={image}",
             f"model.signal_token={signal}", "train.steps=6", "--config-dir", str(tmp_path)]  # fmt: skip
    assert main(["data", "check", *words]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if f"data.sources.{name}" in line]
    assert ["1 document " in warned[0], "left_out.jsonl" in warned[0]] == [True, True]
    assert ["2 documents " in warned[1], "data.on_fault=skip" in warned[1]] == [True, True]


def test_all_missing_packages_are_named_before_anything_is_built(tmp_path: Path, monkeypatch, capsys) -> None:
    genuine = importlib.metadata.version

    def version(name: str) -> str:
        if name in ("pillow", "rdkit", "aeon"):
            raise importlib.metadata.PackageNotFoundError(name)
        return genuine(name)

    monkeypatch.setattr(importlib.metadata, "version", version)
    monkeypatch.chdir(tmp_path)
    for command in (["train"], ["data", "check"], ["data", "stats"]):
        fault = refused(*command, "recipe=toy_multimodal")
        assert (fault.where, sorted(fault.value)) == ("data.sources.pictures", ["aeon", "pillow", "rdkit"])
        assert fault.allowed == "pip install -e '.[media,science]' && pip install --no-deps aeon==1.6.0"
        assert "data.sources.signals needs aeon" in fault.text
    for command in (["train"], ["data", "index"]):
        fault = refused(*command, "recipe=vision_contrastive_toy")
        assert (fault.where, fault.value, fault.allowed) == ("data.pairs", ("pillow",), "pip install -e '.[media]'")
    assert main(["train", "--dry-run", "recipe=toy_multimodal"]) == 0  # a plan for a machine that has them
    assert list(tmp_path.iterdir()) == []


def test_check_and_stats_agree_on_epochs(recipes: Path, capsys, monkeypatch) -> None:
    """45 steps of 8 samples are all phases."""
    found = []
    for action in ("check", "stats"):
        monkeypatch.setattr("launch.commands.data.print_table", found.append)
        assert main(["data", action, "small", "train.global_batch=8", "--config-dir", str(recipes)]) == 0
    epochs = []
    for table in found:
        (column,) = [column for column in table.columns if column.header == "epochs"]
        epochs.append([*column.cells][:3])
    assert epochs[0] == epochs[1]
    assert all(float(times) > 1 for times in epochs[0])


@pytest.mark.parametrize(
    ("words", "reported"),
    [
        (["train.global_batch=12", "train.micro_batch=4", "train.steps=1"], "4"),  # 2 x 4 does not divide 12
        (
            ["train.global_batch=16", "train.micro_batch=1", "train.steps=20"],
            "248",
        ),  # more than the samples that are measured
    ],
)
def test_balance_is_reported_for_any_batch(recipes: Path, capsys, monkeypatch, words: list[str], reported: str) -> None:
    monkeypatch.setattr("launch.commands.data.COSTED_SAMPLES", 12)
    assert main(["data", "stats", "small", *words, "--config-dir", str(recipes)]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("  R = ")]
    assert [line[2] for line in lines] == [*reported]
    assert all(float(line[3]) >= 1 for line in lines)


def test_a_number_beyond_any_sample_is_refused(recipes: Path) -> None:
    fault = refused("data", "show", "small", "9" * 20, "--config-dir", str(recipes))
    allowed = "a whole number of at least 0, with at most 18 digits"
    assert (fault.where, fault.value, fault.allowed) == ("N", "9" * 20, allowed)


@pytest.mark.parametrize("word", ["-1", "x", "1.5"])
def test_a_word_that_is_not_a_number_is_refused(recipes: Path, word: str) -> None:
    for words in (["small", word], ["small", "train.steps=9", word]):
        fault = refused("data", "show", *words, "--config-dir", str(recipes))
        assert (fault.where, fault.value) == ("N", word)


def test_past_the_runs_end_it_is_said_and_past_what_sources_give_refused(recipes: Path, capsys) -> None:
    where = ["train.global_batch=8", "--config-dir", str(recipes)]
    assert main(["data", "show", "small", "359", *where]) == 0
    assert capsys.readouterr().out.startswith("sample 359 · ")
    assert main(["data", "show", "recipe=small", "360", *where]) == 0
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert first == "the run ends at sample 359: train.steps=45 of 8 samples"
    assert second.startswith("sample 360 · ")
    fault = refused("data", "show", "small", "9" * 18, *where)
    assert (fault.where, fault.value) == ("N", int("9" * 18))
    fits = int(fault.allowed.split()[0])  # the remedy is a sample
    assert main(["data", "show", "small", f"{fits}", *where]) == 0
    assert refused("data", "show", "small", f"{fits + 1}", *where).allowed == fault.allowed


def test_a_prefix_is_in_colour(recipes: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    shown = []
    for number in range(12):
        assert main(["data", "show", "small", str(number), "--config-dir", str(recipes)]) == 0
        shown.append(capsys.readouterr().out)
    assert any("\x1b[1;36mScience text:" in text or "\x1b[1;36mOf science:" in text for text in shown)
    assert any("\x1b[1;36mPlain text:" in text or "\x1b[1;36mOf all kinds:" in text for text in shown)


def test_a_toy_corpus_that_cannot_be_written_is_refused_before_the_table(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    cache = f"{tmp_path / 'file'}/x"
    assert main(["data", "check", "toy", f"data.cache_dir={cache}"]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    error_line(shown.err, f"data.cache_dir={cache}")
    for action in (["check", "toy"], ["show", "toy", "7"], ["stats", "toy"]):
        fault = refused("data", *action, f"data.cache_dir={cache}")
        assert (fault.where, fault.value) == ("data.cache_dir", cache)


def test_damage_is_one_line_for_each_file(recipes: Path, capsys) -> None:
    path = recipes / "code" / "train-00000.bin"
    whole = path.read_bytes()
    other = recipes / "web" / "heldout-00000.idx"
    kept = other.read_bytes()
    try:
        path.write_bytes(whole[:500] + bytes([whole[500] ^ 1]) + whole[501:])
        other.unlink()
        assert main(["data", "check", "small", "--config-dir", str(recipes)]) == 1
    finally:
        path.write_bytes(whole)
        other.write_bytes(kept)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2
    for source, file in (("code", path), ("web", other)):
        (line,) = [line for line in lines if f"data.sources.{source}" in line]
        error_line(line, file.name)


@pytest.mark.parametrize(
    ("words", "code", "data"),
    [
        (["check", "recipe=toy", "data=synthetic"], 2, ["data.name=synthetic"]),
        (["stats", "cpt_6t"], 1, ["data.sources.multilingual", "corpora/multilingual/manifest.json"]),
    ],
)
def test_data_that_cannot_be_read_are_reported(words: list[str], code: int, data: list[str], capsys) -> None:
    assert main(["data", *words]) == code
    printed = capsys.readouterr().err.splitlines()
    assert any(all(datum in line for datum in data) for line in printed)
    assert all(error_line(line) for line in printed)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        ([], "octavo data"),
        (["chek", "toy"], "octavo data"),
        (["check"], "RECIPE"),
        (["show", "toy"], "RECIPE"),
        (["show", "3"], "RECIPE"),
        (["show", "toy", "1", "2"], "RECIPE"),
    ],
)
def test_an_incomplete_command_is_refused(words: list[str], where: str) -> None:
    assert refused("data", *words).where == where


@pytest.mark.parametrize("action", ["check", "index", "stats", "show"])
def test_the_example_of_an_incomplete_command_is_accepted(action: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    _, _, _, *words = refused("data", action).allowed.split()
    assert callable(data.prepare(Parser("octavo data", ""), [action, *words]))


@pytest.mark.parametrize("words", [["index", "toy"], ["stats", "vision_contrastive_toy"]])
def test_the_recipe_that_a_refusal_names_is_accepted(words: list[str], tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    action, recipe = words
    other = refused("data", action, recipe).text.rpartition(" ")[2]
    assert callable(data.prepare(Parser("octavo data", ""), [action, other]))
