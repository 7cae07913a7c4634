"""Files as other programs leave them: every document once, or a refusal that names the file, or a count of what is not
read."""

from __future__ import annotations

import bz2
import gzip
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.trainer.corpora.tokenize.tokenized import make, texts, write_jsonl
from trainer.corpora.tokenize import inputs, write
from trainer.corpora.tokenize.built import built_dataset
from trainer.corpora.tokenize.inputs import find_files, units_of
from trainer.corpora.tokenize.units import Rows
from trainer.data.errors import DataError

TEXTS = [text.strip() for text in texts(60)]
GOOD = '{"text": "iron"}\n'


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(write, "HAS_WHEEL", False)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / ".cache")
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    yield
    if not shown:
        datasets.enable_progress_bars()


def read(files: Sequence[Path | Rows], field: str = "text", origin: str | None = None) -> list[str]:
    return [text for unit in units_of(files) for _, _, text in inputs.documents(unit, field, origin)]


def arrow(path: Path, table: pa.Table, stream: bool = False, rows: int = 7) -> Path:
    with (pa.ipc.new_stream if stream else pa.ipc.new_file)(str(path), table.schema) as writer:
        writer.write_table(table, max_chunksize=rows)
    return path


def parquet(path: Path, table: pa.Table) -> Path:
    pq.write_table(table, path, row_group_size=11)
    return path


def typed(kind: pa.DataType) -> pa.Table:
    array = pa.array(TEXTS).dictionary_encode() if pa.types.is_dictionary(kind) else pa.array(TEXTS)
    return pa.table({"text": array.cast(kind)})


STRINGS = [
    pa.string(),
    pa.large_string(),
    pa.string_view(),
    pa.dictionary(pa.int32(), pa.string()),
    pa.dictionary(pa.int8(), pa.large_string()),
]


@pytest.mark.parametrize("unit", [200, 1 << 26])
@pytest.mark.parametrize("form", ["file", "stream", "parquet", "saved"])
@pytest.mark.parametrize("kind", STRINGS, ids=str)
def test_every_type_of_strings_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: pa.DataType, form: str, unit: int
) -> None:
    monkeypatch.setattr(inputs, "UNIT", unit)
    table = typed(kind)
    if form == "parquet":
        files = [parquet(tmp_path / "a.PARQUET", table)]
    elif form == "saved":
        datasets.Dataset.from_dict({"text": TEXTS}).save_to_disk(str(tmp_path / "saved"), num_shards=1)
        (file,) = (tmp_path / "saved").glob("*.arrow")
        file.unlink()
        arrow(file, table, stream=True)
        files = [tmp_path / "saved" / file.name]
    else:
        files = [arrow(tmp_path / "a.arrow", table, form == "stream")]
    assert read(files) == TEXTS


def built(directory: Path, builder: str) -> list[Path]:
    path = directory / f"a.{builder}"
    if builder == "csv":
        datasets.Dataset.from_dict({"text": TEXTS, "n": [*range(60)]}).to_csv(str(path))
    elif builder == "parquet":
        parquet(path, typed(pa.string()))
    elif builder == "json":
        write_jsonl(path, TEXTS)
    else:
        path.write_text("\n".join(TEXTS))
    return [path]


SPLITS = [
    "train", "all", "train[:10]", "train[50%:]", "train[:50%]", "train[-5:]", "train[10:20]", "train[33%:66%]",
    "train[7:]", "train[:10]+train[50:]", "train[20:10]", "train[:1000]",
]  # fmt: skip
NO_SPLITS = ["test", "train+test", "[10:20]", "train[1:2:3]", "train[:10", "train[:9%](pct1_dropremainder)", ""]


@pytest.mark.parametrize("builder", ["csv", "text", "parquet", "json"])
def test_splits_are_those_of_datasets(tmp_path: Path, builder: str) -> None:
    files = built(tmp_path, builder)
    whole = datasets.load_dataset(builder, data_files=[str(file) for file in files])
    assert read(built_dataset(builder, None, files)) == TEXTS
    for split in SPLITS:
        right = datasets.load_dataset(builder, data_files=[str(file) for file in files], split=split)["text"]
        assert read(built_dataset(builder, None, files, split)) == list(right), split
    for split in NO_SPLITS:
        with pytest.raises((ValueError, AssertionError)):
            datasets.load_dataset(builder, data_files=[str(file) for file in files], split=split)
        with pytest.raises(DataError) as caught:
            built_dataset(builder, None, files, split)
        assert (caught.value.where, caught.value.value) == ("--split", split)
        assert caught.value.allowed == tuple(whole)


def test_splits_go_over_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [write_jsonl(tmp_path / f"{n}.json", TEXTS[20 * n : 20 * n + 20]) for n in range(3)]
    monkeypatch.setattr(datasets.config, "DEFAULT_MAX_BATCH_SIZE", 7)
    found = built_dataset("json", None, files, "train[15:45]")
    assert read(found) == TEXTS[15:45]
    out = make(tmp_path, found, group=None)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["documents"] + sum(shard["documents"] for shard in manifest["heldout"]) == 30


def test_another_split_does_not_resume_the_work_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from trainer.corpora.tokenize import tokenize

    files = built(tmp_path, "text")
    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "_describe", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, built_dataset("text", None, files, "train[:10]"))
    with pytest.raises(DataError) as caught:
        make(tmp_path, built_dataset("text", None, files, "train[10:]"))
    assert caught.value.where == str(tmp_path / "source.tmp")
    assert any("--split" in line for line in caught.value.value)


def test_a_split_of_what_has_none_is_refused(tmp_path: Path) -> None:
    some = datasets.Dataset.from_dict({"text": TEXTS})
    some.save_to_disk(str(tmp_path / "one"))
    (tmp_path / "trained.txt").write_text("\n".join(TEXTS))
    named = datasets.load_dataset("text", data_files=[str(tmp_path / "trained.txt")], split="train")
    named.save_to_disk(str(tmp_path / "named"))
    datasets.DatasetDict({"train": some, "test": some.select(range(3))}).save_to_disk(str(tmp_path / "two"))
    file = write_jsonl(tmp_path / "a.jsonl", TEXTS)
    (tmp_path / "dir").mkdir()
    write_jsonl(tmp_path / "dir" / "a.jsonl", TEXTS)
    for path in ("one", "named", "a.jsonl", "dir"):
        with pytest.raises(DataError) as caught:
            find_files([tmp_path / path], "test")
        assert (caught.value.where, caught.value.value) == ("--split", "test")
        assert read(find_files([tmp_path / path])) == TEXTS
    with pytest.raises(DataError):
        find_files([tmp_path / "two", file], "test")
    with pytest.raises(DataError) as caught:
        find_files([tmp_path / "two"], "train[:10]")
    assert caught.value.allowed == ("train", "test")
    assert read(find_files([tmp_path / "named"], "train")) == TEXTS
    assert read(find_files([tmp_path / "two"], "test")) == TEXTS[:3]


def columns(*names: str) -> pa.Table:
    return pa.Table.from_arrays([pa.array([f"{name} {number}"]) for number, name in enumerate(names)], names=[*names])


@pytest.mark.parametrize("form", ["parquet", "file", "stream", "csv", "json"])
@pytest.mark.parametrize(
    ("names", "origin", "twice"),
    [
        (("text", "text"), None, "text"),
        (("text", "url", "text"), None, "text"),
        (("text", "url", "text"), "url", "text"),
        (("text", "url", "url"), "url", "url"),
        (("text", "url", "url"), None, None),
    ],
)
def test_two_columns_of_one_name_are_refused(
    tmp_path: Path, form: str, names: tuple[str, ...], origin: str | None, twice: str | None
) -> None:
    def found() -> list[str]:
        if form == "csv":
            (tmp_path / "a.csv").write_text(f"{','.join(names)}\n{','.join(f'{n} {i}' for i, n in enumerate(names))}\n")
            fields = [field for field in ("text", origin) if field]
            return read(built_dataset("csv", None, [tmp_path / "a.csv"], None, fields), origin=origin)
        if form == "json":
            body = ", ".join(f'"{name}": "{name} {number}"' for number, name in enumerate(names))
            (tmp_path / "a.jsonl").write_text(f"{{{body}}}\n")
            return read([tmp_path / "a.jsonl"], origin=origin)
        path = tmp_path / f"a.{'parquet' if form == 'parquet' else 'arrow'}"
        file = parquet(path, columns(*names)) if form == "parquet" else arrow(path, columns(*names), form == "stream")
        return read([file], origin=origin)

    if twice is None:
        assert found() == ["text 0"]
        return
    with pytest.raises(DataError) as caught:
        found()
    assert twice in str(caught.value.value)
    assert ("--builder csv" if form == "csv" else str(tmp_path / "a.")) in str(caught.value.where)


def tree(directory: Path) -> Path:
    """A directory with links, hidden files and files of other kinds."""
    real, top = directory / "real", directory / "top"
    (real / "deep").mkdir(parents=True)
    top.mkdir()
    write_jsonl(real / "b.jsonl", TEXTS[20:30])
    write_jsonl(real / "deep" / "c.JSONL", TEXTS[30:40])
    write_jsonl(top / "a.jsonl", TEXTS[:20])
    write_jsonl(directory / "elsewhere", TEXTS[50:])
    (top / "sub").symlink_to("../real")
    (top / "z.jsonl").symlink_to("../elsewhere")
    (top / "t.json.gz").write_bytes(gzip.compress((write_jsonl(directory / "t", TEXTS[40:50])).read_bytes()))
    (top / "x.jsonl.bz2").write_bytes(bz2.compress(GOOD.encode()))
    (top / "README.md").write_text("# Notes")
    (top / "._a.jsonl").write_bytes(bytes(10))
    (top / ".git").mkdir()
    (top / ".git" / "hidden.jsonl").write_text(GOOD)
    (top / ".gone.jsonl").symlink_to("nowhere")
    return top


def test_links_are_followed_and_what_is_not_read_is_named(tmp_path: Path) -> None:
    top = tree(tmp_path)
    skipped: list[tuple[str, str]] = []
    files = find_files([top], None, lambda path, why: skipped.append((path.name, why)))
    assert read(files) == TEXTS
    assert [str(file.relative_to(top)) for file in files] == [
        "a.jsonl", "sub/b.jsonl", "sub/deep/c.JSONL", "t.json.gz", "z.jsonl"
    ]  # fmt: skip
    assert sorted(skipped) == [
        ("._a.jsonl", "hidden"), (".git", "hidden"), (".gone.jsonl", "hidden"),
        ("README.md", "another suffix"), ("x.jsonl.bz2", "another suffix"),
    ]  # fmt: skip


def gone(top: Path) -> None:
    (top / "b.jsonl").symlink_to("/nonexistent")


def gone_directory(top: Path) -> None:
    (top / "more").symlink_to("../nowhere")


def loop(top: Path) -> None:
    (top / "more").symlink_to(".")


def again(top: Path) -> None:
    (top / "zz").symlink_to("sub")


def hard_link(top: Path) -> None:
    os.link(top / "a.jsonl", top / "zz.jsonl")


def pipe(top: Path) -> None:
    os.mkfifo(top / "zz.jsonl")


def selected(top: Path) -> None:
    some = datasets.Dataset.from_dict({"text": TEXTS})
    datasets.DatasetDict({"validation": some}).save_to_disk(str(top / "zz"))


@pytest.mark.parametrize(
    ("spoil", "where"),
    [
        (gone, "b.jsonl"),
        (gone_directory, "more"),
        (loop, "more"),
        (again, "zz/b.jsonl"),
        (hard_link, "zz.jsonl"),
        (pipe, "zz.jsonl"),
        (selected, "--split"),
    ],
)
def test_a_directory_that_cannot_be_read_as_a_whole_is_refused(
    tmp_path: Path, spoil: Callable[[Path], None], where: str
) -> None:
    top = tree(tmp_path)
    spoil(top)
    with pytest.raises(DataError) as caught:
        find_files([top])
    assert caught.value.where in (where, str(top / where))
    assert caught.value.allowed


def test_saved_datasets_inside_a_directory_are_read_as_such(tmp_path: Path) -> None:
    for number in range(2):
        some = datasets.Dataset.from_dict({"text": TEXTS[30 * number : 30 * number + 30]})
        some.save_to_disk(str(tmp_path / "all" / f"part{number}"))
    assert read(find_files([tmp_path / "all"])) == TEXTS


def not_utf8(directory: Path) -> pa.Table:
    bad = pa.StringArray.from_buffers(
        3, pa.py_buffer(b"\0\0\0\0\2\0\0\0\6\0\0\0\7\0\0\0"), pa.py_buffer(b"ok\xff\xfeban")
    )
    return pa.table({"text": pa.chunked_array([pa.array(["a"] * 12), bad])})


def mixed(*values: Any) -> Callable[[Path], list[str]]:
    def found(directory: Path) -> list[str]:
        path = directory / "a.jsonl"
        path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
        return read(built_dataset("json", None, [path], None, ["text"]))

    return found


def csv(content: str) -> Callable[[Path], list[str]]:
    def found(directory: Path) -> list[str]:
        (directory / "a.csv").write_text(content)
        return read(built_dataset("csv", None, [directory / "a.csv"], None, ["text"]))

    return found


@pytest.mark.parametrize(
    ("found", "where", "value"),
    [
        (lambda d: read([parquet(d / "a.parquet", not_utf8(d))]), r"a\.parquet, row 14$", "^text$"),
        (lambda d: read([arrow(d / "a.arrow", not_utf8(d))]), r"a\.arrow, row 14$", "^text$"),
        (lambda d: read([arrow(d / "a.arrow", pa.table({"text": [1]}))]), r"a\.arrow$", "^text$"),
        (lambda d: read([arrow(d / "a.arrow", pa.table({"text": [b"a"]}))]), r"a\.arrow$", "^text$"),
        (lambda d: read([arrow(d / "a.arrow", pa.table({"text": [["a"]]}))]), r"a\.arrow$", "^text$"),
        (lambda d: read([parquet(d / "a.parquet", pa.table({"text": pa.nulls(3)}))]), r"a\.parquet$", "^text$"),
        (
            lambda d: read([parquet(d / "a.parquet", pa.table({"text": ["a"] * 30 + [None]}))]),
            r"a\.parquet, row 31$",
            "^text$",
        ),
        (mixed("abc", "007", 5, "1.50", "null", None), r"^--builder json, row 3$|row 2$", "^text$"),
        (mixed("abc", {"a": 1}), r"^--builder json, row 2$", "^text$"),
        (csv("text,n\n007,1\n008,2\n"), r"text-train\.arrow|csv-train\.arrow", "^text$"),
        (csv("text,n\niron,1\nNA,2\n"), r"csv-train\.arrow, row 2$", "^text$"),
    ],
)
def test_text_that_is_not_there_as_text_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Callable[[Path], list[str]], where: str, value: str
) -> None:
    monkeypatch.setattr(inputs, "UNIT", 20)
    with pytest.raises(DataError) as caught:
        found(tmp_path)
    assert re.search(where, caught.value.where)
    assert re.search(value, str(caught.value.value))
    assert caught.value.allowed
    assert len(caught.value.lines) == 1


@pytest.mark.parametrize(
    "line",
    [
        '{"text": "iron", "s": ' + "9" * 5000 + "}",
        '{"s": -' + "9" * 5000 + ', "text": "iron"}',
        '{"text": "iron", "m": {"text": 1, "text": 2}}',
        '{"text": "iron", "x": NaN, "y": 1e999}',
        '\ufeff{"text": "iron"}\r',
        '{"te\\u0078t": "iron"}',
    ],
)
def test_other_fields_may_be_anything(tmp_path: Path, line: str) -> None:
    (tmp_path / "a.jsonl").write_text(f"{line}\n{GOOD}")
    assert read([tmp_path / "a.jsonl"]) == ["iron", "iron"]


def test_the_file_that_a_full_disk_did_not_take_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy that fails names both files; the one that is written is at fault."""
    import errno
    import shutil

    from trainer.corpora.tokenize import tokenize

    source = write_jsonl(tmp_path / "a.jsonl", TEXTS)

    def full(start: str, end: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", start, None, end)

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "shutil", type("", (), {**vars(shutil), "copyfile": staticmethod(full)}))
        with pytest.raises(DataError) as caught:
            make(tmp_path, [source])
    assert caught.value.where == str(tmp_path / "source.tmp" / "tokenizer.json")
    assert not (tmp_path / "source.tmp").exists()
