"""`octavo science --recordings`: from three published data sets on disk to a few steps of a model with towers."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from launch.cli import main
from tests.launch.refused import every_fault, refused
from tests.printed import error_line
from tests.trainer.corpora.science.recordings import layouts
from tests.trainer.corpora.tokenize.tokenized import start_plain
from tests.trainer.tiny_run import losses, records
from trainer.config.compose import compose
from trainer.corpora.science.recordings import eeg
from trainer.corpora.science.recordings.sources import RECORDED
from trainer.corpora.tokenize import jobs
from trainer.data.media.readers.read import read_recording
from trainer.data.media.readers.recording import Recording
from trainer.data.media.store import MEDIA, PLACES, MediaFiles, PlaceTable
from trainer.data.shards.megatron_index import IndexedTokens
from trainer.data.shards.tokenizer import Tokenizer, train_bpe
from trainer.run.process import train
from trainer.storage.manifest import MANIFEST

for library in ("pyedflib", "wfdb", "soundfile"):
    pytest.importorskip(library)

SOURCES = {"eeg_depression": "mumtaz", "ecg_abnormality": "ptb-xl", "marmoset_calls": "marmaudio"}
SEQ_LEN = 256
# of a signal as its file has it: sampling rate, channels, units
KINDS = {
    "eeg_depression": (64.0, eeg.CHANNELS, {"uV"}),
    "ecg_abnormality": (100.0, layouts.LEADS, {"mV"}),
    "marmoset_calls": (16_000.0, ("0",), {""}),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data sets, the documents of each, a tokenizer of their texts, and the corpora in `corpora`."""
    root = tmp_path_factory.mktemp("fields")
    layouts.write_eeg(root / "mumtaz", seconds=5, rate=64)
    layouts.write_ptb_xl(root / "ptb-xl", patients=10, rates=(100,))
    layouts.write_marmaudio(root / "marmaudio", rate=16_000)
    for name, directory in SOURCES.items():
        words = ["science", str(root / f"{name}.jsonl"), "--source", name, "--recordings", str(root / directory)]
        assert main([*words, "--seconds", "2.5", "--tasks", "2"]) == 0
    texts = [part["text"] for name in SOURCES for line in read(root / f"{name}.jsonl") for part in line["content"][1:]]
    bpe = tokenizers.Tokenizer.from_str(json.dumps(train_bpe(texts, 600).state))
    bpe.add_special_tokens(["<ts>", "</ts>", "<TS_CONTEXT>"])
    Tokenizer(bpe).save(root / "tokenizer.json")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jobs, "start_jobs", start_plain)
        for name in SOURCES:
            words = ["tokenize", str(root / "corpora" / name), str(root / f"{name}.jsonl"), "--field", "content"]
            words += ["--origin", "origin", "--heldout-origins", str(root / f"{name}.heldout.txt"), "--workers", "1"]
            recipe = f"recipe=toy model=toy_multimodal model.vision=null model.image_token=null {placeholder(root)}"
            words += ["--mixture", f"{recipe} data=recordings", "--tokenizer", str(root / "tokenizer.json")]
            assert main(words) == 0
    return root


def placeholder(root: Path) -> str:
    return f"model.signal_token={Tokenizer.load(root / 'tokenizer.json').id_of('<TS_CONTEXT>')}"


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def stored(corpus: Path, split: str) -> Iterator[tuple[str, Recording]]:
    """(text, signal) of each document."""
    tokenizer, files = Tokenizer.load(corpus / "tokenizer.json"), MediaFiles()
    for shard in json.loads((corpus / MANIFEST).read_text())[{"train": "shards"}.get(split, split)]:
        ids, table = (
            IndexedTokens(corpus / shard["stem"]),
            PlaceTable(corpus / (shard["stem"] + PLACES), shard["records"]),
        )
        starts = ids.document_starts().tolist()
        for number in range(ids.num_documents):
            (place,) = table.between(starts[number], starts[number + 1])
            data = files.read(corpus / (shard["stem"] + MEDIA), place)
            yield tokenizer.decode(ids.document(number).tolist()), Recording.from_bytes(data, where=shard["stem"])


@pytest.mark.parametrize("name", SOURCES)
def test_labels_rate_channels_and_units_arrive_in_a_corpus(name: str, made: Path) -> None:
    expected: dict[tuple[str, bytes], list[str]] = {}  # the texts of a signal in a split
    for line in read(made / f"{name}.jsonl"):
        part, text = line["content"]
        options = {key: value for key, value in part.items() if key not in ("type", "path")}
        recording = read_recording(part["path"], where="part", **options)
        expected.setdefault((line["split"], recording.to_bytes()), []).append(text["text"])
        if line["form"] in ("open", "narration"):
            known = RECORDED[name].survey(made / SOURCES[name]).labels
            assert all(
                {*known[label]} & {*re.findall("|".join(known[label]), text["text"])} for label in line["labels"]
            )
    rate, channels, units = KINDS[name]
    for split in ("train", "heldout"):
        found = [*stored(made / "corpora" / name, split)]
        assert found
        for text, recording in found:
            assert (recording.rate, recording.channels, {*recording.units}) == (rate, channels, units)
            of_signal = expected[split, recording.to_bytes()]
            of_signal.remove(next(own for own in of_signal if own in text))
    assert not any(expected.values())


@pytest.mark.parametrize("name", SOURCES)
def test_no_subject_is_in_both_splits(name: str, made: Path) -> None:
    lines = read(made / f"{name}.jsonl")
    train_, heldout = ({line["origin"] for line in lines if line["split"] == split} for split in ("train", "heldout"))
    assert train_
    assert heldout == {*(made / f"{name}.heldout.txt").read_text().splitlines()}
    assert not train_ & heldout
    card = (made / f"{name}.card.md").read_text()
    assert f"| subjects | | {len(train_)} | {len(heldout)} |" in card
    assert f"--source {name}" in card
    assert not (made / f"{name}.left_out.jsonl").exists()


def test_a_model_with_towers_trains_on_the_three(made: Path, tmp_path: Path) -> None:
    words = ["recipe=toy", "model=toy_multimodal", "model.vision=null", "model.image_token=null", placeholder(made)]
    words += ["model.num_layers=2", "data=recordings", f"data.root={made / 'corpora'}", f"data.seq_len={SEQ_LEN}"]
    words += ["data.phases.all.tokens=9984", "train.steps=3", "train.global_batch=4", "train.micro_batch=4"]
    words += ["train.log_every=1", "train.eval_every=3", "train.eval_batches=1", "train.sample_tokens=0"]
    for name, weight in zip(SOURCES, (1, 6, 32), strict=True):
        of_source = f"data.sources.{name}"
        words += [f"{of_source}.tokens={weight * SEQ_LEN}", f"{of_source}.unique_tokens={SEQ_LEN + 1}"]
        words += [f"{of_source}.max_epochs=100"]
    assert train(compose([*words, f"run.dir={tmp_path / 'run'}"])) == 0
    assert len(losses(tmp_path / "run")) == 3
    steps = [record for record in records(tmp_path / "run") if "signals" in record]
    assert sum(record["signals"] for record in steps) > 3
    (evaluation,) = [record for record in records(tmp_path / "run") if record.get("event") == "evaluation"]
    assert {*evaluation["heldout"]} >= {*SOURCES}


def test_bad_recordings_end_the_command_or_are_listed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    directory = layouts.write_marmaudio(tmp_path / "marmaudio", days=2, rate=8000)
    missing = min(directory.rglob("Phee_*.wav"))
    missing.unlink()
    out = tmp_path / "out.jsonl"
    words = ["science", str(out), "--source", "marmoset_calls", "--recordings", str(directory)]
    assert main(words) == 1
    error_line(capsys.readouterr().err.splitlines()[-1], missing.with_suffix(".flac"))
    assert [path.name for path in tmp_path.iterdir()] == ["marmaudio"]
    assert main([*words, "--bad-media", "skip"]) == 0
    (listed,) = read(tmp_path / "out.left_out.jsonl")
    assert str(missing.with_suffix(".flac")) in listed["problem"]
    assert listed["where"].endswith("line 3")
    assert len(read(out)) == 11
    out.unlink()
    others = [str(tmp_path / f"out{what}") for what in (".card.md", ".heldout.txt", ".left_out.jsonl")]
    assert [fault.where for fault in every_fault(*words)] == others


def test_relative_paths_start_from_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layouts.write_marmaudio(tmp_path / "marmaudio", days=1, rate=8000)
    monkeypatch.chdir(tmp_path)
    assert main(["science", "made/out.jsonl", "--source", "marmoset_calls", "--recordings", "marmaudio"]) == 0
    part = read(tmp_path / "made" / "out.jsonl")[0]["content"][0]
    assert part["path"].startswith("../marmaudio/Vocalizations/")
    assert (tmp_path / "made" / part["path"]).is_file()
    assert not (tmp_path / "made" / "out.heldout.txt").exists()  # of one day none is held out


@pytest.mark.parametrize(
    ("more", "where", "value"),
    [
        (["--source", "eeg_depression"], "--recordings", None),
        (["--source", "thermo", "--recordings", "."], "--source", ["thermo"]),
        (["--source", "eeg_depression", "--source", "thermo", "--recordings", "."], "--source", ...),
        (["--source", "eeg_depression", "--recordings", ""], "--recordings", ""),
        (["--source", "eeg_depression", "--recordings", "nowhere"], "nowhere", None),
        (["--source", "eeg_depression", "--recordings", ".", "--tasks", "0"], "--tasks", 0),
        (["--source", "eeg_depression", "--recordings", ".", "--tasks", "5"], "--tasks", "5"),
        (["--source", "eeg_depression", "--recordings", ".", "--seconds", "0"], "--seconds", "0"),
        (["--source", "eeg_depression", "--recordings", ".", "--rollouts", "u", "--model", "m"], "--rollouts", "u"),
        (["--source", "thermo", "--seconds", "3"], "--seconds", 3.0),
        (["--source", "thermo", "--bad-media", "skip"], "--bad-media", "skip"),
        (["--source", "eeg_depresion", "--recordings", "."], "--source", "eeg_depresion"),
    ],
)
def test_wrong_words_are_refused(more: list[str], where: str, value: Any, tmp_path: Path) -> None:
    fault = refused("science", str(tmp_path / "out.jsonl"), *more)
    assert fault.where == where
    assert value is ... or fault.value == value
    assert fault.allowed is not None
