"""Errors of requests, in the shape that OpenAI's clients read.

{"error": {"message": "...", "type": "invalid_request_error", "param": "max_tokens", "code": null}}
"""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from parallel.errors import UserError

TYPES = {401: "authentication_error", 404: "not_found_error", 408: "timeout_error", 429: "rate_limit_error"}


class ApiError(Exception):
    """A request that cannot be answered. status: of HTTP. param: the field that has to change, `messages[0].role` for
    one inside others. headers: of the response."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers

    @property
    def body(self) -> dict[str, Any]:
        kind = TYPES.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        message = str(self).encode("utf-8", "backslashreplace").decode()  # clients may send lone surrogates
        return {"error": {"message": message, "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body, self.status, self.headers)


class AbortedError(ApiError):
    """The answer was ended by /abort_request. Clients send a request again after 409, but not after 400."""

    def __init__(self) -> None:
        super().__init__(400, "the answer was ended by /abort_request", code="aborted")


def refused(error: UserError, names: dict[str, str] | None = None) -> ApiError:
    """A fault found in a request by the parts below. names: of the fields of the request, where they differ."""
    where = (names or {}).get(error.where, error.where)
    text = "; ".join(fault.text for fault in error.faults)
    for inner, outer in (names or {}).items():
        text = text.replace(f"{inner}=", f"{outer}=")
    return ApiError(400, text, param=where or None)
