"""The server of `--rollouts`, which completes chats."""

from collections.abc import Mapping, Sequence
from typing import Any

from trainer.data.errors import DataError

try:
    from trainer.chat.server import Server, ServerError, Stopped
except ImportError as error:
    raise DataError(
        "--rollouts needs the package 'httpx', which is not installed: pip install -e '.[science]'",
        where="--rollouts",
        allowed="pip install -e '.[science]'",
    ) from error

__all__ = ["ChatServer", "ServerError", "Stopped"]


class ChatServer(Server):
    """A `Server` that completes chats of one model."""

    error, option = DataError, "--rollouts"

    def __init__(
        self, url: str, model: str, *, api_key: str = "", timeout: float = 120, retries: int = 5, backoff: float = 1.0
    ) -> None:
        super().__init__(url, api_key=api_key, timeout=timeout, retries=retries, backoff=backoff)
        self.model = model

    def complete(self, messages: Sequence[Mapping[str, str]], max_tokens: int) -> tuple[str, str]:
        """(content, finish_reason) of the server's reply. Raises ServerError after the last try, Stopped, and DataError
        if the server refuses."""
        body = {"model": self.model, "messages": list(messages), "max_tokens": max_tokens}
        return self.post("chat/completions", body, _content)


def _content(reply: Any) -> tuple[str, str]:
    choice = reply["choices"][0]
    content, finish = choice["message"]["content"], choice.get("finish_reason")
    if not isinstance(content, str):
        raise ServerError(f"a reply without text: {str(choice)[:100]}", again=True)
    return content, str(finish)
