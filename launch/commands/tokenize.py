"""`octavo tokenize`: documents as shuffled shards of Megatron's .bin and .idx, with a manifest."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launch.configurations import read_configuration
from launch.paths import check_all, must_exist, must_not_exist, only_with
from launch.progress import ProgressDisplay
from parallel.errors import Fault, one_of
from trainer.config.command_line import Parser, choice, number, whole_number
from trainer.config.errors import CommandError
from trainer.config.say import counted

if TYPE_CHECKING:
    from trainer.config.model import ModelConfig
    from trainer.data.media.rules import MediaRules

NAMED = 5  # files of a kind that are not read
HELDOUT_SHARE = 0.001
COUNTED = {
    "documents_without_tokens": "texts without a token left out",
    "unknown_tokens": "tokens stand for unknown text",
    "lost_characters": "characters lost that the tokenizer does not know",
    "inner_ends": "end tokens inside of documents",
    "signal_steps_left_out": "steps of signals left out",
    "signals_without_rate": "signals without a sampling rate, read as a quarter of their steps in Hz, 1 or more",
}


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`, also for a directory that exists, and `ConfigError` for a wrong --mixture."""
    _options(parser)
    options = parser.read(words)
    if not options.inputs and not options.builder:
        remedy = "name files or directories, or a --builder"
        raise CommandError(f"octavo tokenize: missing INPUT; {remedy}", where="INPUT", allowed=remedy)
    if options.config and not options.builder:
        text = "--config is used only with --builder; add --builder NAME, or drop --config"
        raise CommandError(text, where="--config", value=options.config, allowed="--builder NAME")
    if options.config_dir and not options.mixture:
        text = "--config-dir is used only with --mixture; add --mixture RECIPE, or drop --config-dir"
        raise CommandError(text, where="--config-dir", value=options.config_dir, allowed="--mixture RECIPE")
    inputs = [] if options.builder else options.inputs
    check_all(
        partial(must_not_exist, options.out),
        *(partial(must_exist, path, "give an existing file or directory") for path in inputs),
        partial(must_exist, options.tokenizer, "give a tokenizer.json or a directory that contains one"),
        *(
            partial(must_exist, path, "give an existing directory")
            for path in (options.media, options.media_root)
            if path
        ),
    )
    name, prefixes, group, model = options.name or Path(options.out).name, {}, None, None
    domain = options.domain
    if options.mixture:
        cfg = read_configuration(options.mixture, options.config_dir)
        data = cfg.data
        if name not in data.sources:
            sources = tuple(data.sources)
            text = f"--name={name} is not a source of {options.mixture}; use {one_of(sources) or 'another mixture'}"
            raise CommandError(text, where="--name", value=name, allowed=sources)
        prefixes, group, domain = data.prefixes, data.sources[name].prefix or None, data.sources[name].domain
        model = cfg.model if data.sources[name].modality != "text" else None
        if options.domain not in (None, domain):
            text = f"--domain={options.domain}: {name} is a {domain} source in {options.mixture}; leave the option out"
            raise CommandError(text, where="--domain", value=options.domain, allowed=(domain,))
    heldout_origins = _heldout_origins(options)
    ways = ("--media", "--image", "--signal")
    if model is None and not (options.media or options.image or options.signal):
        for option, given in (("--media-root", options.media_root), ("--bad-media", options.bad_media == "skip")):
            if given:
                text = f"{option} is used only with {one_of(ways)}; add one of them, or drop {option}"
                raise CommandError(text, where=option, allowed=ways)
    if domain is None:
        remedy = "give the --mixture that contains this source, or a --domain for a source without prefixes"
        raise CommandError(f"octavo tokenize: {remedy}", where="--mixture", allowed=remedy)
    return partial(_work, options, name, domain, prefixes, group, model, heldout_origins)


def _work(
    options: argparse.Namespace,
    name: str,
    domain: str,
    prefixes: dict[str, list[str]],
    group: str | None,
    model: ModelConfig | None,
    heldout_origins: Sequence[str],
) -> int:
    from trainer.corpora.tokenize.built import built_dataset
    from trainer.corpora.tokenize.inputs import SUFFIXES, TAR, find_files
    from trainer.corpora.tokenize.tokenize import tokenize_source

    media = _media_rules(options, model)
    started = time.perf_counter()
    inputs = [Path(path) for path in options.inputs]
    skipped: dict[str, list[Path]] = {}
    files: Sequence[Any]
    if options.builder:
        names = [options.field] if media is None else options.field.split(",")
        fields = [*names, *([options.origin] if options.origin else [])]
        files = built_dataset(options.builder, options.config, inputs, options.split, fields)
    else:
        suffixes = SUFFIXES if media is None else (*SUFFIXES, TAR)
        note_skipped = lambda path, why: skipped.setdefault(why, []).append(path)  # noqa: E731
        files = find_files(inputs, options.split, note_skipped, suffixes=suffixes)
    for why, paths in skipped.items():
        more = ", ..." if len(paths) > NAMED else ""
        print(f"not read, {why}: {len(paths)} ({', '.join(map(str, paths[:NAMED]))}{more})", file=sys.stderr)
    notes: list[str] = []
    try:
        with ProgressDisplay() as progress:
            manifest = tokenize_source(
                files,
                Path(options.tokenizer),
                Path(options.out),
                name=name,
                domain="science" if domain == "science" else "general",
                group=group,
                prefixes=prefixes,
                heldout_fraction=options.heldout,
                heldout_origins=heldout_origins,
                shard_tokens=options.shard_tokens,
                seed=options.seed,
                workers=options.workers,
                field=options.field,
                origin=options.origin,
                eos=options.eos,
                special_text=options.special_text,
                template=options.template,
                media=media,
                media_root=Path(options.media_root) if options.media_root else None,
                bad_media=options.bad_media,
                note=notes.append,
                progress=progress,
            )
    except KeyboardInterrupt:
        print(f"interrupted; the same command resumes from {options.out}.tmp", file=sys.stderr)
        return 130
    held = sum(shard["tokens"] for shard in manifest["heldout"])
    empty = f"; {counted(manifest['empty_documents'], 'empty text')} left out" if manifest["empty_documents"] else ""
    others = "".join(f"; {manifest[key]:,} {text}" for key, text in COUNTED.items() if manifest.get(key))
    if left_out := manifest.get("documents_left_out"):
        notes.append(
            f"{counted(left_out, 'document')} with bad media left out; {options.out}/left_out.jsonl lists them"
        )
    for line in notes:
        print(f"note: {line}", file=sys.stderr)
    print(
        f"{options.out}: {manifest['tokens']:,} tokens of {counted(manifest['documents'], 'document')} in "
        f"{counted(len(manifest['shards']), 'shard')} to train on, {held:,} tokens held out{empty}{others}; "
        f"{time.perf_counter() - started:,.1f} s"
    )
    if media is not None:
        found = " and ".join(counted(manifest[f"{kind}s"], kind) for kind in media.kinds)
        print(f"{found} in {manifest['media_tokens']:,} tokens")
    return 0


def _heldout_origins(options: argparse.Namespace) -> list[str]:
    """The lines of `--heldout-origins`, in whose presence no share is held out. Raises `CommandError`."""
    name = options.heldout_origins
    if name is None:
        options.heldout = HELDOUT_SHARE if options.heldout is None else options.heldout
        return []
    if options.origin is None or options.heldout is not None:
        fault = only_with("--heldout-origins", name, "--origin")
        if options.heldout is not None:
            remedy = "give one of them"
            text = f"--heldout={options.heldout} and --heldout-origins={name}: {remedy}"
            fault = Fault(text, "--heldout", options.heldout, remedy)
        raise CommandError([fault])
    options.heldout = 0.0
    must_exist(name, "give a file with one origin a line")
    try:
        # Not splitlines, which also splits at separators that an origin may contain
        origins = [line for line in Path(name).read_text(encoding="utf-8-sig").split("\n") if line]
    except (OSError, UnicodeDecodeError) as error:
        text = f"{name} cannot be read ({error}); give a file with one origin a line"
        raise CommandError(text, where=name, value=str(error), allowed="a text file") from None
    if not origins:
        raise CommandError(f"{name} has no origin; give one a line", where=name, value=0, allowed="one origin a line")
    return origins


def _media_rules(options: argparse.Namespace, model: ModelConfig | None) -> MediaRules | None:
    """model: the mixture's, for a source of images or signals. Raises DataError."""
    if not (options.media or options.image or options.signal or model):
        return None
    from trainer.corpora.tokenize.media.options import media_rules, read_words
    from trainer.data.shards.tokenizer import Tokenizer

    return media_rules(
        Tokenizer.load(Path(options.tokenizer), options.eos),
        image=read_words("--image", options.image),
        signal=read_words("--signal", options.signal),
        model=model,
        published=Path(options.media) if options.media else None,
    )


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add("out", metavar="OUT", help="output directory; must not exist, unless you are resuming an interrupted run")
    add(
        "inputs",
        metavar="INPUT",
        nargs="*",
        help="files (.jsonl, .jsonl.gz, .parquet or .arrow; .tar with --media, --image or --signal), directories of "
        "such files, or datasets saved by save_to_disk; hidden files in directories are not read",
    )
    add("--tokenizer", required=True, metavar="FILE", help="a tokenizer.json, or a directory that contains one")
    add(
        "--mixture",
        metavar="RECIPE",
        help="the name of a recipe, or quoted overrides such as 'recipe=cpt_6t'; the source named by --name supplies "
        "the domain and prefixes",
    )
    add(
        "--config-dir",
        action="append",
        default=[],
        metavar="DIR",
        help="directory with more recipes for --mixture; may be repeated",
    )
    add("--name", help="name of the source (default: OUT's base name)")
    add(
        "--domain",
        **choice("science", "general"),
        help="domain of the source when --mixture is not given; documents then get no prefix",
    )
    add(
        "--field",
        default="text",
        help="JSON field or column that holds the text; with media, or the parts, several with commas (default: text)",
    )
    add(
        "--origin",
        metavar="FIELD",
        help="field that names a document's origin; documents with the same origin always go to the same split",
    )
    add(
        "--media",
        metavar="DIR",
        help="documents are lists of text, images and signals, which become tokens as in the published model in DIR",
    )
    add(
        "--image",
        action="append",
        default=[],
        metavar="'KEY=VALUE ...'",
        help="how images become tokens, instead of --media or beside it: rule=patches|tiles and its sizes, token=, "
        "before= and after= for the placeholder and its markers, decode_limit= for the pixels of a file, field= for a "
        "field with the images of a row, in_text= for the word that stands for each in the text",
    )
    add(
        "--signal",
        action="append",
        default=[],
        metavar="'KEY=VALUE ...'",
        help="the same for signals: long=adapt|cut, max_tokens=, token=, before=, after=, field=, in_text=",
    )
    add("--media-root", metavar="DIR", help="directory that paths in documents start from (default: that of the file)")
    add(
        "--bad-media",
        **choice("fail", "skip"),
        default="fail",
        help="fail at the first document with media that cannot be used, or leave such documents out and list them "
        "in OUT/left_out.jsonl (default: fail)",
    )
    add("--eos", metavar="TOKEN", help="token appended to each document (default: the tokenizer's eos_token)")
    add(
        "--special-text",
        **choice("spell", "encode"),
        default="spell",
        help="text that spells a special token: keep it as text, or encode it as that token (default: spell)",
    )
    add(
        "--template",
        **choice("keep", "omit"),
        default="keep",
        help="tokens that the tokenizer puts around each text, such as <s>: keep them, as transformers does, or omit "
        "them (default: keep)",
    )
    add(
        "--heldout",
        type=number(lambda share: 0 <= share < 1, "a share of at least 0 and below 1"),
        metavar="SHARE",
        help="fraction of documents to hold out from training; at least one of several is held out, unless SHARE is 0 "
        f"(default: {HELDOUT_SHARE})",
    )
    add(
        "--heldout-origins",
        metavar="FILE",
        help="hold out the documents of these origins instead, one a line, such as the patients of a test set",
    )
    add(
        "--shard-tokens",
        type=whole_number(1),
        default=1 << 28,
        metavar="N",
        help="tokens per shard; each worker holds one shard in memory (default: 2^28)",
    )
    add("--seed", type=int, default=0, help="seed for the document order and the prefixes (default: 0)")
    add(
        "--workers",
        type=whole_number(1),
        default=os.cpu_count() or 1,
        metavar="N",
        help="number of worker processes (default: one per core)",
    )
    add(
        "--split",
        help="split of a saved dataset, or the split or rows to read with --builder, such as 'train[:10%%]' or "
        "train+test (default: train)",
    )
    add(
        "--builder",
        metavar="NAME",
        help="read INPUT, if given, with datasets.load_dataset(NAME); NAME is csv, text, xml, ... or the "
        "name of a dataset",
    )
    add("--config", metavar="NAME", help="with --builder: configuration of the dataset")
