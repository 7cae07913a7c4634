"""An interrupted or killed tokenization resumes, whatever was damaged in between, and only the same work."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.trainer.corpora.tokenize.stored import needs_megatron, written
from tests.trainer.corpora.tokenize.tokenized import (
    contents,
    documents,
    make,
    save_tokenizer,
    texts,
    write_jsonl,
)
from trainer.corpora.tokenize import inputs, spool, tokenize
from trainer.data.errors import DataError


def test_interrupted_anywhere_the_result_is_the_same(tmp_path, plain, many_units, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", texts(200))
    whole = contents(make(tmp_path, [source], out=tmp_path / "whole"))
    out, starts = tmp_path / "source", 0
    for function in ("spool_unit", "write_shard"):
        original, kept = getattr(tokenize.jobs, function), [0]

        def dies(*args, original=original, kept=kept, **kwargs):
            kept[0] += 1
            if kept[0] % 3 == 0:
                raise KeyboardInterrupt
            return original(*args, **kwargs)

        monkeypatch.setattr(tokenize.jobs, function, dies)
        while not out.exists() and starts < 50:
            starts += 1
            try:
                make(tmp_path, [source])
            except KeyboardInterrupt:
                continue
        if function == "spool_unit":
            assert starts > 5
    assert contents(out) == whole


@pytest.mark.parametrize("last", ["start", "spool", "rename"])
def test_killed_at_its_start_or_end_it_still_resumes(tmp_path, plain, monkeypatch, last):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    whole = contents(make(tmp_path, [source], out=tmp_path / "whole"))

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    def remove_and_stop(path):
        shutil.rmtree(path)
        raise KeyboardInterrupt

    places = {"start": ("copyfile", stop), "spool": ("rmtree", remove_and_stop)}
    with monkeypatch.context() as patch:
        if last in places:
            patch.setattr(tokenize, "shutil", SimpleNamespace(**{**vars(shutil), places[last][0]: places[last][1]}))
        else:
            patch.setattr(tokenize, "publish", stop)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, [source])
    assert contents(make(tmp_path, [source])) == whole


def test_what_was_damaged_in_between_is_made_again(tmp_path, plain, many_units, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", texts(200))
    whole = contents(make(tmp_path, [source], out=tmp_path / "whole"))

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "_describe", stop)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, [source])
    work = tmp_path / "source.tmp"
    for path in (work / "spool" / "000001-0000", work / "train-00001.bin", work / "train-00002.idx"):
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(content)
    (work / "train-00000.bin").unlink()
    (work / "train-00003.bin.tmp").write_bytes(b"of a process that was killed")
    assert contents(make(tmp_path, [source])) == whole


KILLED = """
import sys
from dataclasses import replace
from pathlib import Path
from typing import ClassVar
from tests.trainer.corpora.tokenize.tokenized import DEFAULTS
from trainer.corpora.tokenize import inputs
from trainer.corpora.tokenize.tokenize import tokenize_source
inputs.UNIT = 20_000
source, tokenizer, out = map(Path, sys.argv[1:])
tokenize_source([source], tokenizer, out, **{**DEFAULTS, "workers": 2, "shard_tokens": 20_000})
"""


@needs_megatron
def test_after_kill_9_it_resumes_with_other_workers(tmp_path, plain, monkeypatch):
    monkeypatch.setattr(inputs, "UNIT", 20_000)
    source = write_jsonl(tmp_path / "a.jsonl", texts(4000))
    whole = contents(make(tmp_path, [source], out=tmp_path / "whole", shard_tokens=20_000))
    words = [str(source), str(save_tokenizer(tmp_path)), str(tmp_path / "source")]
    process = subprocess.Popen([sys.executable, "-c", KILLED, *words], stderr=subprocess.DEVNULL)
    done = tmp_path / "source.tmp" / "spool"
    while process.poll() is None and len([*done.glob("*.json")]) < 2:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL
    assert len([*done.glob("*.json")]) >= 2
    finished = {path: path.stat().st_mtime_ns for path in done.glob("*.json")}
    made = []
    monkeypatch.setattr(tokenize.jobs, "spool_unit", lambda *args: made.append(args[1]) or spool.spool_unit(*args))
    for _ in range(200):  # its workers end with their unit, and till then keep others out
        try:
            out = make(tmp_path, [source], shard_tokens=20_000)
            break
        except DataError as error:
            assert error.where == str(tmp_path / "source.tmp")  # noqa: PT017
            time.sleep(0.05)
    assert contents(out) == whole
    assert not {f"{unit:06}.json" for unit in made} & {path.name for path in finished}


def test_only_the_same_work_is_resumed_and_nothing_is_overwritten(tmp_path, plain, monkeypatch):
    source = write_jsonl(tmp_path / "a.jsonl", texts())
    out = make(tmp_path, [source])
    before = contents(out)
    with pytest.raises(DataError) as caught:
        make(tmp_path, [source])
    assert (caught.value.where, caught.value.allowed) == (str(out), "remove it or give another directory")
    assert contents(out) == before

    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "_describe", stop)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, [source], out=tmp_path / "b")
    with pytest.raises(DataError) as caught:
        make(tmp_path, [source], out=tmp_path / "b", seed=4, heldout_fraction=0.1)
    assert caught.value.where == str(tmp_path / "b.tmp")
    assert caught.value.value == ["--seed was 3 and is 4", "--heldout was 0.2 and is 0.1"]
    assert caught.value.allowed.startswith(f"remove {tmp_path / 'b.tmp'}")
    write_jsonl(source, texts(3))
    more = write_jsonl(tmp_path / "more.jsonl", texts(3))
    with pytest.raises(DataError) as caught:
        make(tmp_path, [source, more], out=tmp_path / "b")
    assert caught.value.value == [f"the input {source} has changed", f"the input {more} is new"]
    with pytest.raises(DataError) as caught:
        make(tmp_path, [more], out=tmp_path / "b")
    assert caught.value.value == [f"the input {more} is new", f"the input {source} is no longer named"]
    (tmp_path / "c.tmp").mkdir()
    (tmp_path / "c.tmp" / "thesis.txt").touch()
    with pytest.raises(DataError) as caught:
        make(tmp_path, [source], out=tmp_path / "c")
    assert (caught.value.where, caught.value.value) == (str(tmp_path / "c.tmp"), "thesis.txt")
    assert (tmp_path / "c.tmp" / "thesis.txt").exists()
    # Foreign files with the names of ours.
    theirs = [tmp_path / "d.tmp" / name for name in ("lock", "tokenizer.json", "spool/thesis.txt")]
    theirs[-1].parent.mkdir(parents=True)
    for path in theirs:
        path.write_text("mine")
    with pytest.raises(DataError) as caught:
        make(tmp_path, [source], out=tmp_path / "d")
    assert (caught.value.where, caught.value.value) == (str(tmp_path / "d.tmp"), "spool")
    assert [path.read_text() for path in theirs] == ["mine"] * 3
    with pytest.raises(DataError) as caught:
        make(tmp_path, [source], out=Path("."))
    assert (caught.value.where, caught.value.allowed) == (".", "remove it or give another directory")


@pytest.mark.parametrize("bad", ["", "no JSON\n", '{"text": "iron"}\nno JSON\n'])
def test_after_an_error_with_nothing_finished_nothing_stays_and_the_mended_input_is_taken(tmp_path, plain, bad):
    source = write_jsonl(tmp_path / "b.jsonl", texts())
    whole = contents(make(tmp_path, [source], out=tmp_path / "whole"))
    good = source.read_text()
    source.write_text(bad)
    with pytest.raises(DataError) as caught:
        make(tmp_path, [source], workers=1)
    assert caught.value.where.partition(",")[0] == str(source)
    assert not (tmp_path / "source.tmp").exists()
    source.write_text(good)
    assert contents(make(tmp_path, [source])) == whole


def test_after_a_start_that_finished_nothing_work_starts_over(tmp_path, plain, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    source = write_jsonl(tmp_path / "a.jsonl", texts(3))
    with monkeypatch.context() as patch:
        patch.setattr(tokenize.jobs, "spool_unit", stop)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, [source], seed=1)
    (tmp_path / "source.tmp" / "spool" / "000000-0000").write_bytes(b"half a part")
    write_jsonl(source, texts())
    whole = contents(make(tmp_path, [source], out=tmp_path / "whole"))
    assert contents(make(tmp_path, [source])) == whole


def test_documents_in_memory_are_never_taken_from_an_earlier_start(tmp_path, plain, monkeypatch):
    def stop(*args, **kwargs):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tokenize, "_describe", stop)
        with pytest.raises(KeyboardInterrupt):
            make(tmp_path, documents(texts(50)), heldout_fraction=0.0)
    make(tmp_path, documents(["an atom"]), heldout_fraction=0.0)
    assert len(written(tmp_path / "source", "train")) == 1
