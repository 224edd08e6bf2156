"""`clip-koa listen`: an archive or a machine sends radiographs, and gets their grades back into the archive."""

import io
import json
import logging
import sqlite3
import ssl
import threading
import time
import warnings
import weakref
from dataclasses import dataclass
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pydicom
from pynetdicom import AE, evt
from pynetdicom.sop_class import (
    ComputedRadiographyImageStorage,
    DigitalXRayImageStorageForPresentation,
    DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
    Verification,
)
from pynetdicom.transport import ThreadedAssociationServer

from clip_koa.dicom.archive import Archive, PacsError, Peer, check_title
from clip_koa.dicom.results import DicomResults
from clip_koa.dicom.spool import Spool
from clip_koa.dicom.worker import Worker, why
from clip_koa.files import write_file
from clip_koa.locks import WriterLock
from dataset_script.dicom_decoding import SYNTAXES
from dataset_script.radiograph import MAX_BYTES

IMAGES = (
    ComputedRadiographyImageStorage, DigitalXRayImageStorageForPresentation, DigitalXRayImageStorageForProcessing,
    SecondaryCaptureImageStorage,
)  # fmt: skip
# Statuses of C-STORE (PS3.4, B.2.3): kept; out of resources, so send it again later; not the image that it is called.
_SUCCESS, _NO_ROOM, _OTHER_IMAGE = 0x0000, 0xA700, 0xA900
# Rejected for a while, by the provider's presentation layer: a local limit is exceeded (PS3.8, 9.3.4).
_FULL = (0x02, 0x03, 0x02)
_DATA, _COMMAND = 0x04, 0x01  # a data unit's type, and the bit of its items that hold a command (PS3.8, 9.3.5, E.2)
_MOST_ASSOCIATIONS = 32
_LONGEST_SILENCE = 30  # seconds within one message
_BEAT = 1.0  # seconds between two writings of the status
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ListenSettings:
    """What listens, grades and sends.

    Attributes:
        model, level: see `Grader`.
        spool: folder in which nothing that was accepted is lost.
        send_to: AET@HOST:PORT of the archive.
        port, host, title: where to listen, and as which application entity.
        allow: titles of the callers that are served; empty: all.
        certificate, key, authority: files of TLS, for both directions; None: no TLS.
        status_port: where the status is served as JSON; None: only in the spool's status.json.
        reserve_megabytes: of the disk, that stay free.
    """

    model: str
    spool: Path
    send_to: str
    port: int = 11112
    host: str = "127.0.0.1"
    title: str = "KOA"
    allow: tuple[str, ...] = ()
    level: float = 0.9
    certificate: Path | None = None
    key: Path | None = None
    authority: Path | None = None
    status_port: int | None = None
    reserve_megabytes: int = 500


def listen(settings: ListenSettings) -> None:
    """Listens until it is stopped.

    Raises:
        PacsError: a setting that cannot be.
        SpoolError: a folder that cannot be a spool.
        InUseError: another process has this spool.
    """
    peer = Peer.parse(settings.send_to)
    check_title("--aet", settings.title)
    for title in settings.allow:
        check_title("--allow", title)
    warnings.simplefilter("ignore")  # pydicom's quote what a file says of its patient
    for library in ("pydicom", "pynetdicom"):
        logging.getLogger(library).setLevel(logging.CRITICAL)
    inward, outward = _tls(settings)
    with WriterLock(settings.spool, inside=True):
        spool = Spool(settings.spool, settings.reserve_megabytes * 2**20)
        results = DicomResults.of_model(settings.model, settings.level, spool.outgoing)
        worker = Worker(spool, results, Archive(peer, settings.title, outward))
        listener = _Listener(settings, spool, worker)
        try:
            listener.run(inward)
        finally:
            worker.stop()
            listener.write_status("stopped")
            spool.close()


class _Listener:
    """The application entity that images are sent to, and the status."""

    def __init__(self, settings: ListenSettings, spool: Spool, worker: Worker):
        self.settings, self.spool, self.worker = settings, spool, worker
        self.since = time.time()
        self.sizes = weakref.WeakKeyDictionary()  # bytes of the object that each association sends at present
        self.unwritten = ""  # why the status could not be written the last time

    def run(self, tls: ssl.SSLContext | None) -> None:
        """Serves until the process is asked to end."""
        server = pages = None
        try:
            server, pages = self.serve(tls), self._serve_status()
            self.worker.start()
            print(
                f"{self.settings.title} listens at {self.settings.host}:{self.settings.port}. It ends with Ctrl+C.",
                flush=True,
            )
            while True:
                self.write_status("listening")
                time.sleep(_BEAT)
        except KeyboardInterrupt:
            print("It has ended. What was accepted stays in the spool.", flush=True)
        finally:
            for serving in filter(None, (server, pages)):
                serving.shutdown()

    def serve(self, tls: ssl.SSLContext | None) -> ThreadedAssociationServer:
        """Starts to take images, in threads of their own, until the server that it returns is shut down."""
        settings = self.settings
        entity = AE(settings.title)
        entity.maximum_associations = _MOST_ASSOCIATIONS
        entity.require_calling_aet = list(settings.allow)
        entity.add_supported_context(Verification)
        for image in IMAGES:
            entity.add_supported_context(image, list(SYNTAXES))
        handlers = [
            (evt.EVT_C_STORE, self.take), (evt.EVT_REQUESTED, self.refuse_when_full),
            (evt.EVT_CONN_OPEN, _be_impatient), (evt.EVT_PDU_RECV, self.refuse_endless),
        ]  # fmt: skip
        try:
            return entity.start_server(
                (settings.host, settings.port), block=False, evt_handlers=handlers, ssl_context=tls
            )
        except OSError as error:
            raise PacsError(
                f"--port {settings.port}: it cannot be listened on at {settings.host}: {error.strerror}."
            ) from error

    def refuse_when_full(self, event) -> None:
        """Refuses an association while the disk is full."""
        if self.spool.is_full():
            self.worker.errors.note("the disk is full: associations are refused")
            event.assoc.acse.send_reject(*_FULL)
            event.assoc.kill()

    def refuse_endless(self, event) -> None:
        """Ends an association that sends one object larger than any radiograph, before it fills the memory."""
        if event.pdu.pdu_type != _DATA:
            return
        for item in event.pdu.presentation_data_value_items:
            header, *_ = item.presentation_data_value
            size = 0 if header & _COMMAND else self.sizes.get(event.assoc, 0) + len(item.presentation_data_value)
            self.sizes[event.assoc] = size
            if size > MAX_BYTES:
                self.worker.errors.note(f"an object of more than {MAX_BYTES:,} bytes was refused")
                event.assoc.dul.socket.close()  # its own thread calls this, which an abort would wait for

    def take(self, event) -> int:
        """Keeps an image, and answers once it is on the disk."""
        try:
            if self.spool.is_full():
                self.worker.errors.note("the disk is full: an image was not accepted")
                return _NO_ROOM
            content, identifier = event.encoded_dataset(), str(event.request.AffectedSOPInstanceUID)
            if _names_another(content, identifier):
                self.worker.errors.note("an image was refused: its identifier differs from the one it was sent with")
                return _OTHER_IMAGE
            self.spool.accept(identifier, content)
        except Exception as error:  # whatever it is, the image was not accepted and may come again
            self.worker.errors.note(f"an image could not be kept: {why(error)}")
            return _NO_ROOM
        self.worker.wake()
        return _SUCCESS

    def status(self, state: str = "listening") -> dict:
        """How it stands: counts, reasons and the last error, nothing of a patient."""
        errors = self.worker.errors
        counts = self.spool.counts()
        return {
            "state": state,
            "since": _time(self.since),
            "at": _time(time.time()),
            "waiting_to_be_graded": counts["received"],
            "waiting_to_be_sent": counts["graded"],
            "sent": counts["sent"],
            "without_a_result": self.spool.reasons(),
            "last_error": {"at": _time(errors.at), "what": errors.last} if errors.last else None,
        }

    def write_status(self, state: str) -> None:
        """Writes the status into the spool, where it can be written."""
        try:
            write_file(self.settings.spool / "status.json", (json.dumps(self.status(state), indent=1) + "\n").encode())
            self.unwritten = ""
        except (OSError, sqlite3.Error) as error:  # the listener goes on, and says so once
            if why(error) != self.unwritten:
                self.unwritten = why(error)
                _LOG.warning("the status could not be written: %s", self.unwritten)

    def _serve_status(self) -> ThreadingHTTPServer | None:
        if self.settings.status_port is None:
            return None
        listener = self

        class Status(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                content = json.dumps(listener.status()).encode()
                self.send_response(200)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_) -> None:
                """Nothing."""

        try:
            pages = ThreadingHTTPServer((self.settings.host, self.settings.status_port), Status)
        except OSError as error:
            raise PacsError(f"--status_port {self.settings.status_port}: {error.strerror}.") from error
        threading.Thread(target=pages.serve_forever, daemon=True).start()
        return pages


def _be_impatient(event) -> None:
    """Ends a connection that stops in the middle of a message: its thread would wait for ever, also at the end."""
    event.assoc.dul.socket.socket.settimeout(_LONGEST_SILENCE)


def _names_another(content: bytes, identifier: str) -> bool:
    """Whether an image says that it is another than it was sent as; of one that cannot be read this is not known."""
    try:
        named = pydicom.dcmread(io.BytesIO(content), stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        return str(named.SOPInstanceUID) != identifier
    except Exception:  # pydicom raises nearly every kind there is on damaged files
        return False


def _time(seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(seconds))


def _tls(settings: ListenSettings) -> tuple[ssl.SSLContext | None, ssl.SSLContext | None]:
    """For what comes in and for what goes out; both ends must show a certificate of the authority."""
    files = (settings.certificate, settings.key, settings.authority)
    if not any(files):
        return None, None
    if not all(files):
        raise PacsError("TLS needs all of --tls_certificate, --tls_key and --tls_authority.")
    contexts = []
    for purpose in (ssl.Purpose.CLIENT_AUTH, ssl.Purpose.SERVER_AUTH):
        try:
            context = ssl.create_default_context(purpose, cafile=settings.authority)
            context.load_cert_chain(settings.certificate, settings.key)
        except (OSError, ssl.SSLError) as error:
            named = ", ".join(map(str, files))
            raise PacsError(f"TLS: one of {named} cannot be read: {error.strerror or error}.") from error
        context.verify_mode = ssl.CERT_REQUIRED
        contexts.append(context)
    inward, outward = contexts
    # A caller that is silent after it has connected is waited for in its own thread, not where others are let in.
    inward.wrap_socket = partial(inward.wrap_socket, do_handshake_on_connect=False)
    return inward, outward
