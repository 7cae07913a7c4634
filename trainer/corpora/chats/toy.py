"""The toy's chats: a file of conversations, a tokenizer with control tokens, and a chat template beside it.

<cache_dir>/toy-chats-<hash>/
    chats.jsonl
    tokenizer.json, tokenizer_config.json, chat_template.jinja
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import tokenizers

from trainer.chat.template import CONFIG, TEMPLATE
from trainer.corpora.build import built_once, check_sources
from trainer.corpora.chats.questions import conversation
from trainer.data.shards.files import TOKENIZER
from trainer.data.shards.tokenizer import END_OF_DOCUMENT, train_bpe
from trainer.storage.progress import OnProgress, print_line

if TYPE_CHECKING:
    from trainer.config.keys import DataConfig

FORMAT = 1  # raise it with any change of the output
CHATS, COUNT = "chats.jsonl", 4000
MERGED, START, END = 500, "<|im_start|>", "<|im_end|>"
# Roles between control tokens, tools in the system turn, thinking and calls between tags.
TEXT = """
{%- if tools %}
{{- '<|im_start|>system\\n' }}
{%- if messages and messages[0].role == 'system' %}{{ messages[0].content + '\\n' }}{% endif %}
{{- '<tools>\\n' }}
{%- for tool in tools %}{{ (tool | tojson) + '\\n' }}{% endfor %}
{{- '</tools><|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
{%- if message.role == 'assistant' %}
{{- '<|im_start|>assistant\\n' }}
{%- if message.reasoning_content %}{{ '<think>\\n' + message.reasoning_content + '\\n</think>\\n\\n' }}{% endif %}
{{- message.content or '' }}
{%- for call in message.tool_calls or [] %}
{{- '<tool_call>\\n' + ({'name': call.function.name, 'arguments': call.function.arguments} | tojson) }}
{{- '\\n</tool_call>' }}
{%- endfor %}
{{- '<|im_end|>\\n' }}
{%- elif message.role == 'tool' %}
{{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
{%- elif not (tools and loop.first and message.role == 'system') %}
{{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
"""


def open_toy_chats(data: DataConfig, progress: OnProgress = print_line) -> DataConfig:
    """`data` with the toy's files and tokenizer, which are made first where they are missing. Safe to call from several
    processes. Raises DataError, also for a source that the toy does not have."""
    check_sources("data.chats", {name: source.path for name, source in data.chats.items()}, (CHATS,))
    made_from = json.dumps([FORMAT, COUNT, MERGED, TEXT, conversation(4), tokenizers.__version__])
    directory = built_once(data.cache_dir, "chats", made_from, _build, progress)
    return replace(data, root=str(directory), tokenizer=str(directory))


def _build(directory: Path) -> None:
    records = [conversation(number) for number in range(COUNT)]
    lines = [json.dumps(record, ensure_ascii=False) for record in records]
    (directory / CHATS).write_text("\n".join(lines) + "\n", encoding="utf-8")
    train_bpe(_texts(records), MERGED).save(directory / TOKENIZER)
    library = tokenizers.Tokenizer.from_file(str(directory / TOKENIZER))
    library.add_special_tokens([START, END])
    library.save(str(directory / TOKENIZER))
    (directory / TEMPLATE).write_text(TEXT, encoding="utf-8")
    special = {"eos_token": END, "pad_token": END_OF_DOCUMENT}
    (directory / CONFIG).write_text(json.dumps(special, indent=2), encoding="utf-8")


def _texts(records: list[dict[str, Any]]) -> Iterator[str]:
    for record in records:
        yield json.dumps(record.get("tools", ""))
        yield from (message.get("content") or json.dumps(message["tool_calls"]) for message in record["messages"])
