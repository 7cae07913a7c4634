"""`octavo generate`: continue a prompt with the model of a run or of a Hugging Face directory."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from launch.ranks import run_on_ranks
from launch.serving.sampling import add_sampling, sampling_of
from parallel.environment import read_environment
from parallel.errors import Fault, UserError, one_of
from trainer.config.command_line import Parser, whole_number
from trainer.config.errors import CommandError, ConfigError, print_warning
from trainer.config.keys import ParallelConfig
from trainer.config.ranks import map_ranks
from trainer.engine.load import Source, open_source
from trainer.engine.request import Request, RequestError, check

AGAIN = "the same command starts again"
LENGTH = 256  # of an answer, where --max-tokens is not given


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`, also for a directory without a model that generates, and for a prompt that is too long."""
    add = parser.add_argument
    add("directory", metavar="DIR", help="a run directory, one of its step-N directories, or a Hugging Face directory")
    add("prompt", help="the text to continue")
    add(
        "--max-tokens",
        type=whole_number(1),
        metavar="N",
        help=f"the most tokens of an answer (default: {LENGTH}, or what the context leaves)",
    )
    add_sampling(parser)
    add(
        "--image",
        dest="media",
        action="append",
        type=lambda path: ("image", Path(path)),
        default=[],
        metavar="FILE",
        help="an image for the prompt, before its text or at its placeholder; may be repeated",
    )
    add(
        "--signal",
        dest="media",
        action="append",
        type=lambda path: ("signal", Path(path)),
        metavar="FILE",
        help="a recorded signal for the prompt, as --image; may be repeated",
    )
    add("--stop", action="append", default=[], metavar="TEXT", help="end an answer before TEXT; may be repeated")
    add(
        "--n",
        type=whole_number(1),
        default=1,
        metavar="N",
        help="number of answers, with consecutive seeds (default: 1)",
    )
    add("--nproc-per-node", type=whole_number(1), default=1, metavar="N",
        help="processes on this machine, which share the experts (default: 1)")  # fmt: skip
    options = parser.read(words)
    source = open_source(Path(options.directory))
    ranks = max(options.nproc_per_node, read_environment().world_size)
    _check_ranks(source, ranks)
    media = [source.medium(kind, path) for kind, path in options.media]
    prompt = source.prompt(options.prompt, media)
    context = source.model.max_position
    length = options.max_tokens or max(1, min(LENGTH, context - len(prompt)))
    requests = [
        Request(
            prompt,
            length,
            sampling_of(options, answer),
            source.stop_ids,
            tuple(options.stop),
            media=media,
        )
        for answer in range(options.n)
    ]
    tokens = {name: kind.token for name, kind in source.rules.kinds.items()} if media else {}
    try:
        check(
            requests[0], vocab_size=source.model.vocab_size, context=context, cache_tokens=len(prompt) + length,
            has_text=True, placeholders=tokens,
        )  # fmt: skip
    except RequestError as error:
        raise CommandError([_of_option(fault) for fault in error.faults]) from None
    if ranks > read_environment().world_size:
        return lambda: _start_ranks(ranks, words)
    return lambda: generate(source, requests)


def _check_ranks(source: Source, ranks: int) -> None:
    """Raises CommandError for a number of ranks that the experts cannot be divided among."""
    try:
        map_ranks(ParallelConfig(dp_shard=ranks, ep=ranks), source.model, ranks)
    except ConfigError as error:
        remedy = f"--nproc-per-node {one_of(error.allowed)}" if isinstance(error.allowed, tuple) else "another number"
        text = f"--nproc-per-node={ranks}: {error}; use {remedy}"
        raise CommandError(text, where="--nproc-per-node", value=ranks, allowed=error.allowed) from None


def _start_ranks(ranks: int, words: Sequence[str]) -> int:
    """The same command on every rank; the first one prints."""
    os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun, which says so in a warning
    return run_on_ranks(ranks, ["generate", *words], AGAIN, f"use more ranks; {AGAIN}")


def _of_option(fault: Fault) -> Fault:
    """The fault of a request's field as one of the option that sets it."""
    if fault.where == "prompt":
        return fault
    option = f"--{fault.where.replace('_', '-')}"
    return replace(fault, text=fault.text.replace(f"{fault.where}=", f"{option}="), where=option)


def generate(source: Source, requests: Sequence[Request]) -> int:
    """Print one answer as it comes, or several one after another. Returns the exit code."""
    from parallel.world import start_world
    from trainer.engine.engine import Engine
    from trainer.engine.ranks import ALONE, Together
    from trainer.model.exact.blocks import KEYS
    from trainer.model.exact.check import dependence_warning
    from trainer.run.host_memory import prepare_host_memory

    world = start_world()
    first = world.rank == 0
    for warning in source.warnings if first else ():
        print_warning(warning)
    if world.device.type == "cpu":
        prepare_host_memory()
    try:
        model = source.load(world.device, towers=bool(requests[0].media), ranks=world.size)
    except UserError:
        if first:
            raise
        return 1  # the same on every rank
    if first and (dependent := dependence_warning(model)):
        print_warning(dependent)
    assert source.tokenizer is not None
    pages = -(-(len(requests[0].prompt) + requests[0].max_tokens) // KEYS)
    together = min(len(requests), 64)
    engine = Engine(
        model,
        decode=source.tokenizer.decode,
        cache_tokens=pages * KEYS * together,
        batch=together,
        ranks=ALONE if world.size == 1 else Together(world),
    )
    started, tokens = time.perf_counter(), 0
    numbers = [engine.submit(request) for request in requests]
    while engine.unfinished:
        for token in engine.step():
            tokens += 1
            if first and len(requests) == 1:
                print(token.text, end="", flush=True)
    seconds = time.perf_counter() - started
    world.close()
    if not first:
        return 0
    if len(requests) == 1:
        print()
    for place, submitted in enumerate(numbers if len(requests) > 1 else []):
        print(f"--- {place + 1} of {len(requests)}, seed {requests[place].sampling.seed}")
        print(engine.result(submitted).text)
    print(f"{tokens:,} tokens in {seconds:,.1f} s, {tokens / seconds:,.0f} tokens/s", file=sys.stderr)
    return 0
