"""Media that cannot be used, and excerpts of recordings."""

from __future__ import annotations

import base64
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.printed import error_line
from tests.trainer.corpora.tokenize.media.written import PAD, TEXT, encoded, npy, one, written
from tests.trainer.data.media.illustrated import ids, image, make, rules, wave
from trainer.corpora.tokenize.media import parts as part_reader
from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Recording
from trainer.storage.manifest import MANIFEST

BOMB = image(1, 8, 8)


def test_a_document_has_an_excerpt_of_its_recording(tmp_path, monkeypatch):
    """A recording with several excerpts is read once for the comparison with transformers, and once for the corpus."""
    np.save(tmp_path / "wave.npy", wave(1))
    part = {"type": "signal", "path": "wave.npy", "rate": 100, "channels": ["1"]}
    spans = [{"start": 0}, {"seconds": 0.5}, {"start": 0.505, "seconds": 2}, {"start": 2.5}]
    lines = [json.dumps({"content": [TEXT, {**part, **span}]}) for span in spans]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    reads, read = [], part_reader.read_recording
    monkeypatch.setattr(
        part_reader, "read_recording", lambda *given, **more: (reads.append(given), read(*given, **more))[1]
    )
    found = written(make(tmp_path, [tmp_path / "rows.jsonl"], heldout_fraction=0, group=None))
    some = (Recording.from_bytes(data, where="a") for _, media in found for *_, data in media)
    values = sorted(some, key=lambda found: (found.steps, -found.values[0, 0]))
    expected = [wave(1)[first:last, 1:] for first, last in ((0, 50), (250, 300), (50, 250), (0, 300))]
    for found, wanted in zip(values, expected, strict=True):
        assert (found.rate, found.channels) == (100.0, ("1",))
        np.testing.assert_allclose(found.values, wanted, rtol=1e-6)
    assert len(reads) == 2


ROW = {"type": "signal", "values": [1.0, 2.0]}


NPY = {"type": "signal", "bytes": base64.b64encode(npy(wave(1))).decode(), "format": "numpy"}


# name -> a part that cannot be used, and the value that the error names
BAD: dict[str, tuple[Any, Any]] = {
    "truncated": ({"type": "image", "bytes": base64.b64encode(image(1, 2, 2)[:-600]).decode()}, None),
    "not an image": ({"type": "image", "bytes": base64.b64encode(b"GIF89a??").decode()}, None),
    "a bomb": ({"type": "image", "bytes": base64.b64encode(BOMB).decode()}, 256 * 256),
    "no bytes": ({"type": "image", "bytes": ""}, 0),
    "not base64": ({"type": "image", "bytes": "?"}, "?"),
    "no such file": ({"type": "image", "path": "missing.png"}, "missing.png"),
    "neither": ({"type": "image"}, ()),
    "both": ({"type": "image", "path": "a.png", "bytes": encoded(1)}, ("path", "bytes")),
    "download": ({"type": "image_url", "image_url": {"url": "https://example.org/a.png"}}, "https://example.org/a.png"),
    "no format": ({"type": "signal", "bytes": encoded(1)}, ""),
    "ragged": ({"type": "signal", "values": [[1.0], [1.0, 2.0]]}, None),
    "not finite": ({"type": "signal", "values": [None, None]}, (2, 1)),
    "no steps": ({"type": "signal", "values": []}, (0, 1)),
    "no names": ({**ROW, "channels": ["a", "b"]}, (2, 1)),
    "an option": ({**NPY, "format": "audio", "time": "t"}, "time"),
    "rate as text": ({**NPY, "rate": "250"}, "250"),
    "rate below 0": ({**NPY, "rate": -3}, -3.0),
    "rate of a row": ({**ROW, "rate": 0}, 0.0),
    "endless rate": ({**ROW, "rate": float("inf")}, float("inf")),
    "channels as a number": ({**NPY, "channels": 5}, 5.0),
    "channels of a row": ({**ROW, "channels": "a"}, "a"),
    "units of a row": ({**ROW, "units": [1]}, [1.0]),
    "half an axis": ({**NPY, "time_axis": 0.5}, 0.5),
    "format as a list": ({**NPY, "format": ["numpy"]}, ["numpy"]),
    "another key": ({**ROW, "sampling_rate": 250}, "sampling_rate"),
    "units of a file": ({**NPY, "units": ["mV"]}, "units"),
    "units as text": ({**ROW, "units": "mV"}, "mV"),
    "a time of values": ({**ROW, "time": "t"}, "time"),
    "an image in a text": ({"type": "text", "text": "a", "image": "a.png"}, "image"),
    "a size": ({"type": "image", "bytes": encoded(1), "max_pixels": 9}, "max_pixels"),
    "an array": ({"type": "signal", "signal": {"path": "a.npy", "sampling_rate": 250}}, "sampling_rate"),
    "true rate": ({"type": "signal", "path": "wave.npy", "rate": True}, True),
    "rate of a file": ({"type": "signal", "path": "wave.npy", "rate": -5}, -5.0),
    "before": ({"type": "signal", "path": "wave.npy", "rate": 5, "start": -1}, -1.0),
    "behind": ({"type": "signal", "path": "wave.npy", "rate": 5, "start": 59, "seconds": 2}, (59.0, 2.0)),
    "no length": ({"type": "signal", "path": "wave.npy", "rate": 5, "seconds": 0}, 0.0),
    "no rate": ({"type": "signal", "path": "wave.npy", "seconds": 1}, None),
    "of values": ({**ROW, "seconds": 1}, "seconds"),
    "base64 as a path": ({"type": "image", "image": "A" * 10_000}, "A" * 80 + "..."),
    "video": ({"type": "video", "video": "a.mp4"}, "video"),
    "a video's address": ({"type": "video_url", "video_url": {"url": "a.mp4"}}, "video_url"),
    "type": ({"type": "table"}, "table"),
    "no text": ({"type": "text"}, None),
    "no object": (3, "int"),
    "a video token": ({"type": "text", "text": "<|video_pad|>"}, ids("<|video_pad|>")[0]),
    "placeholder": ({"type": "text", "text": "<IMG_CONTEXT>"}, PAD),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_media_are_reported_by_their_row_or_left_out_and_listed(tmp_path, name):
    path = tmp_path / "rows.jsonl"
    np.save(tmp_path / "wave.npy", wave(1))
    part, value = BAD[name]
    documents = [[TEXT], [TEXT, part], [TEXT, {"type": "image", "bytes": encoded(1)}]]
    path.write_text("".join(json.dumps({"content": parts}) + "\n" for parts in documents))
    changes: dict[str, Any] = {"media": rules(decode_limit=128 * 128), "heldout_fraction": 0, "special_text": "encode"}
    with pytest.raises(DataError) as error:
        make(tmp_path, [path], **changes)
    assert error.value.where == f"{path}, line 2"
    assert len(error.value.faults) == 1
    if value is not None:  # a library's reason otherwise
        assert error.value.value == value
    out = make(tmp_path, [path], bad_media="skip", **changes)
    assert len(written(out)) == 2
    assert (out / "left_out.jsonl").stat().st_size < 1000
    (line,) = [json.loads(line) for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert line["where"] == f"{path}, line 2"
    assert json.loads((out / MANIFEST).read_text())["documents_left_out"] == 1


@pytest.mark.parametrize("name", ["rows.parquet", "rows.jsonl"])
def test_a_null_in_a_column_is_a_bad_document(tmp_path, name):
    path = tmp_path / name
    found = [{"image": {"bytes": encoded(n), "path": None}, "caption": f"plate {n}"} for n in range(5)]
    found[1]["image"], found[3]["caption"] = None, None
    if name.endswith("parquet"):
        raw = [row | {"image": row["image"] and {"bytes": image(n), "path": None}} for n, row in enumerate(found)]
        pq.write_table(pa.Table.from_pylist(raw), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in found))
    changes: dict[str, Any] = {"field": "image,caption", "heldout_fraction": 0, "group": None}
    with pytest.raises(DataError) as error:
        make(tmp_path, [path], **changes)
    assert (error.value.where.endswith(" 2"), error.value.value) == (True, "image")
    out = make(tmp_path, [path], bad_media="skip", **changes)
    assert len(written(out)) == 3
    left_out = [json.loads(line)["where"] for line in (out / "left_out.jsonl").read_text().splitlines()]
    assert sorted(line[-1] for line in left_out) == ["2", "4"]


def test_signals_of_channels_and_steps_need_their_axis(tmp_path):
    values = np.random.default_rng(1).normal(size=(64, 1000))
    np.save(tmp_path / "wave.npy", values)
    for part in ({"path": "wave.npy"}, {"values": values.tolist()}):
        with pytest.raises(DataError) as error:
            one(tmp_path, [TEXT, {"type": "signal", **part}])
        assert error.value.value == (64, 1000)
        error_line("\n".join(error.value.lines), "time_axis=1", "time_axis=0")
        for axis, shape in ((1, (1000, 64)), (0, (64, 1000))):
            signal = {"type": "signal", **part, "time_axis": axis}
            _, ((_, _, data),) = one(tmp_path, [TEXT, signal], out=tmp_path / f"{axis}-{len(part)}-{'path' in part}")
            assert Recording.from_bytes(data, where="stored").values.shape == shape
    named = {"values": values.tolist(), "channels": [str(n) for n in range(1000)]}  # leaves no doubt
    assert one(tmp_path, [TEXT, {"type": "signal", **named}], out=tmp_path / "named")
    with pytest.raises(DataError):
        one(tmp_path, [{"type": "signal", "values": [1.0, 2.0], "time_axis": 1}], out=tmp_path / "no axis")


def test_a_source_whose_documents_are_all_left_out_is_an_error_with_the_first(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"content": [BAD["video"][0]]}) + "\n" for _ in range(3)))
    with pytest.raises(DataError) as error:
        make(tmp_path, [path], bad_media="skip")
    assert (error.value.where, error.value.value) == (f"{path}, line 1", 3)


def test_a_source_without_one_image_is_noted(tmp_path):
    (tmp_path / "rows.jsonl").write_text(json.dumps({"content": [TEXT]}) + "\n")
    said: list[str] = []
    make(tmp_path, [tmp_path / "rows.jsonl"], heldout_fraction=0, note=said.append)
    assert len(said) == 1
