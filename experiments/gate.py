"""The gate of the HTTP service: who may come in, and how much they may bring.

Checks the token before a body is read, limits bodies, and logs one line per request.
Also the one form in which every error is answered. What the service does is in
`server.py`.
"""

from __future__ import annotations

import ipaddress
import logging
import secrets
import time
from urllib.parse import quote

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import messages

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 16 * 2**20  # tens of thousands of runs in one request
OPEN_PATHS = ("/health", "/openapi.json")  # say nothing of the study

_TOO_LONG = f"the body must be at most {MAX_BODY_BYTES:,} bytes; send it in parts"
_LONGEST_TEXT = 2_000  # characters; an error may quote what came


class Gate:
    """Lets in who may, no more than fits, and logs one line per request, without headers or query.

    Args:
        app: What is behind it.
        token: The token, or None to let in whoever asks this machine by its own name.
    """

    def __init__(self, app: ASGIApp, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass one request on, or answer it here."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start, code = time.monotonic(), 0

        async def noted(message: Message) -> None:
            nonlocal code
            code = message.get("status", code)
            await send(message)

        try:
            refusal = self._refusal(scope)
            await (refusal or self._app)(scope, _limited(receive), noted)
        finally:
            logger.info(
                "request done method=%s path=%s status=%d seconds=%.3f",
                scope["method"], quote(scope["path"]), code, time.monotonic() - start,
            )  # fmt: skip

    def _refusal(self, scope: Scope) -> JSONResponse | None:
        """Return the answer to a request that goes no further, or None."""
        headers = Headers(scope=scope)
        if self._token is None and not is_loopback(_hostname(headers.get("host", ""))):
            return problem(
                403, "without a token mixopt serve answers to 127.0.0.1 and localhost only; start it with a token"
            )
        if self._token is not None and scope["path"] not in OPEN_PATHS and not self._knows(headers):
            return problem(
                401,
                "the token is missing or wrong; send the header Authorization: Bearer TOKEN",
                headers={"WWW-Authenticate": "Bearer"},
            )
        length = headers.get("content-length", "")
        # Fifteen digits are too many in any case, and more of them than Python converts can be sent.
        too_long = length.isdecimal() and (len(length) > 15 or int(length) > MAX_BODY_BYTES)
        return problem(413, _TOO_LONG) if too_long else None

    def _knows(self, headers: Headers) -> bool:
        kind, _, given = headers.get("authorization", "").partition(" ")
        assert self._token is not None
        # Takes as long for a nearly right token as for a wrong one.
        right = secrets.compare_digest(given.strip().encode(), self._token.encode())
        return kind.lower() == "bearer" and right


def _limited(receive: Receive) -> Receive:
    """Count what arrives, for bodies that do not say how long they are."""
    num_bytes = 0

    async def counted() -> Message:
        nonlocal num_bytes
        message = await receive()
        num_bytes += len(message.get("body", b""))
        if num_bytes > MAX_BODY_BYTES:
            raise HTTPException(413, _TOO_LONG)
        return message

    return counted


def _hostname(header: str) -> str:
    """Return the host of a `Host` header, without port and brackets."""
    host = header.rpartition(":")[0] if header.rpartition(":")[2].isdecimal() else header
    return host.removeprefix("[").removesuffix("]")


def is_loopback(host: str) -> bool:
    """Return whether a host name or address means this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def problem(
    code: int,
    text: str,
    *,
    field: str | None = None,
    remedy: str | None = None,
    headers: dict[str, str] | None = None,
) -> JSONResponse:
    """Answer with an error `what is wrong; remedy`.

    Args:
        code: HTTP status.
        text: The error, as the command line says it.
        field: Place in the request that it is about.
        remedy: What to do, if the text does not end with it.
        headers: Further headers of the answer.
    """
    remedy = text.rpartition("; ")[2] if "; " in text else remedy
    content = messages.Problem(error=_clean(text), field=field and _clean(field), remedy=remedy and _clean(remedy))
    return JSONResponse(content.model_dump(), code, headers)


def _clean(text: str) -> str:
    """Return text that an answer can hold: what came may be endless, or half a surrogate pair."""
    return text[:_LONGEST_TEXT].encode("utf-8", "backslashreplace").decode()
