"""`clip-koa listen` and `clip-koa fetch` between a real modality and a real archive."""

import os
import subprocess
import threading
import time

import httpx
import numpy as np
import pydicom
import pytest
from conftest import ROOT
from PIL import Image

from clip_koa.commands import main
from dicom.pacs import Listener, free_port, knee, needs_dcmtk, needs_orthanc, radiograph, running, send

_SC = "1.2.840.10008.5.1.4.1.1.7"
pytestmark = [needs_dcmtk, needs_orthanc, pytest.mark.slow]


def write(folder, **files):
    folder.mkdir(exist_ok=True)
    for name, content in files.items():
        (folder / f"{name}.dcm").write_bytes(content)
    return [folder / f"{name}.dcm" for name in files]


def test_a_film_comes_back_into_its_study(tmp_path, released, archive, two_knees):
    """And what is no knee, or comes from a stranger, does not."""
    port = free_port()
    listener = Listener(
        tmp_path / "listener", released, archive.peer, "--allow", "WARD", "--allow", "MODALITY", "--status_port",
        str(port),
    )  # fmt: skip
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (200, 200), np.uint8))
    own = radiograph(Image.new("L", (200, 200)), "own", Manufacturer="CLIP-KOA ", SOPClassUID=_SC, Modality="OT")
    film, stranger, *others = write(
        tmp_path / "in", film=two_knees, stranger=knee(3), noise=radiograph(noise, "noise"), cut=knee(1, Rows=200),
        own=own,
    )  # fmt: skip
    with running(listener):
        echo = ["echoscu", "-aet", "WARD", "-aec", "KOA", "127.0.0.1", str(listener.port)]
        assert subprocess.run(echo).returncode == 0
        assert send(listener.port, stranger, caller="STRANGER") != 0
        assert send(archive.dicom, film, title="ARCHIVE") == 0  # a modality sends to both
        assert send(listener.port, film, *others) == 0
        status = listener.wait(sent=1, waiting_to_be_graded=0, without_a_result={
            "no grade: not a frontal knee X-ray, or it cannot be read": 2, "a result of this program": 1
        })  # fmt: skip
        assert httpx.get(f"http://127.0.0.1:{port}/").json()["sent"] == status["sent"] == 1
        (picture,) = [tags["SOPInstanceUID"] for tags in archive.objects() if tags["Modality"] == "OT"]
        (name,) = httpx.post(f"http://127.0.0.1:{archive.http}/tools/lookup", content=picture).json()
        content = httpx.get(f"http://127.0.0.1:{archive.http}/instances/{name['ID']}/file").content
        (back,) = write(tmp_path / "back", back=content)
        assert send(listener.port, back) == 0  # as an archive may that sends on what it gets
        _until(lambda: listener.status()["without_a_result"]["a result of this program"] == 2)
        second = Listener(tmp_path / "listener", released, archive.peer)
        said = subprocess.run(list(map(str, second.command)), cwd=ROOT, capture_output=True, text=True)
        assert said.returncode == 2 and "is being written by process" in said.stderr
    found = {tags["Modality"]: tags for tags in archive.objects()}
    source = pydicom.dcmread(film)
    assert set(found) == {"DX", "SR", "OT"} and archive.count() == 3
    assert {tags["StudyInstanceUID"] for tags in found.values()} == {source.StudyInstanceUID}
    assert {tags["PatientName"] for tags in found.values()} == {"Invented^Person film"}
    assert str(found["SR"]).count("Kellgren-Lawrence grade 0 none") >= 2
    web = f"http://127.0.0.1:{archive.http}/dicom-web/studies/{source.StudyInstanceUID}/series"
    series = httpx.get(web, headers={"accept": "application/dicom+json"}).json()
    assert {row["00080060"]["Value"][0] for row in series} == {"DX", "SR", "OT"}
    told = listener.log + str(listener.status())
    assert "Invented" not in told and "INVENTED" not in told and source.SOPInstanceUID not in told


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


@pytest.mark.parametrize("films", [int(os.environ.get("CLIP_KOA_PACS_FILMS", "24"))])
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
    kills = 5 if films >= 60 else 2
    for kill in range(kills):
        _until(lambda share=(kill + 1) / (kills + 2): sum(_counts(listener)) >= share * films)
        peaks.append(listener.peak())
        listener.kill()
        if kill == kills - 2:
            archive.stop()
        if kill == kills - 1:
            archive.start()
        listener.start()
    for sender in senders:
        sender.join(300)
    listener.wait(300, sent=films, waiting_to_be_graded=0, waiting_to_be_sent=0)
    peaks.append(listener.peak())
    print(
        f"{films} images in {time.monotonic() - begin:.0f} s with {kills} kills; at most {max(peaks) / 2**20:.0f} MiB"
    )
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
