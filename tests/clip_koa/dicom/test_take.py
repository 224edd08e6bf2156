"""What the listener takes and refuses, from senders of every kind, without grading it."""

import io
import logging
import shutil
import socket
import sqlite3
import subprocess
import threading
import time

import numpy as np
import pydicom
import pytest
from dicom_files import write_dicom
from pynetdicom import AE
from pynetdicom.sop_class import ComprehensiveSRStorage, DigitalXRayImageStorageForPresentation
from pynetdicom.status import code_to_category

from clip_koa.commands import main
from clip_koa.dicom import listener as module
from clip_koa.dicom.archive import PacsError
from clip_koa.dicom.listener import ListenSettings, _Listener, _tls, listen
from clip_koa.dicom.spool import Spool
from clip_koa.dicom.worker import Errors
from dataset_script.radiograph import read_radiograph
from dicom.pacs import free_port, knee, needs_dcmtk, send

needs_openssl = pytest.mark.skipif(
    not shutil.which("openssl") or not shutil.which("storescu"), reason="needs openssl, dcmtk"
)
_NO_ROOM, _OTHER_IMAGE = 0xA700, 0xA900


class Idle:
    """A worker that leaves everything in the spool."""

    def __init__(self):
        self.errors = Errors()

    def wake(self):
        """Nothing."""


@pytest.fixture
def spool(tmp_path):
    spool = Spool(tmp_path / "spool", 0)
    yield spool
    spool.close()


@pytest.fixture
def serving(spool):
    """Gives a listener that listens with some settings; it stops when the test ends."""
    servers = []

    def start(tls=None, **settings):
        settings = ListenSettings("model", spool.folder, "A@localhost:1", free_port(), **settings)
        listener = _Listener(settings, spool, Idle())
        servers.append(listener.serve(tls))
        return listener

    yield start
    for server in servers:
        server.shutdown()


def connected(listener, *kinds, caller="MODALITY", seconds=10):
    """An association that proposes kinds of objects."""
    entity = AE(caller)
    entity.acse_timeout = entity.dimse_timeout = entity.connection_timeout = seconds
    for kind in kinds or (DigitalXRayImageStorageForPresentation,):
        entity.add_requested_context(kind, "1.2.840.10008.1.2.1")
    return entity.associate("127.0.0.1", listener.settings.port, ae_title="KOA")


def status_of(listener, content: bytes) -> int:
    """What the listener answers to an image."""
    association = connected(listener)
    try:
        return association.send_c_store(pydicom.dcmread(io.BytesIO(content))).Status
    finally:
        association.release()


def test_an_image_of_two_senders_at_once_and_again_is_kept_once(serving, spool):
    listener = serving()
    answers = []
    senders = [threading.Thread(target=lambda: answers.append(status_of(listener, knee(1)))) for _ in range(6)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert answers == [0] * 6 and spool.counts()["received"] == 1
    waiting = spool.next_received()
    spool.set_refused(waiting, "done")
    assert status_of(listener, knee(1)) == 0 and spool.counts()["received"] == 0
    assert list(spool.incoming.iterdir()) == []


def test_thirty_associations_at_once_lose_nothing(serving, spool):
    listener = serving()
    answers = []
    senders = [
        threading.Thread(target=lambda number=number: answers.append(status_of(listener, knee(number))))
        for number in range(30)
    ]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    assert answers == [0] * 30 and spool.counts()["received"] == 30


def test_an_image_that_is_another_than_it_is_called_is_refused(serving, spool):
    listener = serving()
    image = pydicom.dcmread(io.BytesIO(knee(1)))
    association = connected(listener)
    name = association.dimse.send_msg

    def renamed(message, context):
        message.AffectedSOPInstanceUID = "1.2.3.4"
        name(message, context)

    association.dimse.send_msg = renamed
    assert association.send_c_store(image).Status == _OTHER_IMAGE
    association.release()
    assert code_to_category(_OTHER_IMAGE) == "Failure" and spool.counts()["received"] == 0


def test_other_objects_are_not_taken(serving, spool):
    association = connected(serving(), ComprehensiveSRStorage)
    assert not association.is_established or not association.accepted_contexts
    association.abort()


_SYNTAXES = {
    "1.2.840.10008.1.2": ["-xi"], "1.2.840.10008.1.2.1": ["-xe"], "1.2.840.10008.1.2.2": ["-xb"],
    "1.2.840.10008.1.2.1.99": ["-xd"], "1.2.840.10008.1.2.5": ["-xr"], "1.2.840.10008.1.2.4.70": ["-xs"],
    "1.2.840.10008.1.2.4.90": ["-xv"], "1.2.840.10008.1.2.4.80": ["-xt"],
}  # fmt: skip
_DCMTK = {
    "1.2.840.10008.1.2.1.99": ["dcmconv", "+td"], "1.2.840.10008.1.2.4.70": ["dcmcjpeg"],
    "1.2.840.10008.1.2.4.80": ["dcmcjpls"], "1.2.840.10008.1.2": ["dcmconv", "+ti"],
    "1.2.840.10008.1.2.2": ["dcmconv", "+tb"],
}  # fmt: skip


@needs_dcmtk
@pytest.mark.parametrize("syntax", _SYNTAXES)
def test_every_transfer_syntax_is_kept_as_it_was_sent(serving, spool, tmp_path, syntax):
    plain, file = tmp_path / "plain.dcm", tmp_path / "sent.dcm"
    plain.write_bytes(knee(1))
    if syntax in _DCMTK:
        subprocess.run([*_DCMTK[syntax], plain, file], check=True)
    else:
        image = pydicom.dcmread(plain)
        if syntax != "1.2.840.10008.1.2.1":
            image.compress(syntax, generate_instance_uid=False)
        image.save_as(file, enforce_file_format=True)
    listener = serving()
    assert send(listener.settings.port, file, options=_SYNTAXES[syntax]) == 0
    kept = spool.path(spool.next_received().digest)
    assert pydicom.dcmread(kept).file_meta.TransferSyntaxUID == syntax
    assert np.array_equal(read_radiograph(kept).image, read_radiograph(plain).image)
    assert pydicom.dcmread(kept).PatientName == pydicom.dcmread(plain).PatientName


def test_an_object_larger_than_any_radiograph_ends_its_association(serving, spool, monkeypatch):
    listener = serving()
    monkeypatch.setattr(module, "MAX_BYTES", 200_000)
    large = write_dicom(np.zeros((400, 400), np.uint16), SOPInstanceUID="1.2.3")
    association = connected(listener)
    assert "Status" not in association.send_c_store(pydicom.dcmread(io.BytesIO(large)))
    assert "200,000 bytes" in listener.worker.errors.last and spool.counts()["received"] == 0
    association = connected(listener)  # many images that are small are no large one
    for number in range(15):
        assert association.send_c_store(pydicom.dcmread(io.BytesIO(knee(number)))).Status == 0
    association.release()
    assert spool.counts()["received"] == 15


@pytest.mark.parametrize(
    "error", [sqlite3.OperationalError("database or disk is full"), OSError(28, "No space left"), MemoryError()]
)
def test_what_cannot_be_kept_is_to_be_sent_again(serving, spool, monkeypatch, error):
    listener = serving()

    def fail(*_):
        raise error

    for place in ("_write", "is_full"):
        with monkeypatch.context() as patch:
            patch.setattr(spool, place, fail)
            assert status_of(listener, knee(1)) == _NO_ROOM
    assert spool.counts()["received"] == 0
    assert status_of(listener, knee(1)) == 0 and spool.counts()["received"] == 1


def test_a_connection_that_stops_within_a_message_is_ended(serving, monkeypatch):
    monkeypatch.setattr(module, "_LONGEST_SILENCE", 0.5)
    listener = serving()
    with socket.create_connection(("127.0.0.1", listener.settings.port)) as half:
        half.sendall(b"\x01\x00\x00\x00\x00\xff123")
        half.settimeout(10)
        while half.recv(100):  # what it says before it closes
            pass


def test_a_full_disk_refuses_associations(serving, spool):
    listener = serving()
    spool.reserve = 2**60
    association = connected(listener)
    assert association.is_rejected and listener.worker.errors.last == "the disk is full: associations are refused"
    spool.reserve = 0
    assert status_of(listener, knee(1)) == 0 and spool.counts()["received"] == 1


def test_only_who_is_allowed_is_served(serving):
    listener = serving(allow=("WARD", "MODALITY"))
    assert connected(listener, caller="STRANGER").is_rejected
    association = connected(listener, caller="WARD")
    assert association.is_established
    association.release()


@pytest.fixture
def certificates(tmp_path):
    """Of this end and of a stranger, each signed by itself: name -> options of `storescu`, and the settings."""
    for name in ("here", "stranger"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"], check=True, capture_output=True,
        )  # fmt: skip
    here, key = tmp_path / "here.pem", tmp_path / "here.key"
    options = {
        name: ["+tls", tmp_path / f"{name}.key", tmp_path / f"{name}.pem", "+cf", here, "-ic"]
        for name in ("here", "stranger")
    }
    return options, ListenSettings("", tmp_path, "", certificate=here, key=key, authority=here)


@needs_openssl
def test_tls_serves_who_has_a_certificate(serving, spool, tmp_path, certificates):
    options, settings = certificates
    (tmp_path / "knee.dcm").write_bytes(knee(1))
    port = serving(_tls(settings)[0]).settings.port
    assert send(port, tmp_path / "knee.dcm") != 0  # no TLS
    assert send(port, tmp_path / "knee.dcm", options=options["stranger"]) != 0
    assert spool.counts()["received"] == 0
    assert send(port, tmp_path / "knee.dcm", options=options["here"]) == 0
    assert spool.counts()["received"] == 1


@needs_openssl
def test_a_caller_that_says_nothing_keeps_no_other_out(serving, tmp_path, certificates):
    listener = serving()
    with socket.create_connection(("127.0.0.1", listener.settings.port)):
        assert status_of(listener, knee(1)) == 0
    inward, outward = _tls(certificates[1])
    listener = serving(inward)
    with socket.create_connection(("127.0.0.1", listener.settings.port)):
        time.sleep(0.5)  # it is let in first
        entity = AE("MODALITY")
        entity.connection_timeout = entity.acse_timeout = 10
        entity.add_requested_context(DigitalXRayImageStorageForPresentation)
        association = entity.associate(
            "127.0.0.1", listener.settings.port, ae_title="KOA", tls_args=(outward, "localhost")
        )
        assert association.is_established
        association.release()


def test_a_status_that_cannot_be_written_is_told_once(serving, spool, caplog):
    listener = serving()
    (spool.folder / "status.json").mkdir()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            listener.write_status("listening")
    assert [record.message for record in caplog.records] == ["the status could not be written: Is a directory"]
    assert list(spool.folder.glob("*.writing")) == list(spool.folder.glob(".*.writing")) == []
    (spool.folder / "status.json").rmdir()
    listener.write_status("listening")
    assert listener.unwritten == "" and (spool.folder / "status.json").is_file()


def test_nothing_of_a_patient_is_told(serving, spool, caplog, capfd, monkeypatch):
    listener = serving()
    image = knee(1)
    source = pydicom.dcmread(io.BytesIO(image))
    with caplog.at_level(logging.WARNING):
        monkeypatch.setattr(spool, "accept", lambda *_: (_ for _ in ()).throw(ValueError(f"{source.PatientName}")))
        assert status_of(listener, image) == _NO_ROOM
    told = caplog.text + "".join(capfd.readouterr()) + str(listener.status())
    assert "an image could not be kept" in told
    assert not any(str(value) in told for value in (source.PatientName, source.PatientID, source.SOPInstanceUID))


def test_settings_that_cannot_be_are_told_in_a_line(tmp_path, tiny_model, capsys):
    begin = ["listen", "--model", tiny_model, "--spool", tmp_path / "spool", "--send_to"]
    for options, words in (
        (["ARCHIVE:4242"], "--send_to ARCHIVE:4242: write AET@HOST:PORT"),
        (["A@localhost:99999"], "write AET@HOST:PORT"),
        (["A@localhost:4242", "--tls_key", "key.pem"], "TLS needs all of"),
        (
            ["A@localhost:4242", *(f"--tls_{name}=nothing.pem" for name in ("key", "certificate", "authority"))],
            "nothing",
        ),
        (["A@localhost:4242", "--host", "192.0.2.1"], "it cannot be listened on at 192.0.2.1"),
    ):
        assert main([*begin, *options]) == 2
        (line,) = [line for line in capsys.readouterr().err.splitlines() if "clip-koa" in line]
        assert line.startswith("clip-koa listen: ") and words in line


@pytest.mark.parametrize("change", [{"title": "A" * 17}, {"title": ""}, {"allow": ("OK", "back\\slash")}])
def test_titles_that_cannot_be_are_told(tmp_path, change):
    with pytest.raises(PacsError, match="a title has 1 to 16"):
        listen(ListenSettings("model", tmp_path / "spool", "A@localhost:1", **change))
    assert list(tmp_path.iterdir()) == []
