"""`octavo chat`: a conversation in the terminal with the model of a run or of a Hugging Face directory."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from launch.serving.conversation import Conversation, find_conversation
from launch.serving.sampling import add_sampling, sampling_of
from parallel.errors import UserError
from trainer.chat.answers import AnswerReader, Part
from trainer.config.command_line import Parser, whole_number
from trainer.config.errors import CommandError, print_warning
from trainer.engine.load import Source, open_source
from trainer.engine.request import Request

if TYPE_CHECKING:
    from trainer.engine.engine import Engine

LENGTH = 1024  # of an answer, where --max-tokens is not given
HELP = "/reset starts a new conversation, /system TEXT one with other instructions, /exit ends (so does Ctrl-D)"
DIM, PLAIN = "\033[2m", "\033[0m"


def prepare(parser: Parser, words: Sequence[str]) -> Callable[[], int]:
    """Raises `CommandError`, also for a directory without a model that generates, or without a chat template."""
    parser.add_note(f"Lines of the input are the user's turns. {HELP}. Ctrl-C ends an answer.")
    add = parser.add_argument
    add("directory", metavar="DIR", help="a run directory, one of its step-N directories, or a Hugging Face directory")
    add("--system", metavar="TEXT", help="instructions that open the conversation")
    add("--chat-template", metavar="FILE", help="chat template in Jinja (default: the checkpoint's own)")
    add("--no-thinking", action="store_true", help="ask the template for answers without thinking")
    add("--max-tokens", type=whole_number(1), metavar="N",
        help=f"the most tokens of an answer (default: {LENGTH}, or what the context leaves)")  # fmt: skip
    add_sampling(parser)
    options = parser.read(words)
    source = open_source(Path(options.directory))
    source.require_tokenizer()
    conversation = find_conversation(source, options.directory, options.chat_template)
    if conversation is None:
        remedy = "give one with --chat-template, or continue a text with octavo generate"
        text = f"{options.directory} has no chat template; {remedy}"
        raise CommandError(text, where=options.directory, allowed=remedy)
    return lambda: chat(source, conversation, options)


def chat(source: Source, conversation: Conversation, options: argparse.Namespace) -> int:
    """Converse until the input ends. Returns the exit code."""
    import torch

    from trainer.engine.engine import Engine
    from trainer.model.exact.check import dependence_warning
    from trainer.run.host_memory import prepare_host_memory

    for warning in source.warnings:
        print_warning(warning)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        prepare_host_memory()
    context = min(source.model.max_position, 32_768)
    model = source.load(device)
    if dependent := dependence_warning(model):
        print_warning(dependent)
    engine = Engine(
        model, decode=conversation.decode, cache_tokens=2 * context, batch=1, context=context
    )  # twice, so that the start of the conversation is found again
    talk = Talk(engine, conversation, source.stop_ids, options)
    typed = sys.stdin.isatty()
    if typed:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 (input() edits lines once it is imported)
        print(HELP)
    for line in _lines(typed):
        command, _, rest = line.strip().partition(" ")
        if command == "/exit":
            break
        if command in ("/reset", "/system"):
            talk.reset(rest if command == "/system" else options.system)
        elif command.startswith("/") and typed:
            print(HELP)
        elif line.strip():
            try:
                shown = Shown(sys.stdout)
                talk.answer(line, shown.say)
                shown.end()
            except UserError as error:  # a conversation that has become too long, or that the template refuses
                print(*error.lines, "error: /reset starts a new conversation", sep="\n", file=sys.stderr, flush=True)
    return 0


def _lines(typed: bool) -> Iterator[str]:
    """The user's turns: typed behind a prompt, or the lines of the input."""
    while True:
        try:
            line = input("> ") if typed else sys.stdin.readline()
        except EOFError:
            print()
            return
        if not line and not typed:
            return
        yield line.rstrip("\n")


class Talk:
    """A conversation: what was said, and the engine that answers. The seed of each answer is one above the last's."""

    def __init__(
        self, engine: Engine, conversation: Conversation, stop_ids: frozenset[int], options: argparse.Namespace
    ) -> None:
        self._engine, self._conversation, self._options = engine, conversation, options
        self._stop_ids = stop_ids | conversation.ends
        self.reset(options.system)

    def reset(self, system: str | None) -> None:
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self._answers = 0

    def answer(self, text: str, say: Callable[[Part], None]) -> None:
        """Answer a turn. say: gets the parts as they come. Ctrl-C ends the answer, and what was said stays said.

        Raises UserError for a turn that cannot be answered, which is then left out of the conversation."""
        asked = [*self.messages, {"role": "user", "content": text}]
        values: dict[str, Any] = {"enable_thinking": False} if self._options.no_thinking else {}
        opened = self._conversation.open(asked, **values)
        ids = self._conversation.ids_of(opened.text)
        room = max(1, min(LENGTH, self._engine.context - len(ids)))
        sampling = sampling_of(self._options, self._answers)
        number = self._engine.submit(Request(ids, self._options.max_tokens or room, sampling, self._stop_ids))
        reader, parts = AnswerReader(self._conversation.format, thinking=opened.thinking), list[Part]()
        try:
            while self._engine.unfinished:
                for token in self._engine.step():
                    for part in reader.push(token.text or ""):
                        parts.append(part)
                        say(part)
            self._engine.result(number)
        except KeyboardInterrupt:
            self._engine.cancel(number)
        for part in reader.finish():
            parts.append(part)
            say(part)
        said, thinking = (_joined(parts, kind) for kind in ("text", "thinking"))
        message = {"role": "assistant", "content": said}
        self.messages = [*asked, message | ({"reasoning_content": thinking} if thinking else {})]
        self._answers += 1


def _joined(parts: Sequence[Part], kind: str) -> str:
    return "".join(part.text for part in parts if part.kind == kind)


class Shown:
    """Prints an answer as it comes: its thinking dimmed, or behind a line that says so where that cannot be seen."""

    def __init__(self, out: TextIO) -> None:
        self._out, self._dims, self._kind = out, out.isatty(), ""

    def say(self, part: Part) -> None:
        if part.kind != self._kind:
            before = "\n" if self._kind else ""
            if self._dims:
                before = PLAIN + before + (DIM if part.kind == "thinking" else "")
            elif part.kind == "thinking" or self._kind:
                before += f"[{part.kind}]\n"
            self._kind = part.kind
            self._out.write(before)
        self._out.write(part.text)
        self._out.flush()

    def end(self) -> None:
        self._out.write((PLAIN if self._dims else "") + "\n")
        self._out.flush()
