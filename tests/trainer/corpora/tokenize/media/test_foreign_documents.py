"""Documents with media as other libraries and chat datasets have them: read, or refused with what would work."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.data.media.illustrated import image, with_markers
from trainer.corpora.tokenize.inputs import SUFFIXES, TAR, find_files, units_of
from trainer.corpora.tokenize.media.documents import documents
from trainer.corpora.tokenize.media.encode import Bad
from trainer.corpora.tokenize.media.options import media_rules
from trainer.data.errors import DataError
from trainer.data.media.readers.recording import Recording

PNG = "data:image/png;base64," + base64.b64encode(image(7)).decode()
IMAGES = {"field": "images", "in_text": "<image>"}


def read(path: Path, field: str = "text", **kinds: dict[str, str]) -> list[Any]:
    """The documents of a file: texts and media of each, or a Bad."""
    rules = media_rules(with_markers(), image=kinds.get("image", {}), signal=kinds.get("signal", {}))
    assert rules is not None
    files = find_files([path], suffixes=(*SUFFIXES, TAR))
    found = (one for unit in units_of(files) for one in documents(unit, field, None, rules, None, Counter()))
    return [document if isinstance(document, Bad) else document.parts for _, _, document in found]


def lines(tmp_path: Path, *rows: Any) -> Path:
    (tmp_path / "a.png").write_bytes(image(7))
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize(
    ("row", "field", "value"),
    [
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": PNG}}]}]}, "messages",
         ("role", "content")),
        ({"conversations": [{"from": "human", "value": "<image>\nWhat?"}], "images": "a.png"}, "conversations",
         ("from", "value")),
        ({"content": [{"type": "image", "image": "a.png", "max_pixels": 50176}]}, "content", "max_pixels"),
        ({"content": [{"type": "image", "source": {"type": "base64", "data": PNG}}]}, "content", ()),
        ({"images": "a.png", "text": "<image>\nWhat?"}, "text", "<image>"),
    ],
)  # fmt: skip
def test_a_form_that_is_not_read_is_refused(tmp_path, row, field, value):
    mark = IMAGES if field == "conversations" else {"field": "images"} if field == "text" else {}
    (found,) = read(lines(tmp_path, row), field, image=mark)
    assert isinstance(found, Bad)
    assert found.value == value


def test_forms_of_chat_datasets_that_are_read(tmp_path):
    for row, field, mark in (
        ({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": PNG}}]},
         "content", {}),
        ({"content": [{"type": "image_url", "image_url": PNG}, {"type": "text", "text": "a"}]}, "content", {}),
        ({"content": [{"type": "image", "image": "a.png"}, {"type": "text", "text": "a"}]}, "content", {}),
        ({"images": ["a.png"], "query": "<image>a", "response": "b"}, "query,response", IMAGES),
        ({"images": ["a.png"], "text": "An <image> is a tag, <image> too."}, "text", {"field": "images"}),
    ):  # fmt: skip
        (found,) = read(lines(tmp_path, row), field, image=mark)
        assert [part.data for part in found if not isinstance(part, str)] == [image(7)]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_of_documents_is_refused(tmp_path, indent):
    (tmp_path / "rows.json").write_text(json.dumps([{"text": "iron"}, {"text": "tin"}], indent=indent))
    with pytest.raises(DataError) as error:
        read(tmp_path / "rows.json")
    assert error.value.where == f"{tmp_path / 'rows.json'}, line 1"
    assert "jq -c '.[]'" in error.value.value


def sound() -> bytes:
    soundfile = pytest.importorskip("soundfile")
    file = io.BytesIO()
    soundfile.write(file, np.sin(np.arange(300) / 9), 8000, format="WAV", subtype="FLOAT")
    return file.getvalue()


def table() -> bytes:
    return b"ecg\n" + b"\n".join(b"%d" % (step % 7) for step in range(30))


@pytest.mark.parametrize(
    ("data", "path", "rate"), [(sound, "a.wav", 8000.0), (sound, None, 8000.0), (table, "a.csv", None)]
)
def test_audio_columns_of_datasets_have_their_format_in_the_path_or_the_bytes(tmp_path, data, path, rate):
    """As datasets.Audio stores a column: bytes, and the name that they came from."""
    rows = pa.table({"audio": [{"bytes": data(), "path": path}], "text": ["a"]})
    pq.write_table(rows, tmp_path / "a.parquet")
    (found,) = read(tmp_path / "a.parquet", signal={"field": "audio"})
    recording = Recording.from_bytes(found[0].data, where="a")
    assert (recording.rate, recording.values.std() > 0.1, found[1]) == (rate, True, "a")


@pytest.mark.parametrize("out", ["saved", "a.parquet"])
def test_audio_of_datasets_keeps_the_rate_of_its_file(tmp_path, out):
    """Audio(sampling_rate=...) resamples when datasets decodes; the file is as it was."""
    (tmp_path / "a.wav").write_bytes(sound())
    found = datasets.Dataset.from_dict({"audio": [str(tmp_path / "a.wav")], "text": ["a"]})
    found = found.cast_column("audio", datasets.Audio(sampling_rate=16000))
    found.save_to_disk(str(tmp_path / out)) if out == "saved" else found.to_parquet(str(tmp_path / out))
    ((medium, _),) = read(tmp_path / out, signal={"field": "audio"})
    recording = Recording.from_bytes(medium.data, where="a")
    assert (recording.rate, recording.steps) == (8000.0, 300)


def test_sound_that_datasets_has_decoded_keeps_its_rate(tmp_path):
    audio = {"array": np.sin(np.arange(300) / 9).tolist(), "path": "a.wav", "sampling_rate": 16000}
    pq.write_table(pa.table({"audio": [audio], "text": ["a"]}), tmp_path / "a.parquet")
    for path in (tmp_path / "a.parquet", lines(tmp_path, {"audio": audio, "text": "a"})):
        (found,) = read(path, signal={"field": "audio"})
        recording = Recording.from_bytes(found[0].data, where="a")
        assert (recording.rate, recording.values[:, 0].tolist()) == (16000, audio["array"])


def test_bytes_without_a_format_are_refused(tmp_path):
    pq.write_table(pa.table({"audio": [{"bytes": table(), "path": None}], "text": ["a"]}), tmp_path / "a.parquet")
    (found,) = read(tmp_path / "a.parquet", signal={"field": "audio"})
    assert isinstance(found, Bad)


@pytest.mark.parametrize("form", ["saved", "decode=False", "shards", "sequence", "parquet"])
def test_images_of_datasets_in_every_form_that_it_writes(tmp_path, form):
    paths = []
    for number in range(4):
        (tmp_path / f"{number}.png").write_bytes(image(number))
        paths.append(str(tmp_path / f"{number}.png"))
    images: Any = [[path] for path in paths] if form == "sequence" else paths
    kind = datasets.Sequence(datasets.Image()) if form == "sequence" else datasets.Image(decode=form != "decode=False")
    features = datasets.Features({"images": kind, "text": datasets.Value("string")})
    found = datasets.Dataset.from_dict({"images": images, "text": [f"<image>{n}" for n in range(4)]}, features=features)
    out = tmp_path / ("a.parquet" if form == "parquet" else "saved")
    if form == "parquet":
        found.to_parquet(str(out))  # bytes are None, and the paths absolute
    else:
        found.save_to_disk(str(out), num_shards=3 if form == "shards" else 1)
    assert [(media.data, text) for media, text in read(out, image=IMAGES)] == [(image(n), str(n)) for n in range(4)]


def tar(tmp_path: Path, *members: tuple[str, bytes]) -> Path:
    """As webdataset.TarWriter writes: the members of a sample by name."""
    with tarfile.open(tmp_path / "a.tar", "w") as file:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return tmp_path / "a.tar"


def test_keys_with_dots_are_refused_with_what_a_name_needs(tmp_path):
    """webdataset too takes both samples for one, img."""
    members = [(f"img.{n}.{suffix}", data) for n in range(2) for suffix, data in (("jpg", image(n)), ("txt", b"a"))]
    (found,) = read(tar(tmp_path, *members))
    assert isinstance(found, Bad)
    assert "a key ends at the first dot" in found.problem
    members = [
        (f"part.{n}/img.{suffix}", data) for n in range(2) for suffix, data in (("jpg", image(n)), ("txt", b"a"))
    ]
    assert [media.data for media, _ in read(tar(tmp_path, *members))] == [image(0), image(1)]


def test_a_class_alone_is_refused_and_a_caption_in_json_is_chosen(tmp_path):
    members = (("0.jpg", image(1)), ("0.cls", b"3"), ("0.json", b'{"caption": "tin", "label": 3}'))
    path = tar(tmp_path, *members)
    assert isinstance(read(path)[0], Bad)
    assert read(path, "caption")[0][1] == "tin"


def test_the_status_that_img2dataset_writes_beside_its_tars_is_not_documents(tmp_path):
    """It has the captions of all links, failed ones included, which would be documents without their images."""
    path = tar(tmp_path, ("000.jpg", image(1)), ("000.json", b'{"caption": "tin"}'), ("000.txt", b"tin"))
    status = pa.table({"key": ["000", "001"], "caption": ["tin", "lead"], "status": ["success", "failed_to_download"]})
    pq.write_table(status, path.with_suffix(".parquet"))
    (tmp_path / "a_stats.json").write_text('{\n    "count": 2\n}')
    (tmp_path / "octavo_index").mkdir()  # of `octavo data index`
    skipped = []
    files = find_files([tmp_path], None, lambda path, why: skipped.append(path.name), suffixes=(*SUFFIXES, TAR))
    assert (files, skipped) == ([path], ["a.parquet", "a_stats.json", "octavo_index"])
    assert [text for _, text in read(tmp_path, "caption")] == ["tin"]
    path.unlink()
    assert [path.name for path in find_files([tmp_path], suffixes=(*SUFFIXES, TAR))] == ["a.parquet"]
