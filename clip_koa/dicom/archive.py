"""Sending results to an archive: by C-STORE (PS3.4, annex B)."""

import re
import ssl
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pynetdicom import AE
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage

from clip_koa.dicom.worker import Unsent
from modeling_clip_koa import CLIPKOAError

# An application entity's title: printable ASCII but the backslash, 16 at most, not blanks alone (PS3.5, 6.2).
_TITLE = r"[!-\[\]-~](?:[ -\[\]-~]{0,14}[!-\[\]-~])?"
_PEER = re.compile(rf"(?P<title>{_TITLE})@(?P<host>\[[0-9a-fA-F:]+\]|[^:@\s]+):(?P<port>\d{{1,5}})", re.ASCII)
_SECONDS = 30  # of waiting for the archive's answer
# The archive has it: stored, it had it before (PS3.7, C.5.7), or stored with a warning (PS3.4, B.2.3).
_SUCCESS = {0x0000, 0x0111, 0xB000, 0xB006, 0xB007}


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


def check_title(option: str, title: str) -> str:
    """The title of an application entity.

    Raises:
        PacsError: it cannot be one.
    """
    if not re.fullmatch(_TITLE, title):
        raise PacsError(f"{option} {title}: a title has 1 to 16 letters, digits and signs of ASCII, and no backslash.")
    return title


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

    def __call__(self, files: Sequence[Path]) -> None:
        """Sends files.

        Raises:
            Unsent: the archive is away, or did not take one.
        """
        tls = (self.tls, self.peer.host) if self.tls else None
        peer = self.peer
        try:
            association = self.entity.associate(peer.host, peer.port, ae_title=peer.title, tls_args=tls)
        except OSError as error:  # a name that is not known at present, most likely
            raise Unsent(f"the archive does not answer: {error.strerror or type(error).__name__}") from error
        if not association.is_established:
            raise Unsent("the archive does not answer, or refuses the association")
        try:
            for file in files:
                answer = association.send_c_store(file)
                if "Status" not in answer:
                    raise Unsent("the connection to the archive broke off, or it does not answer")
                if answer.Status not in _SUCCESS:
                    raise Unsent(f"the archive refused a result with status 0x{answer.Status:04X}", refused=True)
        except ValueError as error:  # a context that it did not accept
            raise Unsent("the archive refused the kind of a result", refused=True) from error
        except RuntimeError as error:  # it ended the association between two results
            raise Unsent("the connection to the archive broke off, or it does not answer") from error
        finally:
            association.release()
