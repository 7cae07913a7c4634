"""`octavo tokenize` on the command line."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from launch.cli import main
from tests.launch.refused import every_fault, refused
from tests.printed import error_line
from tests.trainer.corpora.tokenize.others import llama
from tests.trainer.corpora.tokenize.tokenized import save_tokenizer, start_plain, texts, write_jsonl
from tests.trainer.data.media import illustrated
from trainer.corpora.tokenize import jobs
from trainer.data.media.shards import MediaShards
from trainer.data.shards.windows import Shards


@pytest.fixture
def words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(jobs, "start_jobs", start_plain)
    source = write_jsonl(tmp_path / "a.jsonl", [*texts(), ""])
    tokenizer = save_tokenizer(tmp_path)
    return ["tokenize", str(tmp_path / "notes"), str(source), "--tokenizer", str(tokenizer), "--workers", "2"]


def test_a_source_of_a_mixture_gets_its_domain_and_prefixes(words, tmp_path, capsys):
    assert main([*words, "--mixture", "recipe=cpt_6t", "--name", "science_text", "--heldout", "0.1"]) == 0
    shown = capsys.readouterr().out
    opened = Shards(tmp_path / "notes")
    held = Shards(tmp_path / "notes", "heldout")
    assert f"notes: {opened.num_tokens:,} tokens of {opened.num_documents} documents in 1 shard to train on" in shown
    assert f"{held.num_tokens:,} tokens held out; 1 empty text left out" in shown
    assert (opened.name, opened.domain) == ("science_text", "science")
    assert opened.prefix_group
    assert opened.read(np.arange(4), 64).context_BL.any()
    fault = refused(*words, "--domain", "general")
    assert (fault.where, fault.value, fault.allowed) == (words[1], None, "give another path, or remove it")


def test_a_mixture_may_be_a_recipe_of_the_users_own(words, tmp_path, capsys):
    mine, more = tmp_path / "recipes", tmp_path / "more"
    (mine / "data").mkdir(parents=True)
    (mine / "data" / "mine.yaml").write_text(
        "name: mixture\nseq_len: 64\nroot: corpora\nphases: {only: {tokens: 6400}}\n"
        "prefixes: {own: ['Notes of mine.']}\n"
        "sources: {notes: {path: notes, domain: science, prefix: own, tokens: 6400, unique_tokens: 6400, "
        "phases: {only: 1}}}\n"
    )
    (more / "recipe").mkdir(parents=True)
    (more / "recipe" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: toy\n  - override /data: mine\ntrain: {steps: 12}\n"
    )
    dirs = ["--config-dir", str(mine), "--config-dir", str(more)]
    assert main([*words, "--mixture", "mine", *dirs]) == 0
    opened = Shards(tmp_path / "notes")
    assert (opened.name, opened.domain, opened.prefix_group) == ("notes", "science", "own")
    assert opened.manifest["prefix"]["texts"] == ["Notes of mine."]
    words[1] = str(tmp_path / "again" / "notes")
    assert main([*words, "--mixture", "recipe=mine"]) == 2
    error_line(capsys.readouterr().err, "recipe=mine")


def test_a_source_without_a_mixture_has_no_prefix(words, tmp_path, capsys):
    assert main([*words, "--domain", "general", "--shard-tokens", "700", "--field", "text", "--seed", "1"]) == 0
    opened = Shards(tmp_path / "notes")
    assert (opened.name, opened.domain, opened.prefix_group) == ("notes", "general", None)
    assert len(opened.manifest["shards"]) > 2


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(jobs, "start_jobs", start_plain)
    path = illustrated.write_rows(tmp_path, illustrated.rows(40))
    tokenizer = illustrated.save_tokenizer(tmp_path)
    words = ["tokenize", str(tmp_path / "figures"), str(path), "--tokenizer", str(tokenizer), "--workers", "1"]
    return [*words, "--field", "content", "--heldout", "0.1"]


def test_documents_with_images_by_rules_in_words(pictures, tmp_path, capsys):
    assert main([*pictures, "--domain", "general", "--image", "min_pixels=1024", "--image", "token=<IMG_CONTEXT>"]) == 0
    opened = MediaShards(tmp_path / "figures", cache=tmp_path)
    assert opened.rules == replace(illustrated.rules(), signal=None)
    assert f"60 images in {opened.manifest['media_tokens']} tokens" in capsys.readouterr().out


def test_documents_with_images_by_the_model_of_a_mixture(pictures, tmp_path, capsys):
    recipe = "recipe=cpt_6t model=intern_s1_pro data=cpt_6t"
    by_mixture = [*pictures, "--name", "image_text", "--image", "min_pixels=1024", "--mixture"]
    assert main([*by_mixture, recipe]) == 1  # the tokenizer is not that of the model
    error_line(capsys.readouterr().err, "151655")
    tokens = "model.image_token=303 model.signal_token=304"
    assert main([*by_mixture, f"{recipe} {tokens}"]) == 0
    assert MediaShards(tmp_path / "figures", cache=tmp_path).rules.image.token == 303
    (tmp_path / "images" / "7-0.png").unlink()
    words = [word if word != pictures[1] else str(tmp_path / "again") for word in pictures]
    words += ["--domain", "general", "--image", "min_pixels=1024"]
    assert main(words) == 1
    error_line(capsys.readouterr().err, "line 8")
    assert main([*words, "--bad-media", "skip"]) == 0
    assert len((tmp_path / "again" / "left_out.jsonl").read_text().splitlines()) == 1


SOURCES = ("science_text", "structured_science", "general_web", "code", "mathematics", "multilingual")


@pytest.mark.parametrize(
    ("more", "where", "value", "allowed"),
    [
        (["--domain", "law"], "--domain", "law", ("science", "general")),
        (["--domain", "general", "--workers", "0"], "--workers", "0", "a whole number, 1 or more"),
        (["--domain", "general", "--config", "en"], "--config", "en", "--builder NAME"),
        (["--domain", "general", "--special-text", "drop"], "--special-text", "drop", ("spell", "encode")),
        (["--domain", "general", "--bad-media", "skip"], "--bad-media", None, ("--media", "--image", "--signal")),
        (["--domain", "general", "--media", "none"], "none", None, "give an existing directory"),
        (["--domain", "general", "--template", "none"], "--template", "none", ("keep", "omit")),
        (["--domain", "general", "--heldout", "1"], "--heldout", "1", "a share of at least 0 and below 1"),
        (["--domain", "general", "--heldout-origins", "list"], "--heldout-origins", "list", "--origin"),
        (
            ["--domain", "general", "--origin", "id", "--heldout", "0.5", "--heldout-origins", "list"],
            "--heldout",
            0.5,
            "give one of them",
        ),
        (
            ["--domain", "general", "--origin", "id", "--heldout-origins", "none"],
            "none",
            None,
            "give a file with one origin a line",
        ),
        (["--domain", "general", "--config-dir", "."], "--config-dir", ["."], "--mixture RECIPE"),
        (["--mixture", "recipe=toy data=synthetic"], "--name", "notes", ()),
        (["--mixture", "recipe=cpt_6t"], "--name", "notes", SOURCES),
        (["--mixture", "recipe=cpt_6t", "--name", "code", "--domain", "science"], "--domain", "science", ("general",)),
    ],
)
def test_wrong_words_are_refused(words, more, where, value, allowed):
    base = words[: words.index("--workers")] if "--workers" in more else words
    fault = refused(*base, *more)
    assert (fault.where, fault.value, fault.allowed) == (where, value, allowed)


def test_listed_origins_are_held_out_and_no_others(words, tmp_path, capsys):
    rows = [{"text": text, "patient": f"patient {number % 7}"} for number, text in enumerate(texts())]
    rows[2]["patient"] = rows[9]["patient"] = "a\u2028patient 2"
    Path(words[2]).write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "list").write_text("\ufeffpatient 2\n\na\u2028patient 2\npatient 5\npatient 99\n", encoding="utf-8")
    given = [*words, "--domain", "science", "--origin", "patient", "--heldout-origins", str(tmp_path / "list")]
    assert main(given) == 0
    warnings = [line for line in capsys.readouterr().err.splitlines() if "patient 99" in line]
    assert len(warnings) == 1
    assert "patient 2" not in warnings[0]
    opened = Shards(tmp_path / "notes"), Shards(tmp_path / "notes", "heldout")
    counts = [sum(row["patient"][-1] in some for row in rows) for some in ("01346", "25")]
    assert [shards.num_documents for shards in opened] == counts

    words[1] = str(tmp_path / "none")
    (tmp_path / "list").write_text("patient 99\n")
    capsys.readouterr()
    assert main([words[0], words[1], *given[2:]]) == 1
    error_line(capsys.readouterr().err, "patient 99")
    assert not Path(words[1]).exists()
    (tmp_path / "list").write_text("\n")
    assert refused(*words, "--domain", "science", "--origin", "p", *given[-2:]).where == str(tmp_path / "list")


def test_all_that_is_missing_is_named_before_anything_starts(words, tmp_path):
    """The output exists as well."""
    Path(words[1]).mkdir()
    inputs, tokenizer = [str(tmp_path / "none"), str(tmp_path / "none.jsonl")], str(tmp_path / "none.json")
    given = [*words[:2], *inputs, words[2], "--tokenizer", tokenizer, "--domain", "general"]
    assert [fault.where for fault in every_fault(*given)] == [words[1], *inputs, tokenizer]


def test_a_source_needs_a_mixture_or_a_domain(words):
    fault = refused(*words)
    assert (fault.where, "--domain" in fault.allowed) == ("--mixture", True)
    assert refused(*words[:2], *words[3:]).where == "INPUT"


def test_options_may_come_between_the_arguments(words):
    out, *rest = words[1:]
    assert refused(words[0], out, "--seed", "3", *rest[:1], *rest[1:]).where == "--mixture"


def test_a_fault_of_the_input_is_one_line(words, tmp_path, capsys):
    Path(words[2]).write_text('{"body": "iron"}\n')
    assert main([*words, "--domain", "general"]) == 1
    error_line(capsys.readouterr().err, "a.jsonl, line 1", "'text'", "'body'", "--field")


def test_what_is_not_read_and_what_is_counted_is_printed(words, tmp_path, capsys):
    """Files of a directory that are left out, unknown text, and a configuration that has no effect."""
    inside = tmp_path / "inside"
    inside.mkdir()
    write_jsonl(inside / "a.jsonl", ["karo mi", "", "\u4e2d"])
    for name in (".hidden.jsonl", "notes.txt", *(f"{number}.zst" for number in range(9))):
        (inside / name).write_text("{}")
    llama(tmp_path / "theirs", add_eos_token=True)
    words[2:5] = [str(inside), "--tokenizer", str(tmp_path / "theirs")]
    assert main([*words, "--domain", "general", "--workers", "0", "--heldout", "0"]) == 2  # there is no such number
    capsys.readouterr()
    assert main([*words, "--domain", "general", "--heldout", "0", "--special-text", "encode"]) == 0
    out, err = capsys.readouterr()
    assert "1 empty text left out; " in out
    hidden, other, note = [line for line in err.splitlines() if line.startswith(("not read", "note"))]
    assert hidden == f"not read, hidden: 1 ({inside / '.hidden.jsonl'})"
    assert other.startswith("not read, another suffix: 10 (")
    assert other.endswith(", ...)")
    assert "add_eos_token" in note
    manifest = Shards(tmp_path / "notes").manifest["tokenizer"]
    assert (manifest["special_text"], manifest["before"]) == ("encode", [1])


@pytest.mark.parametrize(
    ("more", "named"), [(["--split", "test"], "--split test: "), (["--eos", "a"], "a does not end")]
)
def test_options_that_mean_nothing_for_the_input_are_refused(words, tmp_path, capsys, more, named):
    assert main([*words, "--domain", "general", *more]) == 1
    error_line(capsys.readouterr().err, *more)
    assert not [*tmp_path.glob("notes*")]
