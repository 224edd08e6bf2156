"""What the server answers with: pictures, files to keep, and refusals."""

from urllib.parse import quote

from fastapi import Request
from fastapi.responses import JSONResponse, Response
from PIL import Image

from clip_koa.webapp.readings import png
from clip_koa.webapp.visits import Refusal


async def refuse(request: Request, refusal: Refusal) -> JSONResponse:
    """A request that is refused, as the page reads it."""
    return JSONResponse({"refused": refusal.code, "values": refusal.values}, status_code=refusal.status)


def as_png(image: Image.Image) -> Response:
    """A picture."""
    return Response(png(image), media_type="image/png")


def as_file(content: bytes | str, name: str, media_type: str) -> Response:
    """A file that the browser keeps under a name."""
    plain = name.encode("ascii", "replace").decode().replace('"', "_").replace("?", "_")
    disposition = f"attachment; filename=\"{plain}\"; filename*=UTF-8''{quote(name)}"
    return Response(content, media_type=media_type, headers={"content-disposition": disposition})
