"""Files of the API: each upload lies in a folder of its own that nobody can guess, and goes when it is read.

The page itself uploads into memory and writes no file. Gradio's clients upload a file first and name it afterwards; by
itself Gradio would keep it under a hash of its content, where equal files of several callers are one.
"""

import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.requests import Request

from clip_koa.webapp.visits import Limits, Refusal, too_large

UPLOAD_PATH = "/gradio_api/upload"  # where Gradio's clients send forms of files
UPLOAD_SECONDS = 300  # an upload that takes longer is given up
_KEPT_SECONDS = 300  # an upload that nobody reads, a heat map that nobody fetches
_FILES_AT_ONCE = 10
_NAME_CHARACTERS, _NAME_BYTES = 100, 255  # as file systems take them


class Uploads:
    """The folder of the API's files.

    Args:
        folder: its place, which exists.
        limits: the size of a file, and of all of them.
    """

    def __init__(self, folder: Path, limits: Limits):
        self.folder, self.limits = folder.resolve(), limits
        self._arriving = 0  # bytes of the forms that are being received
        self._held = []  # folders of uploads whose turn has not come

    async def take(self, request: Request) -> list[str]:
        """Saves the files of a form as Gradio's clients send it; gives their paths.

        Raises:
            Refusal: a file that is too large, or too many.
        """
        self.sweep()
        most, lying, taken = self.limits.file_bytes * _FILES_AT_ONCE, self._lying(), 0

        async def receive() -> dict:
            nonlocal taken
            message = await request.receive()
            count = len(message.get("body", b""))
            taken += count
            self._arriving += count
            if taken > most:
                raise too_large(self.limits)
            if lying + self._arriving > self.limits.waiting_bytes:
                raise Refusal("busy", 503)
            return message

        if int(request.headers.get("content-length") or 0) > most:  # chunks have none, and are counted as they come
            raise too_large(self.limits)
        paths = []
        try:
            async with Request(request.scope, receive).form(max_files=_FILES_AT_ONCE) as form:
                for part in form.getlist("files"):
                    if isinstance(part, UploadFile):
                        paths.append(str(await self._save(part)))
        finally:
            self._arriving -= taken
        return paths

    @contextmanager
    def held(self, path: str) -> Iterator[None]:
        """While it is open, an upload stays however long it waits to be read."""
        folder = Path(path).resolve().parent
        self._held.append(folder)
        try:
            yield
        finally:
            self._held.remove(folder)

    def read(self, path: str) -> tuple[bytes, str]:
        """Content and name of an upload, which is deleted.

        Raises:
            FileNotFoundError: no such upload, or it was read before.
        """
        file = Path(path).resolve()
        if file.parent.parent != self.folder or not file.is_file():
            raise FileNotFoundError(f"{file.name}: there is no such upload. An upload is read once: send it anew.")
        content = file.read_bytes()
        shutil.rmtree(file.parent, ignore_errors=True)
        return content, file.name

    def place(self, name: str) -> Path:
        """Where a new file of this name may be written."""
        folder = self.folder / secrets.token_urlsafe(32)
        folder.mkdir(mode=0o700)
        return folder / (plain_name(name) or "upload")

    def sweep(self) -> None:
        """Deletes what lies here for too long."""
        for entry in self.folder.iterdir():
            with suppress(FileNotFoundError):  # read meanwhile
                if entry not in self._held and time.time() - entry.stat().st_mtime > _KEPT_SECONDS:
                    shutil.rmtree(entry, ignore_errors=True)

    def _lying(self) -> int:
        """Bytes of all files that lie here."""
        size = 0
        for entry in self.folder.iterdir():
            with suppress(FileNotFoundError):  # read meanwhile
                size += sum(file.stat().st_size for file in entry.iterdir())
        return size

    async def _save(self, part: UploadFile) -> Path:
        size = part.size or 0
        if size > self.limits.file_bytes:
            raise too_large(self.limits)
        if self._lying() + size > self.limits.waiting_bytes:
            raise Refusal("busy", 503)
        path = self.place(part.filename or "upload")
        path.write_bytes(await part.read())
        return path


def plain_name(name: str) -> str:
    """A file's name without folders and what cannot be printed, its last 100 characters in at most 255 bytes of UTF-8.

    Empty for none, and for the names of a folder.
    """
    base = Path(name.replace("\\", "/")).name
    plain = "".join(sign for sign in base if sign.isprintable())[-_NAME_CHARACTERS:]
    short = plain.encode()[-_NAME_BYTES:].decode(errors="ignore")
    return "" if short in (".", "..") else short
