"""Documents of text and images as shards: every form of a row, tars, and media that cannot be used."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.corpora.tokenize.media.written import CLOSE, OPEN, PAD, TEXT, encoded, npy, one, written
from tests.trainer.corpora.tokenize.tokenized import contents, start_plain
from tests.trainer.data.media.illustrated import ids, image, make, rows, rules, wave, with_markers, write_rows
from trainer.corpora.tokenize import inputs, jobs, spool
from trainer.corpora.tokenize.media.documents import PartsDocument
from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Recording
from trainer.data.media.rules import MediaRules
from trainer.data.media.signals import SignalRule
from trainer.data.media.statements import IMAGES, LONG, SIGNALS, SIZES
from trainer.storage.manifest import MANIFEST


def test_every_document_is_there_once_with_its_images_where_their_placeholders_are(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "UNIT", 2000)
    monkeypatch.setattr(spool, "PART_TOKENS", 400)
    documents = rows(120)
    out = make(tmp_path, [write_rows(tmp_path, documents)])
    found = written(out)
    texts = {}
    for tokens, media in found:
        shown = [token for token in tokens if token not in (PAD, OPEN, CLOSE)]
        texts[with_markers().decode(shown)] = media
        for first, count, _ in media:
            assert tokens[first - 1 : first + count + 1] == [OPEN, *[PAD] * count, CLOSE]
        assert sum(count for _, count, _ in media) == tokens.count(PAD)
    assert len(texts) == 120
    for parts in documents:
        whole = "".join(part["text"] for part in parts if part["type"] == "text")
        (media,) = [media for text, media in texts.items() if text.endswith(whole)]
        expected = [(tmp_path / part["image"]).read_bytes() for part in parts if part["type"] == "image"]
        assert [data for _, _, data in media] == expected
    manifest = json.loads((out / MANIFEST).read_text())
    assert (manifest["images"], manifest["records"], manifest["signals"]) == (180, 180, 0)
    assert manifest["media_tokens"] == sum(count for _, media in found for _, count, _ in media)
    assert len(manifest["shards"]) > 2


def test_workers_and_an_interruption_change_no_byte(tmp_path, monkeypatch):
    monkeypatch.setattr(inputs, "UNIT", 3000)
    path = write_rows(tmp_path, rows(60))
    whole = contents(make(tmp_path, [path]))
    monkeypatch.setattr(jobs, "start_jobs", start_plain)
    assert contents(make(tmp_path, [path], out=tmp_path / "two", workers=2)) == whole
    real, done = jobs.run_job, []

    def fails(work: Path, job: dict[str, Any], on_progress: Any) -> Any:
        done.append(job)
        if len(done) == 4:
            raise KeyboardInterrupt
        return real(work, job, on_progress)

    monkeypatch.setattr(jobs, "start_jobs", lambda work: lambda job, report: fails(work, job, lambda *_: None))
    with pytest.raises(KeyboardInterrupt):
        make(tmp_path, [path], out=tmp_path / "again")
    done += [{}] * 9
    assert contents(make(tmp_path, [path], out=tmp_path / "again")) == whole


def test_equal_images_of_a_shard_are_stored_once(tmp_path):
    document = [{"type": "image", "bytes": base64.b64encode(image(1)).decode()}, TEXT]
    _, media = one(tmp_path, document * 5)
    assert [data for _, _, data in media] == [image(1)] * 5
    manifest = json.loads((tmp_path / "source" / MANIFEST).read_text())
    assert (manifest["records"], manifest["distinct_media"]) == (5, 1)
    assert (tmp_path / "source" / "train-00000.media").read_bytes() == image(1)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image", "path": "a.png"},
        {"type": "image", "image": "a.png"},
        {"type": "image", "image": "file://{tmp}/a%2Epng"},
        {"type": "image", "url": "data:image/png;base64," + encoded(7)},
        {"type": "image", "bytes": encoded(7), "path": None},
        {"type": "image", "image": {"bytes": None, "path": "a.png"}},
        {"type": "image_url", "image_url": {"url": "data:image/png;base64," + encoded(7), "detail": "high"}},
    ],
)
def test_an_image_may_be_spelled_as_chat_datasets_do(tmp_path, part):
    (tmp_path / "a.png").write_bytes(image(7))
    spelled = json.loads(json.dumps(part).replace("{tmp}", str(tmp_path)))
    tokens, media = one(tmp_path, [TEXT, spelled, "more"])
    text, more = with_markers().encode("a note"), with_markers().encode("more")
    assert tokens == [*text, OPEN, PAD, CLOSE, *more, with_markers().eos_id]
    assert media == [(len(text) + 1, 1, image(7))]


def test_neighbouring_texts_are_one_text_and_a_string_is_a_document(tmp_path):
    assert one(tmp_path, [TEXT, {"type": "text", "text": " of iron"}])[0][:-1] == with_markers().encode(
        "a note of iron"
    )
    assert one(tmp_path, "a note of iron", out=tmp_path / "b")[0][:-1] == with_markers().encode("a note of iron")


def test_parquet_rows_and_paths_from_another_directory(tmp_path):
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(image(2))
    parts = [
        [
            {"type": "text", "text": "x", "image": None},
            {"type": "image", "text": None, "image": {"bytes": image(1), "path": None}},
        ],
        [{"type": "image", "text": None, "image": {"bytes": None, "path": "a.png"}}],
    ]  # fmt: skip
    pq.write_table(pa.table({"content": parts, "name": ["a", "b"]}), tmp_path / "rows.parquet")
    out = make(
        tmp_path, [tmp_path / "rows.parquet"], media_root=tmp_path / "pictures", origin="name", heldout_fraction=0
    )
    assert {media[0][2] for _, media in written(out)} == {image(1), image(2)}


@pytest.mark.parametrize("how", ["values", "path", "bytes", "object"])
def test_a_signal_may_be_in_the_row_or_in_a_file(tmp_path, how):
    values = wave(3)
    np.save(tmp_path / "wave.npy", values)
    whole = base64.b64encode((tmp_path / "wave.npy").read_bytes()).decode()
    part = {
        "values": {"values": values.tolist(), "rate": 100.0, "channels": ["a", "b"], "units": ["mV", "V"]},
        "path": {"path": "wave.npy", "rate": 100},
        "bytes": {"bytes": whole, "format": "numpy", "rate": 100, "channels": None},
        "object": {"signal": {"bytes": None, "path": "wave.npy"}, "rate": 100},
    }[how]
    tokens, media = one(tmp_path, [TEXT, {"type": "signal", **part}])
    count = SignalRule(max_tokens=4).tokens(300, 100.0)
    assert count > 1
    marked = [ids("<ts>")[0], *ids("<TS_CONTEXT>") * count, *ids("</ts>"), with_markers().eos_id]
    assert tokens == [*with_markers().encode("a note"), *marked]
    ((first, placeholders, data),) = media
    assert (tokens[first], placeholders) == (ids("<TS_CONTEXT>")[0], count)
    recording = Recording.from_bytes(data, where="stored")
    np.testing.assert_array_equal(recording.values, values)
    assert recording.rate == 100
    assert recording.units == (("mV", "V") if how == "values" else ("", ""))


def test_steps_that_the_published_rule_leaves_out_are_counted(tmp_path):
    kind = rules().signal
    media = MediaRules(signal=replace(kind, rule=SignalRule("cut")))
    one(tmp_path, [{"type": "signal", "values": [0.0, 1.0] * 120_010, "rate": 2000.0}], media=media)
    assert json.loads((tmp_path / "source" / MANIFEST).read_text())["signal_steps_left_out"] == 20


@pytest.mark.parametrize(("rate", "count"), [({}, 1), ({"rate": 2.0}, 0)])
def test_signals_without_a_sampling_rate_are_counted(tmp_path, rate, count):
    one(tmp_path, [{"type": "signal", "values": [0.0, 1.0] * 50, **rate}])
    manifest = json.loads((tmp_path / "source" / MANIFEST).read_text())
    assert manifest.get("signals_without_rate", 0) == count
    assert ("1 signals without a sampling rate" in (tmp_path / "source" / "card.md").read_text()) == bool(count)


def test_a_saved_dataset_with_images_in_a_column_of_their_own(tmp_path):
    images = [{"bytes": image(n), "path": None} for n in range(3)]
    columns = {"image": images, "caption": [f"plate {n}" for n in range(3)]}
    datasets.Dataset.from_dict(columns).cast_column("image", datasets.Image()).save_to_disk(str(tmp_path / "saved"))
    files = inputs.find_files([tmp_path / "saved"])
    out = make(tmp_path, files, field="image,caption", origin="caption", heldout_fraction=0, group=None)
    found = written(out)
    assert {media[0][2] for _, media in found} == {image(n) for n in range(3)}
    assert all(tokens[:3] == [OPEN, PAD, CLOSE] for tokens, _ in found)
    (tmp_path / "rows.jsonl").write_text(json.dumps({"caption": "plate", "image": [{"path": "missing.png"}]}) + "\n")
    for field in ("image,caption", "image,text"):
        with pytest.raises(DataError) as error:
            make(tmp_path, [tmp_path / "rows.jsonl"], out=tmp_path / "other", field=field)
        assert error.value.where == f"{tmp_path / 'rows.jsonl'}, line 1"


def stored(tmp_path: Path, rows: list[dict[str, Any]], name: str, **changes: Any) -> list[tuple[str, list[bytes]]]:
    """The documents written of rows with a text and images: the text with a star for each image, and their bytes."""
    path = tmp_path / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = {"out": tmp_path / name, "field": "text", "heldout_fraction": 0, "group": None, **changes}
    found = []
    star = with_markers().encode("*")
    for tokens, media in written(make(tmp_path, [path], **options)):
        shown = [one for token in tokens for one in (star if token == OPEN else [token])]
        found.append((with_markers().decode(shown), [data for *_, data in media]))
    return sorted(found)


def test_images_in_a_field_of_their_own_take_their_places_in_the_text(tmp_path):
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(image(number))
    media = MediaRules(replace(rules().image, field="images", in_text="<image>"))
    rows = [
        {"text": "a <image> and <image>.", "images": ["0.png", {"path": "1.png"}]},
        {"text": "none"},
        {"text": "<image>last", "images": "2.png"},
        {"text": "null", "images": None},
    ]
    expected = [("*last", [image(2)]), ("a * and *.", [image(0), image(1)]), ("none", []), ("null", [])]
    assert stored(tmp_path, rows, "marked", media=media) == expected
    first = MediaRules(replace(rules().image, field="images"))
    unmarked = [{"text": "last", "images": "2.png"}]
    assert stored(tmp_path, unmarked, "first", media=first) == [("*last", [image(2)])]
    for number, row in enumerate(({"text": "<image>"}, {"text": "no mark", "images": ["0.png"]})):
        with pytest.raises(DataError) as error:
            stored(tmp_path, [row], f"wrong{number}", media=media)
        assert error.value.where == f"{tmp_path / f'wrong{number}.jsonl'}, line 1"
    parts = pa.table({"text": ["<image> x", "y"], "images": [[{"bytes": image(1), "path": None}], None]})
    pq.write_table(parts, tmp_path / "rows.parquet")
    out = make(tmp_path, [tmp_path / "rows.parquet"], media=media, field="text", heldout_fraction=0)
    assert sorted(len(found) for _, found in written(out)) == [0, 1]


def test_documents_in_memory_and_the_card_of_a_corpus(tmp_path):
    (tmp_path / "a.png").write_bytes(image(1))
    signal = {"type": "signal", "values": wave(1).tolist(), "rate": 100.0}
    some = [PartsDocument(f"file {n}", [f"note {n}", {"type": "image", "path": "a.png"}, signal]) for n in range(5)]
    out = make(tmp_path, some, media_root=tmp_path, heldout_fraction=0)
    assert len(written(out)) == 5
    card = (out / "card.md").read_text()
    assert "5 documents to train on, 0 held out, 5 images, 5 signals" in card
    assert "max_tokens 4" in card
    stated = (*IMAGES, SIZES, *SIGNALS, LONG["adapt"].format(max_tokens=4))
    assert all(f"- {line}\n" in card for line in stated)
    bad = PartsDocument("file 5", [{"type": "image", "path": "b.png"}])
    with pytest.raises(DataError) as error:
        make(tmp_path, [*some, bad], out=tmp_path / "other", media_root=tmp_path)
    assert error.value.where == "file 5 (document 6)"


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return path


def test_the_members_of_a_key_in_a_tar_are_one_document(tmp_path):
    parts = [
        {"type": "text", "text": "first"},
        {"type": "image", "image": "c.0.png"},
        {"type": "image", "image": "1.png"},
    ]
    path = tar(
        tmp_path / "shard.tar",
        {
            "d/a.jpg": image(1, kind="JPEG"), "d/a.txt": b"one atom", "d/a.json": b'{"text": "not this"}',
            "b.png": image(2), "b.cls": b"3", "b.json": b'{"text": "two atoms"}',
            "e.wave.npy": npy(wave(5)), "e.txt": b"a wave",
            "c.0.png": image(3), "c.1.png": image(4), "c.json": json.dumps({"text": parts}).encode(),
        },
    )  # fmt: skip
    found = written(make(tmp_path, [path], heldout_fraction=0, group=None, field="text"))
    by_text = {with_markers().decode(tokens): ([data for *_, data in media], tokens) for tokens, media in found}
    assert by_text["one atom"][0] == [image(1, kind="JPEG")]
    assert by_text["one atom"][1][:3] == [OPEN, PAD, CLOSE]
    assert by_text["two atoms"][0] == [image(2)]
    assert by_text["first"][0] == [image(3), image(4)]
    np.testing.assert_array_equal(Recording.from_bytes(by_text["a wave"][0][0], where="").values, wave(5))
    assert len(found) == 4


def test_whole_numbers_of_a_row_are_whole(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        '{"axis": 1, "long": 1%s, "content": [1, 2.5, 9007199254740993]}\n' % ("0" * 5000)
    )
    (unit,) = inputs.units_of([tmp_path / "rows.jsonl"])
    ((_, _, (content, axis, long)),) = inputs.records(unit, ["content"], ["axis", "long"], None)
    assert (content, axis, long) == ([1, 2.5, 9007199254740993], 1, float("inf"))
    assert [type(number) for number in (*content, axis)] == [int, float, int, int]


def test_members_of_a_tar_are_known_by_any_suffix_of_their_format_in_any_case(tmp_path):
    members = {"a.JPG": image(1, kind="JPEG"), "a.TXT": b"one", "b.ppm": image(2, kind="PPM"), "b.txt": b"two"}
    members |= {"c.tga": image(3, kind="TGA"), "c.csv": b"name,count\nx,1\n", "c.txt": b"three"}
    members |= {"c.cls": b"3", "b.cls": b"4"}
    notes: list[str] = []
    path = tar(tmp_path / "shard.tar", dict(sorted(members.items())))
    found = written(make(tmp_path, [path], heldout_fraction=0, group=None, field="text", note=notes.append))
    (note,) = notes
    assert "2 .cls, 1 .csv" in note
    assert [len(media) for _, media in found] == [1, 1, 1]
    assert {data for _, media in found for *_, data in media} == {members["a.JPG"], members["b.ppm"], members["c.tga"]}


def test_a_member_twice_and_a_medium_without_a_rule_are_refused(tmp_path):
    path = tmp_path / "shard.tar"
    twice = tar(path, {"a.png": image(1), "a.PNG": image(2), "a.txt": b"one"})
    with pytest.raises(DataError) as error:
        make(tmp_path, [twice], field="text")
    assert error.value.where == f"{path}, key a"
    images = replace(rules(), signal=None)
    sound = tar(path, {"a.png": image(1), "a.npy": npy(wave(5)), "a.txt": b"one"})
    with pytest.raises(DataError) as error:
        make(tmp_path, [sound], field="text", media=images, out=tmp_path / "other")
    assert error.value.where == f"{path}, key a"


@pytest.mark.parametrize("cut", [100, 512 + 512 + 10, -10240, -10240 - 600])
def test_a_truncated_tar_is_refused(tmp_path, cut):
    path = tar(tmp_path / "shard.tar", {"a.png": image(1), "a.txt": b"one", "b.png": image(2), "b.txt": b"two"})
    path.write_bytes(path.read_bytes()[:cut])
    with pytest.raises(DataError) as error:
        make(tmp_path, [path], field="text")
    assert (error.value.where, error.value.allowed) == (str(path), "an intact file")
