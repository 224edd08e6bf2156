"""`clip-koa listen` and `clip-koa fetch` between a real modality and a real archive."""

import os
import shutil
import subprocess
import threading
import time

import httpx
import numpy as np
import pydicom
import pytest
from PIL import Image

from clip_koa.commands import main
from dicom.pacs import Listener, free_port, knee, needs_dcmtk, needs_orthanc, radiograph, send

pytestmark = [needs_dcmtk, needs_orthanc, pytest.mark.slow]


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.dcm").write_bytes(content)
    return [folder / f"{name}.dcm" for name in files]


def test_a_film_comes_back_into_its_study(tmp_path, released, archive, two_knees):
    listener = Listener(tmp_path / "listener", released, archive.peer, "--status_port", str(port := free_port()))
    (film,) = write(tmp_path / "films", film=two_knees)
    try:
        listener.start()
        assert send(archive.dicom, film, title="ARCHIVE") == 0  # a modality sends to both
        assert send(listener.port, film) == 0
        listener.wait(sent=1)
        assert httpx.get(f"http://127.0.0.1:{port}/").json()["sent"] == 1
    finally:
        listener.stop()
    found = {tags["Modality"]: tags for tags in archive.objects()}
    source = pydicom.dcmread(film)
    assert set(found) == {"DX", "SR", "OT"}
    assert {tags["StudyInstanceUID"] for tags in found.values()} == {source.StudyInstanceUID}
    assert {tags["PatientName"] for tags in found.values()} == {"Invented^Person film"}
    assert str(found["SR"]).count("Kellgren-Lawrence grade 0 none") >= 2
    web = f"http://127.0.0.1:{archive.http}/dicom-web/studies/{source.StudyInstanceUID}/series"
    series = httpx.get(web, headers={"accept": "application/dicom+json"}).json()
    assert {row["00080060"]["Value"][0] for row in series} == {"DX", "SR", "OT"}
    told = listener.log + str(listener.status())
    assert "Invented" not in told and "INVENTED" not in told and source.SOPInstanceUID not in told


def test_what_is_no_knee_is_answered_and_noted(tmp_path, released, archive):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8))
    files = write(
        tmp_path / "in", noise=radiograph(noise, "noise"), cut=knee(1, Rows=200), own=knee(2, Manufacturer="CLIP-KOA")
    )
    listener = Listener(tmp_path / "listener", released, archive.peer)
    try:
        listener.start()
        for file in files:
            send(listener.port, file)
        status = listener.wait(waiting_to_be_graded=0, without_a_result={
            "no grade: not a frontal knee X-ray, or it cannot be read": 2, "a result of this program": 1
        })  # fmt: skip
    finally:
        listener.stop()
    assert status["sent"] == 0 and archive.count() == 0


def test_only_who_is_allowed_is_served(tmp_path, tiny_model, archive):
    (file,) = write(tmp_path / "in", knee=knee(1))
    listener = Listener(tmp_path / "listener", tiny_model, archive.peer, "--allow", "WARD", "--allow", "MODALITY")
    try:
        listener.start()
        echo = ["echoscu", "-aet", "WARD", "-aec", "KOA", "127.0.0.1", str(listener.port)]
        assert subprocess.run(echo).returncode == 0
        assert send(listener.port, file, caller="STRANGER") != 0
        assert listener.status()["waiting_to_be_graded"] == 0
        assert send(listener.port, file) == 0
        listener.wait(sent=1)
    finally:
        listener.stop()


def test_a_full_disk_refuses_associations_and_loses_nothing(tmp_path, tiny_model, archive):
    (file,) = write(tmp_path / "in", knee=knee(1))
    full = Listener(tmp_path / "listener", tiny_model, archive.peer, "--reserve_megabytes", str(2**30))
    try:
        full.start()
        assert send(full.port, file) != 0
        _until(lambda: full.status()["last_error"])
        assert full.status()["last_error"]["what"] == "the disk is full: associations are refused"
        assert full.status()["waiting_to_be_graded"] == 0
    finally:
        full.stop()
    listener = Listener(tmp_path / "listener", tiny_model, archive.peer)
    try:
        listener.start()
        assert send(listener.port, file) == 0
        listener.wait(sent=1)
    finally:
        listener.stop()


def test_tls_serves_who_has_a_certificate(tmp_path, tiny_model, archive):
    if not shutil.which("openssl"):
        pytest.skip("needs openssl")
    for name in ("here", "stranger"):
        subprocess.run(
            ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
             "-keyout", tmp_path / f"{name}.key", "-out", tmp_path / f"{name}.pem"], check=True, capture_output=True,
        )  # fmt: skip
    (file,) = write(tmp_path / "in", knee=knee(1))
    here, key = tmp_path / "here.pem", tmp_path / "here.key"
    settings = ("--tls_certificate", here, "--tls_key", key, "--tls_authority", here)
    second = Listener(tmp_path / "listener", tiny_model, archive.peer, *settings)
    try:
        second.start()

        def tls(name):
            return ["+tls", tmp_path / f"{name}.key", tmp_path / f"{name}.pem", "+cf", here, "-ic"]

        assert send(second.port, file) != 0  # no TLS
        assert send(second.port, file, options=tls("stranger")) != 0
        assert send(second.port, file, options=tls("here")) == 0
        assert second.wait(waiting_to_be_graded=0)["state"] == "listening"
    finally:
        second.stop()


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


def test_studies_are_fetched_graded_and_stored_over_dicomweb(tmp_path, tiny_model, archive, capsys):
    files = write(tmp_path / "in", a=knee(1), b=knee(2), c=knee(3, StudyDate="20210102"))
    assert send(archive.dicom, *files, title="ARCHIVE") == 0
    url = f"http://127.0.0.1:{archive.http}/dicom-web"
    begin = ["fetch", "--model", tiny_model, "--dicomweb", url]
    assert main([*begin, "--study", pydicom.dcmread(files[2]).StudyInstanceUID]) == 0
    assert archive.count() == 5 and "1 graded, 0 graded before" in capsys.readouterr().out
    assert main([*begin, "--query", "StudyDate=20200101-20201231"]) == 0
    assert archive.count() == 9 and "2 graded, 0 graded before" in capsys.readouterr().out
    assert main([*begin, "--query", "StudyDate=20200101-20211231"]) == 0
    assert archive.count() == 9 and "0 graded, 3 graded before" in capsys.readouterr().out
    for options, words in (
        ([], "name studies by --study"),
        (["--query", "Foo=1"], "--query Foo: DICOM has no attribute of this name"),
        (["--query", "StudyDate"], "write KEY=VALUE"),
    ):
        assert main([*begin, *options]) == 2 and words in capsys.readouterr().err
    assert (
        main(["fetch", "--model", tiny_model, "--dicomweb", f"http://127.0.0.1:{free_port()}/", "--study", "1.2"]) == 2
    )
    assert "does not answer" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("films", [int(os.environ.get("CLIP_KOA_PACS_FILMS", "60"))])
def test_every_image_gets_one_result_however_often_it_is_killed(tmp_path, listener, archive, films):
    files = write(tmp_path / "in", **{f"knee{number}": knee(number) for number in range(films)})
    left = {sender: files[sender::4] for sender in range(4)}

    def modality(sender):
        for file in left[sender]:
            while send(listener.port, file) != 0:  # as a modality does: again until it was taken
                time.sleep(0.5)

    listener.start()
    begin, peaks = time.monotonic(), []
    senders = [threading.Thread(target=modality, args=(sender,)) for sender in left]
    for sender in senders:
        sender.start()
    for kill in range(5):
        _until(lambda share=(kill + 1) / 7: sum(_counts(listener)) >= share * films)
        peaks.append(listener.peak())
        listener.kill()
        if kill == 2:
            archive.stop()
        if kill == 4:
            archive.start()
        listener.start()
    for sender in senders:
        sender.join(300)
    listener.wait(300, sent=films, waiting_to_be_graded=0, waiting_to_be_sent=0)
    peaks.append(listener.peak())
    print(f"{films} images in {time.monotonic() - begin:.0f} s with five kills; at most {max(peaks) / 2**20:.0f} MiB")
    listener.stop()
    assert archive.count() == 2 * films
    objects = archive.objects()
    assert len({tags["StudyInstanceUID"] for tags in objects}) == films
    assert [tags["Modality"] for tags in objects].count("SR") == films
    assert not list((listener.spool / "outgoing").iterdir())


def _counts(listener) -> tuple[int, int]:
    try:
        status = listener.status()
    except (OSError, ValueError):
        return 0, 0
    return status["sent"] + status["waiting_to_be_sent"], status["waiting_to_be_graded"]


def _until(holds, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.1)
    assert holds()
