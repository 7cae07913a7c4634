"""The index of tar files as img2dataset leaves them: what it finds, counts, refuses and resumes."""

from __future__ import annotations

import json
import tarfile
from pathlib import Path

import pytest

from tests.trainer.data.pairs.made import CAPTIONS, image, write_shard, write_source, write_status, write_tar
from trainer.corpora.pairs import index as making
from trainer.corpora.pairs.index import index_pairs
from trainer.data.errors import DataError
from trainer.data.pairs.index import INDEX, ROWS, PairIndex

pytest.importorskip("PIL", reason="needs Pillow: pip install -e '.[media]'")


def everything(directory: Path) -> dict[bytes, str]:
    """Image -> caption of all pairs."""
    index = PairIndex(directory)
    return {index.image(row): index.text(row) for row in index.rows(range(len(index)))}


def test_every_pair_is_found_with_its_image_and_caption(tmp_path):
    """In any language, as JPEG, PNG or WebP, in a folder of the tar file, with the caption in .json alone."""
    files = {
        "00000/000000000.jpg": image(0),
        "00000/000000000.txt": CAPTIONS[0].encode(),
        "00000/000000000.json": json.dumps({"caption": "another"}).encode(),
        "00000/000000001.png": image(1, "PNG"),
        "00000/000000001.json": json.dumps({"caption": CAPTIONS[1]}).encode(),
        "00000/000000002.webp": image(2, "WEBP"),
        "00000/000000002.txt": f"  {CAPTIONS[3]}\n".encode(),
    }
    write_tar(tmp_path / "00000.tar", files)
    manifest = index_pairs(tmp_path)
    assert everything(tmp_path) == {image(0): CAPTIONS[0], image(1, "PNG"): CAPTIONS[1], image(2, "WEBP"): CAPTIONS[3]}
    assert manifest["counts"] == {"samples": 3, "pairs": 3, "captions": 3, "images": 3}
    assert manifest["status"] == manifest["damaged"] == {}


def test_what_failed_is_counted(tmp_path):
    write_shard(tmp_path, 0, {0: "one", 1: "One ", 2: "three"}, dead=4)
    files = {"a.jpg": image(0), "b.jpg": image(5), "b.txt": b"  ", "c.txt": b"text", "d.jpg": b"", "d.txt": b"text"}
    write_tar(tmp_path / "00001.tar", {**files, "e.jpg": image(6), "e.txt": b"\xff\xfe"})
    rows = [{"status": "success", "error_message": None}] * 7
    rows += [{"status": "failed_to_resize", "error_message": "image decoding error"}]
    write_status(tmp_path / "00001.parquet", rows)
    found = index_pairs(tmp_path)
    assert found["counts"] == {
        "samples": 8,
        "pairs": 3,
        "captions": 2,
        "images": 3,
        "without_caption": 3,
        "without_image": 2,
        "missing_from_tar": 2,
    }
    assert found["status"] == {"success": 10, "failed_to_download": 4, "failed_to_resize": 1}
    assert found["reasons"] == {"<urlopen error [Errno -2] ...>": 4, "image decoding error": 1}


def test_the_pairs_before_a_damage_are_kept_and_the_file_is_named(tmp_path):
    write_source(tmp_path)
    path = tmp_path / "00001.tar"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = index_pairs(tmp_path)
    assert list(found["damaged"]) == ["00001.tar"]
    assert 20 < found["counts"]["pairs"] < 40
    assert found["counts"]["missing_from_tar"] > 0
    assert len(everything(tmp_path)) == found["counts"]["pairs"]


@pytest.mark.parametrize("samples", [10, 19.7])
def test_a_file_that_ends_between_two_members_is_damaged(tmp_path, samples):
    """Behind whole samples, and behind an image whose caption is lost: Python's tarfile complains about neither."""
    write_source(tmp_path, 20, 20)
    path = tmp_path / "00000.tar"
    with tarfile.open(path) as tar:
        members = tar.getmembers()
    last = members[int(samples * 3) - 1]  # three members a sample
    path.write_bytes(path.read_bytes()[: last.offset_data + -(-last.size // 512) * 512])
    found = index_pairs(tmp_path)
    assert list(found["damaged"]) == ["00000.tar"]
    assert int(samples) - 1 <= found["counts"]["pairs"] <= int(samples)
    assert found["counts"]["missing_from_tar"] == 20 - found["counts"]["samples"]


def test_an_index_is_made_once_and_resumed(tmp_path, monkeypatch):
    write_source(tmp_path / "whole", 40, 10)
    write_source(tmp_path / "broken", 40, 10)
    expected = index_pairs(tmp_path / "whole")
    read, calls = making.read_tar, []

    def interrupted(path: Path, number: int, texts: tuple[str, ...]):
        calls.append(number)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return read(path, number, texts)

    monkeypatch.setattr(making, "read_tar", interrupted)
    with pytest.raises(KeyboardInterrupt):
        index_pairs(tmp_path / "broken")
    assert index_pairs(tmp_path / "broken") == expected
    assert calls == [0, 1, 2, 2, 3]
    assert index_pairs(tmp_path / "broken") == expected
    assert len(calls) == 5
    assert sorted(path.name for path in (tmp_path / "broken").iterdir() if path.is_dir()) == [INDEX]


def test_rows_that_are_sorted_in_parts_are_the_same(tmp_path, monkeypatch):
    write_source(tmp_path / "one", 60)
    write_source(tmp_path / "two", 60)
    expected = index_pairs(tmp_path / "one")
    monkeypatch.setattr(making, "BUCKET", 7)
    assert index_pairs(tmp_path / "two") == expected
    assert (tmp_path / "two" / INDEX / ROWS).read_bytes() == (tmp_path / "one" / INDEX / ROWS).read_bytes()


def test_other_processes_make_the_same_index(tmp_path):
    write_source(tmp_path / "one")
    write_source(tmp_path / "two")
    assert index_pairs(tmp_path / "one") == index_pairs(tmp_path / "two", workers=2)


def test_directories_that_have_no_index_or_another_are_refused(tmp_path):
    with pytest.raises(DataError) as error:
        index_pairs(tmp_path)
    assert error.value.where == str(tmp_path)
    write_source(tmp_path)
    with pytest.raises(DataError) as error:
        PairIndex(tmp_path)
    assert error.value.where == str(tmp_path / INDEX / "manifest.json")
    index_pairs(tmp_path)
    write_shard(tmp_path, 7, {99: "more"})
    with pytest.raises(DataError) as error:
        index_pairs(tmp_path)
    assert error.value.where == str(tmp_path / "00007.tar")


def test_a_changed_byte_is_noticed(tmp_path):
    write_source(tmp_path)
    index_pairs(tmp_path)
    rows = tmp_path / INDEX / ROWS
    good = rows.read_bytes()
    PairIndex(tmp_path).verify()
    rows.write_bytes(good[:100] + bytes([good[100] ^ 1]) + good[101:])
    with pytest.raises(DataError) as error:
        PairIndex(tmp_path).verify()
    assert error.value.where == str(rows)
    rows.write_bytes(good[:-1])
    with pytest.raises(DataError) as error:
        PairIndex(tmp_path)
    assert (error.value.where, error.value.value) == (str(rows), len(good) - 1)
    rows.write_bytes(good)
    index = PairIndex(tmp_path)
    (row,) = index.rows([11])
    tar = tmp_path / index.manifest["tars"][int(row["tar"])]["name"]
    content = bytearray(tar.read_bytes())
    content[int(row["image_at"]) + 20] ^= 1
    tar.write_bytes(content)
    with pytest.raises(DataError) as error:
        index.image(row)
    assert error.value.where == str(tar)
    assert index.text(row)


def test_captions_below_a_share_of_all_hashes_come_first(tmp_path):
    write_source(tmp_path)
    index_pairs(tmp_path)
    index = PairIndex(tmp_path)
    hashes = index.rows(range(len(index)))["caption"].tolist()
    assert hashes == sorted(hashes)
    for share in (0.0, 0.1, 0.5, 1.0):
        assert index.below(share) == sum(value < share * 2**64 for value in hashes)
