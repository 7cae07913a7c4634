"""Refusals of requests that exceed a model's context, by the words of each server.

A refusal whose message merely has the word context, such as one of a chat template, is another failure: taken for one
of these it would be scored as an empty answer instead of being asked again.
"""

from __future__ import annotations

import re

from trainer.chat.server import ServerError
from trainer.storage.json_text import read_json

CODE = "context_length_exceeded"  # of OpenAI's API
_MESSAGES = [
    re.compile(pattern)
    for pattern in (
        # octavo serve: trainer/engine/request.py
        r"max_(?:completion_)?tokens=\d+ with a prompt of \d+ tokens exceeds the context of \d+",
        r"a prompt of \d+ tokens leaves no room for an answer in the context of \d+",
        # vLLM, and OpenAI's API without its code: also after "'max_tokens' ... is too large: N."
        r"This model's maximum context length is \d+ tokens",
        r"prompt \(length \d+\) is longer than the maximum model length of \d+",
        # SGLang
        r"The input \(\d+ tokens\) is longer than the model's context length \(\d+ tokens\)",
        r"Requested token count exceeds the model's maximum context length of \d+ tokens",
        # LMDeploy 0.18: serve/core/async_engine.py, exceptions.py
        r"Input length \(\d+\) must be smaller than the model context length \(\d+\)",
        r"^The request exceeds the model context length\.$",
    )
]


def exceeds_context(error: ServerError) -> bool:
    """Return True if a server refused a request because prompt, or prompt and longest answer, exceed the context."""
    if error.status != 400:
        return False
    try:
        reply = read_json(error.reply, halves="replace")
    except ValueError:
        return False
    fault = reply.get("error", reply) if isinstance(reply, dict) else None  # LMDeploy and older vLLM: without `error`
    if not isinstance(fault, dict):
        return False
    message = fault.get("message")
    return fault.get("code") == CODE or (isinstance(message, str) and any(one.search(message) for one in _MESSAGES))
