"""How large the body of a request may be, whoever reads it."""

from starlette.requests import Request

from clip_koa.webapp.answers import refuse
from clip_koa.webapp.uploads import UPLOAD_PATH
from clip_koa.webapp.visits import MEGABYTE, Limits, Refusal, too_large


class BodyLimit:
    """ASGI middleware: refuses a request as soon as its body is larger than that of any that is needed.

    An agent sends an X-ray within JSON, in base64, which is a third larger. The API's form of several files counts its
    own bytes. Gradio would read any other body whole.

    Args:
        limits: the size of a file.
    """

    def __init__(self, app, limits: Limits):
        self.app, self.limits, self.most = app, limits, limits.file_bytes * 4 // 3 + MEGABYTE

    async def __call__(self, scope, receive, send):
        """Answers one request."""
        if scope["type"] != "http" or scope["path"] == UPLOAD_PATH:
            return await self.app(scope, receive, send)
        taken, has_begun = 0, False

        async def counted():
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > self.most:
                raise too_large(self.limits)
            return message

        async def noted(message):
            nonlocal has_begun
            has_begun = True
            await send(message)

        try:
            await self.app(scope, counted, noted)
        except Refusal as refusal:
            if has_begun:
                raise
            await (await refuse(Request(scope), refusal))(scope, receive, send)
