"""A checkpoint's own chat template: found in its files, and rendered as transformers renders it. No torch here.

    template = ChatTemplate.load(directory)
    text = template.render(messages, tools, add_generation_prompt=True, enable_thinking=False)
    ids = tokenizer.encode(text)  # without special tokens: the template wrote them

Jinja is imported when a template is compiled.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.chat.errors import ChatError

if TYPE_CHECKING:
    from jinja2 import Template

    from trainer.chat.sandbox import Environment

Message = Mapping[str, Any]  # an OpenAI message: role, content, tool_calls, reasoning_content, ...
Span = tuple[int, int]  # characters [first, last)

TEMPLATE, NAMED = "chat_template.jinja", "additional_chat_templates"
CONFIG, SPECIAL, PROCESSOR = "tokenizer_config.json", "special_tokens_map.json", "chat_template.json"
DEFAULT, WITH_TOOLS = "default", "tool_use"
IN_A_RUN = ("tokenizer", "source")  # directories of a run: its corpora's tokenizer, then the weights it started from
# The tokens that a template sees by name, as transformers 5 passes them.
SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# Names of a message's thinking, the usual one first. Templates read either of the first two.
THINKING = ("reasoning_content", "thinking", "reasoning")
# What a template's own operations raise, beside Jinja's errors.
OPERATIONS = (ArithmeticError, AttributeError, LookupError, RecursionError, TypeError, ValueError)
ANSWER = "ANSWER"  # in the place of one
REMEDY = f"a directory with {TEMPLATE}, or with a chat_template in its {CONFIG}"


@dataclass(frozen=True)
class ChatTemplate:
    """The templates of a checkpoint by name; `default` renders, and `tool_use` where there are tools.

    special_tokens: bos_token and the like, which templates name. where: the file, for errors. now: the time that
    templates may print (`strftime_now`).
    """

    texts: Mapping[str, str]
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    where: str = TEMPLATE
    now: Callable[[], datetime] = datetime.now

    @classmethod
    def load(cls, path: Path) -> ChatTemplate:
        """The template of a Hugging Face directory, of a run directory, or in a .jinja file with the special tokens of
        the directory around it. Raises ChatError where there is none, or one that cannot be read."""
        found = find_template(path)
        if found is None:
            text = f"{path} has no chat template; give {REMEDY}"
            raise ChatError(text, where=str(path), allowed=REMEDY)
        return found

    def render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None = None,
        *,
        add_generation_prompt: bool = False,
        **values: Any,
    ) -> str:
        """The text of a conversation. tools: JSON schemas of functions. add_generation_prompt: end with what opens an
        assistant's turn. values: other names that a template reads, such as enable_thinking.

        Raises ChatError where the template refuses the conversation or fails on it.
        """
        return self._render(messages, tools, add_generation_prompt, values, marking=False)

    def render_marked(
        self, messages: Sequence[Message], tools: Sequence[Mapping[str, Any]] | None = None, **values: Any
    ) -> tuple[str, list[Span]]:
        """The text of a conversation, and the spans of it inside the template's `{% generation %}` blocks, in order.

        Raises ChatError, also where the text would be another one without the marks.
        """
        from trainer.chat.sandbox import CLOSE, OPEN

        marked = self._render(messages, tools, False, values, marking=True)
        spans: list[Span] = []
        parts: list[str] = []
        depth = first = length = 0
        for part in _split(marked, OPEN + CLOSE):
            if part == OPEN:
                first, depth = (first if depth else length), depth + 1
            elif part == CLOSE:
                depth -= 1
                if depth == 0 and length > first:
                    spans.append((first, length))
            else:
                parts.append(part)
                length += len(part)
        text = "".join(parts)
        if depth or text != self.render(messages, tools, **values):
            remedy = "a template whose generation blocks do not change what it writes"
            raise ChatError(f"{self.where}: its generation marks change its text; use {remedy}",
                            where=self.where, allowed=remedy)  # fmt: skip
        return text, spans

    def marks(self, tools: Sequence[Mapping[str, Any]] | None = None) -> bool:
        """Return True if the template says what the assistant writes, in `{% generation %}` blocks."""
        return self._compiled(self._name(tools))[0].marks

    def behind_answer(self, **values: Any) -> str:
        """The text that the template writes behind an answer, without the spaces around it; empty for a template that
        does not take an answer. values: as of `render`."""
        try:
            asked: list[Message] = [{"role": "user", "content": "QUESTION"}]
            text = self.render([*asked, {"role": "assistant", "content": ANSWER}], **values)
        except ChatError:
            return ""
        return text.rpartition(ANSWER)[2].strip() if ANSWER in text else ""

    def check(self) -> ChatTemplate:
        """Compile the templates that render, so that faults of theirs are found before anything starts. Raises
        ChatError."""
        for tools in (None, ()):
            self._compiled(self._name(tools))
        return self

    def _name(self, tools: Sequence[Mapping[str, Any]] | None) -> str:
        if tools is not None and WITH_TOOLS in self.texts:
            return WITH_TOOLS
        if DEFAULT in self.texts:
            return DEFAULT
        names = tuple(sorted(self.texts))
        text = f"{self.where} has the templates {', '.join(names)} and none that is called {DEFAULT}"
        raise ChatError(text, where=self.where, value=names, allowed=DEFAULT)

    @cached_property
    def _made(self) -> dict[str, tuple[Environment, Template]]:
        return {}

    def _compiled(self, name: str) -> tuple[Environment, Template]:
        if name not in self._made:
            from jinja2 import TemplateError, TemplateSyntaxError

            from trainer.chat.sandbox import Environment

            environment = Environment(self.now)
            try:
                self._made[name] = environment, environment.from_string(self.texts[name])
            except (TemplateError, RecursionError) as error:
                line = f", line {error.lineno}" if isinstance(error, TemplateSyntaxError) else ""
                remedy = "a template that Jinja can compile"
                text = f"{self.where}{line}: the chat template cannot be compiled ({error}); give {remedy}"
                raise ChatError(text, where=self.where, value=str(error), allowed=remedy) from error
        return self._made[name]

    def _render(
        self,
        messages: Sequence[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        values: Mapping[str, Any],
        *,
        marking: bool,
    ) -> str:
        from jinja2 import TemplateError

        environment, template = self._compiled(self._name(tools))
        seen = {
            **self.special_tokens,
            **{name: plain(value) for name, value in values.items()},
            "messages": [as_seen(message) for message in messages],
            "tools": None if tools is None else plain(tools),
            "documents": plain(values.get("documents")),
            "add_generation_prompt": add_generation_prompt,
        }
        environment.marking = marking
        try:
            return template.render(seen)
        # A template's faults come as Jinja's errors or as those of the operation that failed.
        except (
            TemplateError,
            ArithmeticError,
            AttributeError,
            LookupError,
            RecursionError,
            TypeError,
            ValueError,
        ) as bad:
            remedy = "messages that the template takes"
            said = str(bad) or type(bad).__name__
            text = f"{self.where}: the chat template refuses the conversation: {said}"
            raise ChatError(text, where=self.where, value=said, allowed=remedy) from bad
        finally:
            environment.marking = False


def as_seen(message: Message) -> dict[str, Any]:
    """A message as templates see it, as transformers 5 passes it on: plain values, no key without a value, and its
    thinking under the two names that templates read."""
    if not isinstance(message, Mapping):
        allowed = "an object with a role"
        text = f"a message is {type(message).__name__}, not {allowed}"
        raise ChatError(text, where="messages", value=plain(message), allowed=allowed)
    seen: dict[str, Any] = {name: plain(value) for name, value in message.items() if value is not None}
    thinking = next((seen[name] for name in THINKING if name in seen), None)
    if thinking is not None:
        seen[THINKING[0]] = thinking
        seen.setdefault(THINKING[1], thinking)
    return seen


def plain(value: Any) -> Any:
    """A copy in JSON's types, for a template to see; anything else becomes the name of its type."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if isinstance(value, Mapping):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    for kind in (str, int, float):  # subclasses may have methods
        if isinstance(value, kind):
            return kind(value)
    return f"<{type(value).__name__}>"


def find_template(path: Path) -> ChatTemplate | None:
    """The template of a Hugging Face directory, of a run directory or of a step-N directory in one; or a .jinja file,
    with the special tokens of the directory around it. None where there is none.

    Raises ChatError for files that cannot be read.
    """
    if path.is_file():
        return ChatTemplate({DEFAULT: _read(path)}, read_special_tokens(path.parent), str(path))
    runs = (path, path.parent, path.parent.parent)  # step-N is in the run's checkpoints/
    for directory in (path, *(run / name for run in runs for name in IN_A_RUN)):
        texts, where = _texts(directory)
        if texts:
            return ChatTemplate(texts, read_special_tokens(directory), where)
    return None


def _texts(directory: Path) -> tuple[dict[str, str], str]:
    """Templates by name, and their file. A .jinja file is newer than what tokenizer_config.json says."""
    texts = {}
    if (directory / TEMPLATE).is_file():
        texts[DEFAULT] = _read(directory / TEMPLATE)
    if (directory / NAMED).is_dir():
        texts |= {file.stem: _read(file) for file in sorted((directory / NAMED).glob("*.jinja"))}
    if texts:
        return texts, str(directory / TEMPLATE)
    for name in (CONFIG, PROCESSOR):
        file = directory / name
        found = _read_json(file).get("chat_template")
        if isinstance(found, str):
            return {DEFAULT: found}, str(file)
        if isinstance(found, list):
            found = {entry.get("name"): entry.get("template") for entry in found if isinstance(entry, dict)}
        if isinstance(found, dict) and found and all(isinstance(one, str) for pair in found.items() for one in pair):
            return found, str(file)
        if found is not None:
            allowed = "a text, or a list of objects with name and template"
            text = f"{file}: chat_template is not {allowed}"
            raise ChatError(text, where=f"{file}, chat_template", value=found, allowed=allowed)
    return {}, ""


def read_special_tokens(directory: Path) -> dict[str, str]:
    """bos_token and the like of a directory, from tokenizer_config.json, or else from special_tokens_map.json."""
    tokens: dict[str, str] = {}
    for name in (SPECIAL, CONFIG):
        for key, value in _read_json(directory / name).items():
            value = value.get("content") if isinstance(value, dict) else value
            if key in SPECIAL_TOKENS and isinstance(value, str):
                tokens[key] = value
    return tokens


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        allowed = "a readable file in UTF-8"
        raise ChatError(
            f"{file} cannot be read: {error}", where=str(file), value=str(error), allowed=allowed
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    if not file.is_file():
        return {}
    try:
        found = json.loads(_read(file))
    except ValueError as error:
        allowed = "a JSON object"
        text = f"{file} is not JSON: {error}"
        raise ChatError(text, where=str(file), value=str(error), allowed=allowed) from error
    return found if isinstance(found, dict) else {}


def _split(text: str, marks: str) -> list[str]:
    """Pieces between marks, and each mark as a piece of its own."""
    parts, first = [], 0
    for at, character in enumerate(text):
        if character in marks:
            parts += [text[first:at], character]
            first = at + 1
    return [*parts, text[first:]]
