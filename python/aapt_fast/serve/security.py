# SPDX-License-Identifier: Apache-2.0
"""Who may use a server: names under which it is reached, pages that may call it, and the token.

A page of another site could call a server on this machine through its visitor's browser. So requests have to name this
server (`Host`, which stops DNS rebinding) and come from its own page (`Origin`, which browsers set and pages cannot).
"""

from __future__ import annotations

import hmac
import ipaddress
import re
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from aapt_fast.errors import require
from aapt_fast.serve.protocol import BAD_ORIGIN, refusal
from aapt_fast.serve.settings import Settings

CONTENT_SECURITY_POLICY = "; ".join(
    (
        "default-src 'self'",
        "img-src 'self' blob: data:",
        "media-src 'self' blob:",
        "connect-src 'self'",
        "object-src 'none'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)
HEADERS = {
    "Content-Security-Policy": CONTENT_SECURITY_POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
}
GUARDED = re.compile(r"(/models/\d+)?/(v1/|metrics)")
"""Paths that need the token. The page has nothing to hide, and load balancers, which ask for health, have no token."""
LEAST_TOKEN = 16  # characters


def is_local(host: str) -> bool:
    """True for an address that only this machine reaches."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_token(host: str, token: str | None) -> None:
    """Raise ValueError for a server that others can reach and that has no token, or a short one."""
    require(is_local(host) or token is not None, "--token", f"a token, as others can reach {host}", "none")
    if token is not None:
        fits = len(token) >= LEAST_TOKEN and token.isascii() and token.isprintable() and " " not in token
        expected = f"{LEAST_TOKEN} or more letters, digits and signs without spaces"
        require(fits, "--token", expected, f"{len(token)} characters")


def same_token(given: str | None, token: str) -> bool:
    """Compare in a time that does not tell how much of it is right."""
    return given is not None and hmac.compare_digest(given.encode("utf-8", "replace"), token.encode())


def bearer_token(header: str | None) -> str | None:
    """The token in a header `Authorization: Bearer ...`."""
    kind, _, token = (header or "").partition(" ")
    return token.strip() if kind.lower() == "bearer" else None


class Guard:
    """ASGI middleware that refuses requests before anything else sees them, and adds headers to the answers.

    WebSockets are let through without a token: `hello` has it.
    """

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app, self._settings = app, settings

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        headers = Headers(scope=scope)
        refused = self._refuse(scope, headers)
        if refused is None:
            await self._app(scope, receive, send_with_headers)
        elif scope["type"] == "http":
            status, error = refused
            await JSONResponse(error, status)(scope, receive, send_with_headers)
        else:
            await self._close(send, receive, refused[1])

    async def _close(self, send: Send, receive: Receive, error: dict[str, object]) -> None:
        """Close a WebSocket with a code that its page can read, which a refused handshake has not."""
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close", "code": BAD_ORIGIN, "reason": str(error["message"])[:100]})

    def _refuse(self, scope: Scope, headers: Headers) -> tuple[int, dict[str, object]] | None:
        """Status and error for a request that is not allowed; None for the others."""
        host = headers.get("host", "")
        if _name_of(host) not in self._settings.hosts:
            return 421, refusal("Host", f"one of {', '.join(self._settings.hosts)}; --allow-host adds one", host[:100])
        origin = headers.get("origin")
        if origin is not None and not self._is_allowed(origin, host):
            return 403, refusal("Origin", "the page of this server, or one of --origin", origin[:100])
        needs_token = scope["type"] == "http" and GUARDED.match(scope["path"])
        if needs_token and self._settings.token is not None:
            given = bearer_token(headers.get("authorization"))
            if not same_token(given, self._settings.token):
                got = "none" if given is None else "another one"
                return 401, refusal("token", "Authorization: Bearer and the token of this server", got)
        return None

    def _is_allowed(self, origin: str, host: str) -> bool:
        return origin in (f"http://{host}", f"https://{host}", *self._settings.origins)


def _name_of(host: str) -> str:
    """The name in a header `Host`, without port and without the brackets of an IPv6 address."""
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
