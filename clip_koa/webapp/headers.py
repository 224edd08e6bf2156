"""What every answer of the server carries for safety, and which paths it answers at all."""

import os
import re

# Scripts, styles and pictures come from this server alone, and none stands inside the page.
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'none'; base-uri 'none'; frame-ancestors {ancestors}"
)
# Reports carry their style and pictures themselves; a browser that opens one here runs no script in it.
_REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
_HEADERS = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=(), payment=(), usb=()",
}
# Of Gradio only what its clients and agents need: not its page, its proxy, nor what writes files for components.
_ANSWERED = re.compile(
    r"/(?:|page/.*|texts/[a-z]+|examples/[a-z0-9_]+\.png|visit(?:/.*)?|config/?|robots\.txt|favicon\.ico"
    r"|gradio_api/(?:info/?|openapi\.json|startup-events|upload|upload_progress|queue/(?:join|data)"
    r"|call/(?:v2/)?\w+(?:/\w+)?|heartbeat/\w+|cancel|reset/?|file=.*|mcp(?:/.*)?))"
)
_STATIC = re.compile(r"/(?:page|texts)/")


class SafeHeaders:
    """ASGI middleware: adds the headers, and answers 404 to paths that nobody needs.

    Caches keep the page's own files and ask whether they are still new; they keep nothing else.
    """

    def __init__(self, app):
        self.app = app
        # A Space is shown inside a page of the Hub; elsewhere nobody may frame the page.
        ancestors = "https://huggingface.co" if os.environ.get("SPACE_ID") else "'none'"
        self.policy = _POLICY.format(ancestors=ancestors)

    async def __call__(self, scope, receive, send):
        """Answers one request."""
        if scope["type"] != "http":
            return await self.app(scope, receive, send)
        path = scope["path"]
        policy = _REPORT_POLICY if "/report." in path else self.policy
        caching = "no-cache" if _STATIC.match(path) else "no-store"
        added = _HEADERS | {"content-security-policy": policy, "cache-control": caching}
        raw = [(name.encode(), value.encode()) for name, value in added.items()]

        async def send_safely(message):
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0].decode().lower() not in added]
                message = message | {"headers": [*kept, *raw]}
            await send(message)

        if not _ANSWERED.fullmatch(path):
            await send_safely({"type": "http.response.start", "status": 404, "headers": [(b"content-length", b"0")]})
            return await send({"type": "http.response.body", "body": b""})
        return await self.app(scope, receive, send_safely)
