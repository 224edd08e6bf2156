"""Sending results to an archive: by C-STORE (PS3.4, annex B) or by STOW-RS (PS3.18)."""

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pynetdicom import AE
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage, Verification

from clip_koa.dicom.worker import Unsent
from modeling_clip_koa import CLIPKOAError

_PEER = re.compile(r"(?P<title>[^@\s]{1,16})@(?P<host>\[[0-9a-fA-F:]+\]|[^:@\s]+):(?P<port>\d{1,5})")
_SECONDS = 30  # of waiting for the archive's answer
_SUCCESS = {0x0000, 0xB000, 0xB006, 0xB007}  # the last three: stored, with a warning


class PacsError(CLIPKOAError, ValueError):
    """A setting of the listener that cannot be; the message says what would be right."""


@dataclass(frozen=True)
class Peer:
    """An archive's application entity."""

    title: str
    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> "Peer":
        """Of AET@HOST:PORT.

        Raises:
            PacsError: another form.
        """
        match = _PEER.fullmatch(text)
        if not match or not 0 < int(match["port"]) < 2**16:
            raise PacsError(f"--send_to {text}: write AET@HOST:PORT, such as ARCHIVE@127.0.0.1:4242.")
        return cls(match["title"], match["host"].strip("[]"), int(match["port"]))


class Archive:
    """Sends by C-STORE.

    Args:
        peer: the archive.
        title: of this end.
        tls: where the connection is to be encrypted.
    """

    def __init__(self, peer: Peer, title: str, tls: ssl.SSLContext | None = None):
        self.peer, self.tls = peer, tls
        self.entity = AE(title)
        self.entity.acse_timeout = self.entity.dimse_timeout = self.entity.network_timeout = _SECONDS
        for storage in (ComprehensiveSRStorage, SecondaryCaptureImageStorage):
            self.entity.add_requested_context(storage, "1.2.840.10008.1.2.1")
        self.entity.add_requested_context(Verification)

    def __call__(self, files: Sequence[Path]) -> None:
        """Sends files.

        Raises:
            Unsent: the archive is away, or did not take one.
        """
        tls = (self.tls, self.peer.host) if self.tls else None
        association = self.entity.associate(self.peer.host, self.peer.port, ae_title=self.peer.title, tls_args=tls)
        if not association.is_established:
            raise Unsent("the archive does not answer, or refuses the association")
        try:
            for file in files:
                answer = association.send_c_store(pydicom.dcmread(file))
                if not answer or "Status" not in answer:
                    raise Unsent("the connection to the archive broke off")
                if answer.Status not in _SUCCESS:
                    raise Unsent(f"the archive refused a result with status 0x{answer.Status:04X}", refused=True)
        except (ValueError, RuntimeError) as error:  # a context that it did not accept
            raise Unsent("the archive refused the kind of a result", refused=True) from error
        finally:
            association.release()
