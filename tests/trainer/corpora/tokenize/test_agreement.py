"""Corpora of other people's tokenizers: the ids that transformers' own call gives, one end token each, or a refusal."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import models, processors

from tests.trainer.corpora.tokenize.others import (
    END,
    KINDS,
    SPELLED,
    TEXTS,
    WORDS,
    backend,
    change,
    documents_of,
    edit,
    expected,
    llama,
    put,
    qwen,
    saved,
    t5,
)
from tests.trainer.corpora.tokenize.tokenized import PREFIXES, start_plain, write_jsonl
from trainer.corpora.tokenize import agreement, jobs, write
from trainer.corpora.tokenize.built import built_dataset
from trainer.corpora.tokenize.inputs import find_files
from trainer.corpora.tokenize.tokenize import tokenize_source
from trainer.data.errors import DataError
from trainer.data.shards.tokenizer import Tokenizer
from trainer.data.shards.windows import Shards

MODEL_FINDS_END = {"Unigram", "Unigram with an end of its own", "words"}  # in a text that spells it


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(write, "HAS_WHEEL", False)


def made(directory: Path, texts: list[str], **options: Any) -> dict[str, Any]:
    source = write_jsonl(directory / "a.jsonl", texts)
    how = {"name": "notes", "domain": "general", "heldout_fraction": 0.3, "workers": 0, **options}
    return tokenize_source([source], directory / "t", directory / "out", **how)


@pytest.mark.parametrize("special_text", ["spell", "encode"])
@pytest.mark.parametrize("kind", KINDS)
def test_stored_ids_are_those_of_transformers(tmp_path: Path, kind: str, special_text: str) -> None:
    KINDS[kind](tmp_path / "t")
    texts = [*TEXTS, *(SPELLED if special_text == "encode" or kind not in MODEL_FINDS_END else [])]
    manifest = made(tmp_path, texts, special_text=special_text)
    right = expected(tmp_path / "t", texts, manifest["tokenizer"]["eos"], special_text)
    assert documents_of(tmp_path / "out", manifest) == right
    left_out = manifest["empty_documents"] + manifest.get("documents_without_tokens", 0)
    assert right.total() + left_out == len(texts)
    assert max(max(ids) for ids in right) < manifest["tokenizer"]["vocab_size"]
    assert {bool(shard["tokens"]) for shard in manifest["shards"]} == {True}
    Shards(tmp_path / "out").read(np.arange(3), 16)  # nothing in it is beyond the vocabulary


@pytest.mark.parametrize("kind", sorted(MODEL_FINDS_END))
def test_a_row_whose_text_gives_the_end_token_is_refused(tmp_path: Path, kind: str) -> None:
    KINDS[kind](tmp_path / "t")
    with pytest.raises(DataError) as caught:
        made(tmp_path, ["karo", "", "karo </s> mi", "mi"])
    assert (caught.value.where, caught.value.value) == (f"{tmp_path / 'a.jsonl'}, line 3", "</s>")
    assert not (tmp_path / "out.tmp").exists()


def other_words(directory: Path) -> None:
    """GPT-2's pieces under the name of Qwen's class."""
    put(directory, backend("byte"), tokenizer_class="Qwen2Tokenizer")


def listed(directory: Path, **token: Any) -> None:
    put(directory, backend("byte"))
    change(directory, added_tokens_decoder={"777": {"content": "<new>", "special": True, **token}})


def twice(directory: Path) -> None:
    made = backend("byte")
    made.post_processor = processors.TemplateProcessing("$A $A", "$A $B", [])
    put(directory, made)


def shared_id(directory: Path) -> None:
    put(directory, backend("byte"))
    edit(directory, lambda content: content["model"]["vocab"].update({"kaka": 0}))


def without_unknown(kind: str) -> Callable[[Path], None]:
    def save(directory: Path) -> None:
        put(directory, backend(kind), eos_token="</s>" if kind != "wordpiece" else "[SEP]")
        vocabulary = json.loads((directory / "tokenizer.json").read_text())["model"]["vocab"]
        if kind == "unigram":
            edit(directory, lambda content: content["model"].update({"unk_id": None}))
        else:
            left = {token: number for token, number in vocabulary.items() if token not in ("[UNK]", "<unk>")}
            added = json.loads((directory / "tokenizer.json").read_text())["added_tokens"]
            tokens = [token for token in added if token["content"] in left]
            edit(directory, lambda content: content["model"].update({"vocab": left}))
            edit(directory, lambda content: content.update({"added_tokens": tokens}))
        (directory / "tokenizer_config.json").unlink()

    return save


@pytest.mark.parametrize(
    ("save", "options", "where", "value"),
    [
        (lambda d: put(d, backend("byte"), eos_token=[END]), {}, "tokenizer_config.json, eos_token", [END]),
        (lambda d: put(d, backend("byte"), eos_token=0), {}, "tokenizer_config.json, eos_token", 0),
        (lambda d: put(d, backend("byte"), eos_token={"content": 3}), {}, "config.json, eos_token", {"content": 3}),
        (saved, {"eos": "k"}, "--eos", "k"),
        (saved, {"eos": "XYZZY"}, "--eos", "XYZZY"),
        (lambda d: put(d, backend("byte"), eos_token="ka"), {}, "--eos", "ka"),
        (lambda d: put(d, backend("wordpiece"), eos_token="karo"), {}, "--eos", "karo"),
        (shared_id, {}, "--eos", END),
        (other_words, {}, "t/tokenizer_config.json", None),
        (listed, {}, "t/tokenizer_config.json", "<new>"),
        (lambda d: listed(d, content="<|im_start|>", special=False), {}, "t/tokenizer_config.json", "<|im_start|>"),
        (lambda d: listed(d, content=None), {}, "t/tokenizer_config.json", None),
        (twice, {}, "t/tokenizer.json, post_processor", None),
        (without_unknown("unigram"), {"eos": "</s>"}, "a.jsonl, line 2", None),
        (without_unknown("words"), {"eos": "</s>"}, "a.jsonl, line 2", None),
        (without_unknown("wordpiece"), {"eos": "[SEP]"}, "a.jsonl, line 2", None),
    ],
)
def test_what_would_give_other_ids_is_refused(
    tmp_path: Path, save: Callable[[Path], Any], options: dict[str, Any], where: str, value: Any
) -> None:
    save(tmp_path / "t")
    with pytest.raises(DataError) as caught:
        made(tmp_path, ["kami", "\u4e2d"], **options)
    assert str(caught.value.where).endswith(where)
    assert value is None or caught.value.value == value
    assert caught.value.allowed
    assert len(caught.value.lines) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "t"]


def test_the_remedy_makes_both_files_agree(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    other_words(tmp_path / "t")
    right = expected(tmp_path / "t", TEXTS, END)
    with pytest.raises(DataError, match=r"AutoTokenizer.from_pretrained\('.*'\).save_pretrained\('NEW'\)"):
        made(tmp_path, TEXTS)
    AutoTokenizer.from_pretrained(tmp_path / "t").save_pretrained(tmp_path / "new")
    (tmp_path / "new").rename(tmp_path / "t" / "t")
    manifest = tokenize_source(
        [tmp_path / "a.jsonl"], tmp_path / "t" / "t", tmp_path / "out", name="a", domain="general", workers=0
    )
    assert documents_of(tmp_path / "out", manifest) == right


@pytest.mark.parametrize(
    ("kind", "counted"),
    [
        ("letters", {"lost_characters": 2 + 2 + 5, "documents_without_tokens": 1}),
        ("byte", {}),
        ("wordpiece", {"unknown_tokens": 2 + 2 + 4}),
        ("unigram", {"unknown_tokens": 1 + 2 + 2}),
        ("llama", {}),
    ],
)
def test_what_a_tokenizer_does_not_know_is_counted(tmp_path: Path, kind: str, counted: dict[str, int]) -> None:
    ends = {"byte": END, "letters": END, "wordpiece": "[SEP]"}
    put(tmp_path / "t", backend(kind), eos_token=ends.get(kind, "</s>"))
    manifest = made(tmp_path, ["karo \u4e2d\u6587", "\u4e2d \u6587", "", "mi 1.5 1\u20ac tel"])
    keys = ("unknown_tokens", "lost_characters", "documents_without_tokens", "inner_ends")
    assert {key: manifest[key] for key in keys if key in manifest} == counted
    assert manifest["empty_documents"] == 1


def test_lost_bytes_are_counted_where_a_byte_has_no_token(tmp_path: Path) -> None:
    put(tmp_path / "t", backend("byte"))

    def remove(content: dict[str, Any]) -> None:
        del content["model"]["vocab"]["\u00e4"]  # the byte E4, the first one of 中

    edit(tmp_path / "t", remove)
    manifest = made(tmp_path, ["karo \u4e2d\u6587", "mi"])
    assert manifest["lost_characters"] == 1
    assert documents_of(tmp_path / "out", manifest) == expected(tmp_path / "t", ["karo \u4e2d\u6587", "mi"], END)


def test_the_template_may_be_omitted(tmp_path: Path) -> None:
    llama(tmp_path / "t")
    manifest = made(tmp_path, TEXTS, template="omit")
    loaded = Tokenizer.load(tmp_path / "t")
    assert documents_of(tmp_path / "out", manifest).keys() == {
        (*ids, loaded.eos_id) for ids in loaded.encode_all(TEXTS)
    }
    assert "before" not in manifest["tokenizer"]


def test_a_prefix_comes_after_the_first_token_and_opens_the_document_for_a_reader(tmp_path: Path) -> None:
    llama(tmp_path / "t")
    manifest = made(tmp_path, TEXTS, prefixes=PREFIXES, group="science")
    loaded = Tokenizer.load(tmp_path / "out", "</s>", before=manifest["tokenizer"]["before"])
    starts = [tuple(loaded.encode(text)) for text in PREFIXES["science"]]
    assert {start[0] for start in starts} == {1}
    for ids in documents_of(tmp_path / "out", manifest):
        assert any(ids[: len(start)] == start for start in starts)
        assert ids.count(1) == 1
    assert Shards(tmp_path / "out").read(np.arange(4), 32).context_BL.any()


def test_contradictions_and_missing_comparisons_are_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    notes: list[str] = []
    llama(tmp_path / "t", add_bos_token=False, add_eos_token=False)
    monkeypatch.setattr(agreement.importlib.util, "find_spec", lambda name: None)
    made(tmp_path, TEXTS, note=notes.append)
    assert [("add_bos_token" in line, "not installed" in line) for line in notes] == [(True, False), (False, True)]


def test_a_template_ends_a_document_once(tmp_path: Path) -> None:
    t5(tmp_path / "t")
    manifest = made(tmp_path, TEXTS)
    ids = next(iter(documents_of(tmp_path / "out", manifest)))
    assert (ids[-1], ids.count(1)) == (1, 1)
    assert "after" not in manifest["tokenizer"]


def test_a_token_of_the_configuration_alone_is_refused_where_text_would_be_encoded_as_it(tmp_path: Path) -> None:
    put(tmp_path / "t", backend("byte"), pad_token="[PAD]")
    texts = [*TEXTS, "karo [PAD]"]
    with pytest.raises(DataError) as caught:
        made(tmp_path, texts, special_text="encode")
    assert caught.value.where == str(tmp_path / "t" / "tokenizer_config.json")
    assert documents_of(tmp_path / "out", made(tmp_path, texts)) == expected(tmp_path / "t", texts, END)


LINES = [" ".join(WORDS[n % 50 : n % 50 + 1 + n % 11]) + f" {n}" for n in range(40)]
FORMS: dict[str, Callable[[Path], list[Any]]] = {
    "jsonl": lambda d: find_files([write_jsonl(d / "a.jsonl", LINES)]),
    "gzip": lambda d: [gzipped(d)],
    "parquet": lambda d: [parquet(d, pa.string())],
    "parquet of dictionaries": lambda d: [parquet(d, pa.dictionary(pa.int32(), pa.string()))],
    "Arrow file of views": lambda d: [arrow(d, pa.string_view(), pa.ipc.new_file)],
    "Arrow stream of large strings": lambda d: [arrow(d, pa.large_string(), pa.ipc.new_stream)],
    "saved": lambda d: find_files([save(d, datasets.Dataset.from_dict({"text": LINES}))]),
    "saved with splits": lambda d: find_files([save(d, splits())], "test"),
    "directory with links": lambda d: find_files([linked(d)]),
    "csv": lambda d: halves("csv", d / "a.csv", "text\n" + "\n".join(LINES) + "\n"),
    "text": lambda d: halves("text", d / "a.txt", "\n".join(LINES)),
    "json": lambda d: halves("json", d / "a.json", "".join(json.dumps({"text": text}) + "\n" for text in LINES)),
    "parquet by a builder": lambda d: built_dataset(
        "parquet", None, [parquet(d, pa.string())], "train[:20]+train[20:]"
    ),
}


def gzipped(directory: Path) -> Path:
    (directory / "a.jsonl.gz").write_bytes(gzip.compress(write_jsonl(directory / "plain", LINES).read_bytes()))
    return directory / "a.jsonl.gz"


def table(kind: pa.DataType) -> pa.Table:
    array = pa.array(LINES)
    return pa.table(
        {"n": range(40), "text": (array.dictionary_encode() if pa.types.is_dictionary(kind) else array).cast(kind)}
    )


def parquet(directory: Path, kind: pa.DataType) -> Path:
    pq.write_table(table(kind), directory / "a.parquet", row_group_size=9)
    return directory / "a.parquet"


def arrow(directory: Path, kind: pa.DataType, writer: Callable[..., Any]) -> Path:
    with writer(str(directory / "a.arrow"), table(kind).schema) as file:
        file.write_table(table(kind), max_chunksize=9)
    return directory / "a.arrow"


def save(directory: Path, dataset: Any) -> Path:
    dataset.save_to_disk(str(directory / "saved"))
    return directory / "saved"


def splits() -> datasets.DatasetDict:
    whole = datasets.Dataset.from_dict({"text": ["karo", *LINES]})
    return datasets.DatasetDict({"train": whole.select([0]), "test": whole.select(range(1, 41))})


def linked(directory: Path) -> Path:
    for name, some in (("top", LINES[:15]), ("real", LINES[15:])):
        (directory / name).mkdir()
        write_jsonl(directory / name / "a.jsonl", some)
    (directory / "top" / "b").symlink_to(directory / "real")
    (directory / "top" / ".a.jsonl").write_text("hidden")
    (directory / "top" / "a.md").write_text("other")
    return directory / "top"


def halves(builder: str, path: Path, content: str) -> list[Any]:
    path.write_text(content)
    return [part for split in ("train[:50%]", "train[50%:]") for part in built_dataset(builder, None, [path], split)]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(
    "kind", ["with truncation saved", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("Llama", "Qwen"))]
)
def test_every_form_of_input_gives_the_ids_of_transformers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, form: str
) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    KINDS[kind](tmp_path / "t")
    (tmp_path / "in").mkdir()
    how = {"name": "notes", "domain": "general", "heldout_fraction": 0.3, "workers": 0}
    manifest = tokenize_source(FORMS[form](tmp_path / "in"), tmp_path / "t", tmp_path / "out", **how)
    right = expected(tmp_path / "t", LINES, manifest["tokenizer"]["eos"])
    assert documents_of(tmp_path / "out", manifest) == right


@pytest.mark.slow
def test_any_number_of_workers_and_a_second_run_give_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "start_jobs", start_plain)
    qwen(tmp_path / "t")
    source = write_jsonl(tmp_path / "a.jsonl", [" ".join(WORDS[n % 50 :]) for n in range(300)])
    found = []
    for name, workers in (("a", 0), ("b", 1), ("c", 3), ("d", 3)):
        tokenize_source([source], tmp_path / "t", tmp_path / name, name="n", domain="general", workers=workers)
        found.append({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()})
    assert found[0] == found[1] == found[2] == found[3]


def test_the_models_of_the_fixtures_are_of_all_types() -> None:
    types = {type(backend(kind).model) for kind in ("byte", "unigram", "wordpiece", "words")}
    assert types == {models.BPE, models.Unigram, models.WordPiece, models.WordLevel}
