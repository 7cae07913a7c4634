"""`octavo serve`: a model of a run or of a Hugging Face directory behind OpenAI's and LMDeploy's requests."""

from __future__ import annotations

import argparse
import importlib.util
import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path

from launch.serving.conversation import Conversation, find_conversation
from trainer.config.command_line import Parser, above_zero, whole_number
from trainer.config.errors import CommandError, print_warning
from trainer.engine.load import Source, open_source

PACKAGES = ("starlette", "uvicorn", "pydantic")
INSTALL = "pip install -e '.[serve]'"
PURPOSE = (
    "For evaluation, agents and tests on a small scale: one model, one process. In production serve what octavo export "
    "writes with LMDeploy, vLLM or SGLang."
)


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`, also for a directory without a model that generates, and where a package is missing."""
    parser.add_note(PURPOSE)
    add = parser.add_argument
    add("directory", metavar="DIR", help="a run directory, one of its step-N directories, or a Hugging Face directory")
    add("--host", default="127.0.0.1", metavar="HOST", help="address to listen on (default: 127.0.0.1, this machine)")
    add("--port", type=whole_number(0, 65535), default=8000, metavar="N", help="default: 8000; 0: a free one")
    add("--name", metavar="NAME", help="the model's name in requests (default: the directory's name)")
    add("--api-key", metavar="TOKEN", help="requests have to bear this token; other users of the machine can see it")
    add("--api-key-file", metavar="FILE", help="the same, with the token in a file")
    add("--chat-template", metavar="FILE", help="chat template in Jinja (default: the checkpoint's own)")
    add(
        "--context",
        type=whole_number(2),
        metavar="N",
        help="the most tokens of prompt and answer (default: the model's)",
    )
    add("--cache-tokens", type=whole_number(2), default=32_768, metavar="N",
        help="tokens of all running requests together (default: 32768)")  # fmt: skip
    add("--batch", type=whole_number(1), default=64, metavar="N", help="the most requests of a step (default: 64)")
    add("--max-waiting", type=whole_number(1), default=1024, metavar="N",
        help="requests that may wait or run; more get 429 (default: 1024)")  # fmt: skip
    add("--max-body", type=whole_number(1), default=16, metavar="MIB", help="size of a request (default: 16 MiB)")
    add("--time-limit", type=above_zero("600"), default=600.0, metavar="S", help="seconds of an answer (default: 600)")
    add("--grace", type=whole_number(0), default=10, metavar="S",
        help="seconds that running answers get to finish when the server is stopped (default: 10)")  # fmt: skip
    add("--answers", metavar="FILE", help="keep answers with a seed or temperature 0 there, and give them again")
    add("--media-dir", metavar="DIR", help="read images and signals of file: URLs below DIR")
    add("--media-http", action="store_true", help="download images and signals of http: and https: URLs")
    options = parser.read(words)
    require_packages()
    source = open_source(Path(options.directory))
    source.prompt("")  # raises where there is no tokenizer
    key, conversation = _key(options), find_conversation(source, options.directory, options.chat_template)
    return lambda: serve(source, conversation, options, key)


def require_packages() -> None:
    """Raises CommandError where a package of the extra `serve` is missing."""
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        text = f"octavo serve needs {', '.join(missing)}: {INSTALL}"
        raise CommandError(text, where="octavo serve", value=missing, allowed=INSTALL)


def _key(options: argparse.Namespace) -> str | None:
    """The token of access. Raises CommandError."""
    key: str | None = options.api_key
    if options.api_key_file is not None:
        if key is not None:
            remedy = "one of --api-key and --api-key-file"
            raise CommandError(f"give {remedy}", where="--api-key", value=key, allowed=remedy)
        try:
            key = Path(options.api_key_file).read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            remedy = "a file with the token"
            text = f"--api-key-file={options.api_key_file} cannot be read ({error}); give {remedy}"
            raise CommandError(text, where="--api-key-file", value=options.api_key_file, allowed=remedy) from None
    if key is not None and (not key or not key.isascii() or not key.isprintable() or key != key.strip()):
        where = "--api-key" if options.api_key is not None else "--api-key-file"
        remedy = "a token of printable ASCII characters"
        raise CommandError(f"{where}: use {remedy}", where=where, value=key, allowed=remedy)
    return key


def _loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def serve(source: Source, conversation: Conversation | None, options: argparse.Namespace, key: str | None) -> int:
    """Load the model and serve until the end. Returns the exit code."""
    import torch

    from launch.serving.http.app import build
    from launch.serving.http.kept import open_kept, version_of
    from launch.serving.http.media import Sources
    from launch.serving.http.model import Limits, Served
    from launch.serving.http.run import listen
    from launch.serving.http.run import serve as run
    from launch.serving.http.worker import Worker
    from trainer.engine.engine import Engine
    from trainer.model.exact.check import dependence_warning
    from trainer.run.host_memory import prepare_host_memory

    listening = listen(options.host, options.port)
    for warning in source.warnings:
        print_warning(warning)
    local = _loopback(options.host)
    if not local and key is None:
        print_warning(f"every program that reaches {options.host} can use this server; --api-key-file asks for a token")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        prepare_host_memory()
    version = version_of(source, None if conversation is None else conversation.template)
    kept = None if options.answers is None else open_kept(Path(options.answers), version)
    assert source.tokenizer is not None
    decode = source.tokenizer.decode if conversation is None else conversation.decode
    context = min(options.context or source.model.max_position, source.model.max_position, options.cache_tokens)
    model = source.load(device, towers=True)
    if dependent := dependence_warning(model):
        print_warning(dependent)
    engine = Engine(
        model,
        decode=decode,
        cache_tokens=options.cache_tokens,
        batch=options.batch,
        chunk=max(512, options.batch),
        context=context,
        version=version,
    )
    worker = Worker(engine, most=options.max_waiting, kept=kept)
    name = options.name or Path(options.directory).resolve().name
    limits = Limits(options.max_body * 2**20, options.time_limit)
    hosts = ("localhost", "127.0.0.1", "[::1]", options.host) if local else ()
    media = Sources(None if options.media_dir is None else Path(options.media_dir), options.media_http)
    app = build(Served(name, source, worker, conversation, limits, media, version), key=key, hosts=hosts)
    host, port = options.host, listening.getsockname()[1]
    url = f"http://{f'[{host}]' if ':' in host else host}:{port}"

    def ready() -> None:
        print(f"serving {name} at {url}/v1 (Ctrl-C ends it)", flush=True)

    return run(app, worker, listening, grace=options.grace, ready=ready)
