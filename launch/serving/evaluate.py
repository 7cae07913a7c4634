"""`octavo evaluate`: score a model's answers to the questions of benchmarks."""

from __future__ import annotations

import argparse
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.config.command_line import Parser, above_zero, choice, number, whole_number
from trainer.config.errors import CommandError, print_warning
from trainer.evaluation.asked import SETTINGS, Model, Settings
from trainer.evaluation.perplexity import PERPLEXITY
from trainer.evaluation.registry import SUITES, find
from trainer.evaluation.suite import Suite, SuiteError

if TYPE_CHECKING:
    import torch

    from trainer.evaluation.embedded import EmbeddedModel
    from trainer.evaluation.served import ServedModel

SERVER = re.compile("https?://")
EXAMPLE = "suite=NAME, or several with commas; octavo evaluate --list names them"
INSTALL = "pip install -e '.[evaluate]'"
OUT = "outputs/evaluations"
NAMED = 5  # rows in a warning
JUDGE = Settings("judge", 16_384, 0.0, 1.0, 0, thinking=False)


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`, also for suites, files of benchmarks, models and packages that are missing."""
    _options(parser)
    options = parser.read(words)
    if options.list:
        return lambda: _list(options.markdown)
    if options.markdown:
        allowed = "--list --markdown"
        raise CommandError(f"--markdown goes with --list; give {allowed}", where="--markdown", allowed=allowed)
    try:
        return _prepare(options)
    except SuiteError as error:
        raise CommandError(error.faults) from None


def _options(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "model",
        nargs="?",
        metavar="MODEL",
        help="a run, one of its step-N directories, a Hugging Face directory, or the URL of a server with OpenAI's API",
    )
    add("words", nargs="*", metavar="suite=NAME[,NAME]", help="the suites to run")  # fmt: skip
    add("--list", action="store_true",
        help="print the suites: metrics and their sources, files, reported figures, and the newest values in "
        f"{OUT}")  # fmt: skip
    add("--markdown", action="store_true", help="with --list: a table for a document")
    add("--data", default="benchmarks", metavar="DIR",
        help="directory with the files of each suite in a directory of its name (default: benchmarks)")  # fmt: skip
    add("--settings", default="non_thinking", **choice(*SETTINGS),
        help="thinking: 65,536 tokens, temperature 0.8, top-p 0.95, top-k 50; non_thinking: 32,768 tokens, greedy "
        "(default)")  # fmt: skip
    add("--max-tokens", type=whole_number(1), metavar="N", help="the most tokens of an answer, with its thinking")
    add("--temperature", type=number(lambda value: 0 <= value < float("inf"), "a number of 0 or more"), metavar="T",
        help="0: always the most likely token")  # fmt: skip
    add("--top-p", type=number(lambda value: 0 < value <= 1, "a number above 0 and at most 1"), metavar="P",
        help="draw from the fewest most likely tokens that reach this probability")  # fmt: skip
    add("--top-k", type=whole_number(0), metavar="K", help="draw from the K most likely tokens (0: all)")
    add("--seed", type=whole_number(0, 2**32 - 1), default=0, metavar="N", help="of the first answers (default: 0)")
    add("--limit", type=whole_number(1), metavar="N", help="ask the first N items of each suite")
    add("--out", metavar="DIR", help="directory of answers and results (default: outputs/evaluations/MODEL-SETTINGS)")
    add("--raw", action="store_true", help="ask without a chat template: the texts of the messages are the prompt")
    add("--chat-template", metavar="FILE", help="a template to use instead of the checkpoint's own")
    add("--concurrency", type=whole_number(1), default=16, metavar="N", help="answers side by side (default: 16)")
    add("--cache-tokens", type=whole_number(64), metavar="N",
        help="prompts and answers of the embedded engine, together (default: what --concurrency needs, but at most "
        "32,768 or what one needs)")  # fmt: skip
    group = parser.add_argument_group("servers")
    group.add_argument("--model", dest="served", metavar="NAME", help="the model's name on the server")
    group.add_argument("--api-key-env", metavar="VAR", help="environment variable that holds the server's API key")
    group.add_argument("--timeout", type=above_zero("3600"), metavar="S",
                       help="seconds for one try of a request (default: 3600)")  # fmt: skip
    group.add_argument("--retries", type=whole_number(0), metavar="N",
                       help="further tries of a failed request, after 1, 2, 4, ... seconds (default: 5)")  # fmt: skip
    group.add_argument("--omit", default="", metavar="FIELD[,FIELD]",
                       help="fields that the server does not know, such as top_k,chat_template_kwargs")  # fmt: skip
    group.add_argument("--judge", metavar="URL", help="server of the judge model, for suites that need one")
    group.add_argument("--judge-model", metavar="NAME", help="the judge's name on its server")
    group.add_argument("--judge-key-env", metavar="VAR", help="environment variable that holds the judge's API key")


def _prepare(options: argparse.Namespace) -> Callable[[], int]:
    from trainer.evaluation.asking import read_items

    suites = _suites(options)
    _refuse_unused(options)
    settings = _settings(options)
    needed = [suite for suite in suites if suite.judge is not None and suite.judge_needed]
    if needed and options.judge is None:
        remedy = "--judge URL"
        text = f"{', '.join(suite.name for suite in needed)} needs a judge model; give {remedy}"
        raise CommandError(text, where="--judge", value=None, allowed=remedy)
    items: list[tuple[Suite, Sequence[Any]]] = [
        (suite, () if suite is PERPLEXITY else read_items(suite, Path(options.data), options.limit)) for suite in suites
    ]
    model = _model(options, suites)
    items = [(suite, _passages(options, model) if suite is PERPLEXITY else found) for suite, found in items]
    _warn_of_training(options, model, items)
    judged = any(suite.judge for suite in suites)
    if options.judge and not judged:
        print_warning(f"--judge {options.judge} is not asked: no suite here has a judge")
    judge = _judge(options) if judged and options.judge else None
    asks = any(suite is not PERPLEXITY for suite in suites)
    if asks and model.context is not None and settings.max_tokens >= model.context:
        print_warning(f"answers end with the context of {model.context:,} tokens, before {settings.max_tokens:,}")
    out = Path(options.out) if options.out else Path(OUT) / f"{_slug(options)}-{settings.name}"
    return lambda: evaluate(items, model, settings, judge, out)


def _suites(options: argparse.Namespace) -> list[Suite]:
    if options.model is None:
        text = f"octavo evaluate: give a model and {EXAMPLE}"
        raise CommandError(text, where="MODEL", allowed="a run, a directory or a URL")
    names = []
    for word in options.words:
        key, equals, value = word.partition("=")
        if key != "suite" or not equals or not value:
            raise CommandError(f"octavo evaluate: unexpected {word}; use {EXAMPLE}", where=word, allowed=EXAMPLE)
        names += value.split(",")
    if not names:
        raise CommandError(f"octavo evaluate: no suite is given; use {EXAMPLE}", where="suite", allowed=EXAMPLE)
    suites = find(names, SUITES)
    for suite in suites:
        if suite.harness:
            text = f"suite={suite.folder} is run by its own harness: {suite.harness}"
            raise CommandError(text, where="suite", value=suite.folder, allowed=suite.harness)
        suite.require_packages()
    return suites


def _refuse_unused(options: argparse.Namespace) -> None:
    """Raises CommandError for an option that this command would not read."""
    judged = options.judge is not None
    served = SERVER.match(options.model) is not None
    own = "the model's directory; a server renders its own chat template"
    # option: whether it is read, and what reads it
    readers = {
        "--model": (served, "the URL of a server"),
        "--api-key-env": (served, "the URL of a server"),
        "--omit": (served, "the URL of a server"),
        "--timeout": (served or judged, "the URL of a server, or --judge"),
        "--retries": (served or judged, "the URL of a server, or --judge"),
        "--judge-model": (judged, "--judge URL"),
        "--judge-key-env": (judged, "--judge URL"),
        "--raw": (not served, own),
        "--chat-template": (not served and not options.raw, own if served else "a command without --raw"),
        "--cache-tokens": (not served, "the model's directory"),
    }
    for option, (read, reader) in readers.items():
        name = {"--model": "served"}.get(option, option[2:].replace("-", "_"))
        given = getattr(options, name)
        if not read and given is not None and given is not False and given != "":
            text = f"octavo evaluate {options.model}: {option} would not be read; it goes with {reader}"
            raise CommandError(text, where=option, value=given, allowed=reader)


def _settings(options: argparse.Namespace) -> Settings:
    changed = {name: getattr(options, name) for name in ("max_tokens", "temperature", "top_p", "top_k")}
    chosen = {name: value for name, value in changed.items() if value is not None}
    return replace(SETTINGS[options.settings], **chosen, seed=options.seed)


def _key(option: str, variable: str | None) -> str:
    if variable is None:
        return ""
    if key := os.environ.get(variable, "").strip():
        return key
    text = f"{option} {variable}: the variable is not set or empty"
    raise CommandError(text, where=option, value=variable, allowed="a variable with a key")


def _tries(options: argparse.Namespace) -> dict[str, Any]:
    return {
        "timeout": 3600.0 if options.timeout is None else options.timeout,
        "retries": 5 if options.retries is None else options.retries,
    }


def _require_client() -> None:
    import importlib.util

    if importlib.util.find_spec("httpx") is None:
        text = f"servers are asked with the package httpx, which is not installed: {INSTALL}"
        raise CommandError(text, where="httpx", allowed=INSTALL)


def _model(options: argparse.Namespace, suites: Sequence[Suite]) -> ServedModel | EmbeddedModel:
    if not SERVER.match(options.model):
        return _embedded(options, suites)
    _require_client()
    from trainer.evaluation.served import OPTIONAL, ServedModel

    omit = [name for name in options.omit.split(",") if name]
    if wrong := [name for name in omit if name not in OPTIONAL]:
        text = f"--omit={options.omit}: {wrong[0]} cannot be left out; use {', '.join(OPTIONAL)}"
        raise CommandError(text, where="--omit", value=wrong[0], allowed=OPTIONAL)
    return ServedModel(
        options.model, options.served, api_key=_key("--api-key-env", options.api_key_env),
        concurrency=options.concurrency, **_tries(options), omit=omit,
    )  # fmt: skip


def _embedded(options: argparse.Namespace, suites: Sequence[Suite]) -> EmbeddedModel:
    from launch.serving.conversation import find_conversation
    from trainer.engine.load import open_source
    from trainer.evaluation.embedded import EmbeddedModel

    source = open_source(Path(options.model))
    for warning in source.warnings:
        print_warning(warning)
    conversation = None if options.raw else find_conversation(source, options.model, options.chat_template)
    asks = any(suite is not PERPLEXITY for suite in suites)
    if asks and conversation is None and not options.raw:
        remedy = "--chat-template FILE, or --raw"
        text = f"{options.model} has no chat template, so that it is not known how to ask it; give {remedy}"
        raise CommandError(text, where=options.model, allowed=remedy)
    return EmbeddedModel(
        source, options.model, conversation, _device,
        towers=any(suite.modalities for suite in suites), batch=options.concurrency,
        cache_tokens=options.cache_tokens,
    )  # fmt: skip


def _judge(options: argparse.Namespace) -> tuple[Model, Settings]:
    _require_client()
    from trainer.evaluation.served import ServedModel

    judge = ServedModel(
        options.judge, options.judge_model, api_key=_key("--judge-key-env", options.judge_key_env),
        concurrency=options.concurrency, **_tries(options),
        omit=("top_k", "seed", "chat_template_kwargs"), option="--judge",
    )  # fmt: skip
    return judge, JUDGE


def _passages(options: argparse.Namespace, model: ServedModel | EmbeddedModel) -> Sequence[Any]:
    """Those in DIR/perplexity, or else those that the run held out."""
    from trainer.evaluation.embedded import EmbeddedModel
    from trainer.evaluation.perplexity import read_documents, read_heldout

    directory = Path(options.data) / PERPLEXITY.folder
    if directory.is_dir() or not isinstance(model, EmbeddedModel):
        texts, empty = read_documents(directory, options.limit)
        if empty:
            first = ", ".join(empty[:NAMED]) + (", ..." if len(empty) > NAMED else "")
            print_warning(f"{len(empty):,} rows with an empty text are left out of the perplexity: {first}")
        return texts
    passages, left_out = read_heldout(model.source, options.limit)
    if left_out:
        print_warning(f"{left_out:,} documents with images or signals are left out of the perplexity")
    return passages


def _warn_of_training(
    options: argparse.Namespace, model: ServedModel | EmbeddedModel, items: Sequence[tuple[Suite, Sequence[Any]]]
) -> None:
    """Print a warning for each file and domain that the run was trained on."""
    from trainer.evaluation.embedded import EmbeddedModel
    from trainer.evaluation.trained_on import trained_on

    if isinstance(model, EmbeddedModel):
        directories = [Path(options.data) / suite.folder for suite, _ in items]
        passages = [passage for suite, found in items if suite is PERPLEXITY for passage in found]
        for warning in trained_on(model.source, directories, passages):
            print_warning(warning)


def _slug(options: argparse.Namespace) -> str:
    """A name for a directory: of the run, the run's step, the Hugging Face directory, or the served model."""
    if SERVER.match(options.model):
        named = options.served or options.model.partition("//")[2]
    else:
        path = Path(options.model).resolve()
        steps = re.fullmatch(r"step-\d+", path.name)
        run = path.parent.parent if path.parent.name == "checkpoints" else path.parent
        named = f"{run.name}-{path.name}" if steps else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", named).strip("-") or "model"


def _device() -> torch.device:
    import torch

    from trainer.run.host_memory import prepare_host_memory

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        prepare_host_memory()
    return device


def evaluate(
    items: Sequence[tuple[Suite, Sequence[Any]]],
    model: ServedModel | EmbeddedModel,
    settings: Settings,
    judge: tuple[Model, Settings] | None,
    out: Path,
) -> int:
    """Run the suites one after another. Returns 1 where answers are missing, which the same command asks again, are
    scored as empty ones, or are left out."""
    from launch.progress import ProgressDisplay
    from trainer.evaluation.asking import open_ledger, run_suite
    from trainer.evaluation.output.results import result_of, write_results, write_scored
    from trainer.evaluation.perplexity import run_perplexity

    facts = {"name": model.name, "identity": model.identity, "context": model.context}
    results: dict[str, Any] = {}
    with open_ledger(out) as ledger, ProgressDisplay() as display:
        for suite, wanted in items:
            if suite is PERPLEXITY:
                outcome = run_perplexity(wanted, model, ledger, display)
            else:
                outcome = run_suite(suite, wanted, model, settings, ledger, display, judge)
            results[suite.folder] = result_of(suite, outcome, len(wanted))
            write_scored(out, suite, outcome.scored)
            write_results(out, facts, settings, {suite.folder: results[suite.folder]})
    _print(results)
    print(f"{out}/results.html")
    failed = sum(result["failures"] for result in results.values())
    if failed:
        text = "without an answer or a score: their suites have no value; the same command asks for what is missing"
        print(f"{failed:,} {text}", file=sys.stderr)
    empty = sum(result["empty"] for result in results.values())
    if empty:
        text = "scored as empty answers: prompts beyond the context, or errors of a scorer"
        print(f"{empty:,} {text}; {out}/results.json has the reasons", file=sys.stderr)
    left_out = sum(result["left_out"] for result in results.values())
    if left_out:
        text = "left out of their suites' values, which are those of the others"
        print(f"{left_out:,} {text}; {out}/results.json has the reasons", file=sys.stderr)
    return 1 if failed or empty or left_out else 0


def _print(results: Mapping[str, Mapping[str, Any]]) -> None:
    from launch.tables import print_table, table
    from trainer.evaluation.output.page import counted, shown

    found = table("suite", "metric", "value", "95 % interval", "Intern-S1-Pro", "items", "failed", "cut short")
    for result in results.values():
        interval = f"{shown(result['low'])} to {shown(result['high'])}"
        found.add_row(
            result["name"], result["metric"], shown(result["value"]), interval, shown(result["reported"]),
            counted(result), f"{result['failures']:,}", f"{result['truncated']:,}",
        )  # fmt: skip
    print_table(found)


def _list(markdown: bool) -> int:
    from trainer.evaluation.output.listing import listing
    from trainer.evaluation.output.newest import newest_results

    print(listing(SUITES, {} if markdown else newest_results(Path(OUT)), markdown=markdown), end="")
    return 0
