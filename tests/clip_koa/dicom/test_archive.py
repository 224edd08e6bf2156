"""Sending to archives that refuse, hang, and go away."""

import time

import pytest
from pynetdicom import AE, evt
from pynetdicom.sop_class import ComprehensiveSRStorage, SecondaryCaptureImageStorage, Verification

from clip_koa.dicom import archive as module
from clip_koa.dicom.archive import Archive, PacsError, Peer
from clip_koa.dicom.worker import Unsent
from dicom.pacs import free_port, knee

_SC = "1.2.840.10008.5.1.4.1.1.7"


@pytest.fixture
def files(tmp_path):
    """Two objects of a kind that is sent."""
    files = [tmp_path / "a.dcm", tmp_path / "b.dcm"]
    for number, file in enumerate(files):
        file.write_bytes(knee(number, SOPClassUID=_SC))
    return files


@pytest.fixture
def standing():
    """Gives the sender to an archive whose answers are those of `store`."""
    servers = []

    def start(store, kinds=(ComprehensiveSRStorage, SecondaryCaptureImageStorage), seconds=10):
        entity, port = AE("ARCHIVE"), free_port()
        for kind in kinds:
            entity.add_supported_context(kind)
        servers.append(entity.start_server(("127.0.0.1", port), block=False, evt_handlers=[(evt.EVT_C_STORE, store)]))
        sender = Archive(Peer("ARCHIVE", "127.0.0.1", port), "KOA")
        sender.entity.acse_timeout = sender.entity.dimse_timeout = sender.entity.network_timeout = seconds
        return sender

    yield start
    for server in servers:
        server.shutdown()


@pytest.mark.parametrize("status", [0x0000, 0x0111, 0xB000, 0xB007])
def test_what_the_archive_has_is_sent(standing, files, status):
    """Also what it had before, as after a kill between its answer and our note of it."""
    got = []

    def store(event):
        got.append(event.request.AffectedSOPInstanceUID)
        return status

    standing(store)(files)
    assert len(set(got)) == 2


@pytest.mark.parametrize("status", [0xA700, 0xA900, 0xC000, 0x0124])
def test_an_answer_that_refuses_is_told_as_such(standing, files, status):
    with pytest.raises(Unsent, match=f"status 0x{status:04X}") as error:
        standing(lambda event: status)(files)
    assert error.value.refused


def test_an_archive_that_knows_none_of_the_kinds_refuses(standing, files):
    with pytest.raises(Unsent, match="refuses the association") as error:
        standing(lambda event: 0, kinds=(Verification,))(files)
    assert not error.value.refused
    with pytest.raises(Unsent, match="the kind of a result") as error:
        standing(lambda event: 0, kinds=(ComprehensiveSRStorage,))(files)
    assert error.value.refused


def test_an_archive_that_hangs_is_waited_for_so_long(standing, files):
    begin = time.monotonic()
    with pytest.raises(Unsent, match="broke off"):
        standing(lambda event: time.sleep(3) or 0, seconds=0.5)(files)
    assert time.monotonic() - begin < 3


def test_an_archive_that_goes_away_meanwhile_gets_it_again(standing, files):
    calls = []

    def store(event):
        calls.append(event)
        if len(calls) == 2:
            event.assoc.abort()
        return 0

    sender = standing(store)
    with pytest.raises(Unsent, match="broke off") as error:
        sender(files)
    assert not error.value.refused
    sender(files)
    assert len(calls) == 4


def test_an_archive_that_is_away_is_told(files):
    with pytest.raises(Unsent, match="does not answer"):
        Archive(Peer("ARCHIVE", "127.0.0.1", free_port()), "KOA")(files)
    with pytest.raises(Unsent, match="does not answer"):
        Archive(Peer("ARCHIVE", "no.such.host.invalid", 104), "KOA")(files)


def test_where_results_go_is_read_strictly():
    assert Peer.parse("MY PACS@[::1]:104") == Peer("MY PACS", "::1", 104)
    assert module.Peer.parse("A@host:1").port == 1
    for text in (
        "A@host",
        "@host:1",
        "A" * 17 + "@host:1",
        "A\\B@host:1",
        "Ä@host:1",
        "A@host:0",
        " @host:1",
        "A@b:1²",
    ):
        with pytest.raises(PacsError, match="write AET@HOST:PORT"):
            Peer.parse(text)
