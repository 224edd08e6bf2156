"""A real archive, a modality and the listener, each in a process of its own on the loopback."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import httpx
import numpy as np
import pytest
from conftest import ROOT
from dicom_files import write_dicom
from PIL import Image
from pydicom.uid import generate_uid

from dataset_script.synthetic import draw_knee

ORTHANC = shutil.which("Orthanc")
PLUGIN = next(iter(Path("/usr").glob("**/libOrthancDicomWeb.so*")), None) if ORTHANC else None
needs_orthanc = pytest.mark.skipif(not ORTHANC, reason="needs Orthanc (Debian packages orthanc, orthanc-dicomweb)")
needs_dcmtk = pytest.mark.skipif(not shutil.which("storescu"), reason="needs dcmtk")


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def radiograph(image: Image.Image, name: str, **attributes) -> bytes:
    """A DICOM radiograph of 12 bits of an invented patient, whose identifiers follow from `name`."""
    patient = {
        "PatientID": f"INVENTED-{name}", "PatientName": f"Invented^Person {name}", "PatientBirthDate": "19500101",
        "PatientSex": "F", "StudyDate": "20200102", "StudyTime": "101112", "AccessionNumber": f"ACC-{name}",
        "StudyID": "1", "ReferringPhysicianName": "", "InstanceNumber": 1, "Modality": "DX",
        "SOPInstanceUID": generate_uid(entropy_srcs=["instance", name]),
        "StudyInstanceUID": generate_uid(entropy_srcs=["study", name]),
        "SeriesInstanceUID": generate_uid(entropy_srcs=["series", name]),
        "WindowCenter": 2048, "WindowWidth": 4096, "BitsStored": 12,
    }  # fmt: skip
    return write_dicom(np.asarray(image.convert("L"), np.uint16) * 16, **(patient | attributes))


def knee(number: int, **attributes) -> bytes:
    """A drawn knee as a DICOM radiograph."""
    return radiograph(draw_knee(number % 5, "LR"[number % 2], number, 96), f"knee{number}", **attributes)


class Archive:
    """A real Orthanc.

    Args:
        folder: for what it stores; it finds it again when it is started anew.
    """

    def __init__(self, folder: Path):
        self.dicom, self.http, self.folder = free_port(), free_port(), folder
        folder.mkdir(parents=True)
        settings = {
            "Name": "ARCHIVE", "StorageDirectory": str(folder / "db"), "IndexDirectory": str(folder / "db"),
            "HttpPort": self.http, "DicomPort": self.dicom, "DicomAet": "ARCHIVE", "DicomAlwaysAllowStore": True,
            "AuthenticationEnabled": False, "Plugins": [str(PLUGIN)] if PLUGIN else [],
        }  # fmt: skip
        (folder / "orthanc.json").write_text(json.dumps(settings))
        self.process = None

    @property
    def peer(self) -> str:
        return f"ARCHIVE@127.0.0.1:{self.dicom}"

    def start(self) -> None:
        with (self.folder / "log").open("a") as log:
            self.process = subprocess.Popen([ORTHANC, self.folder / "orthanc.json"], stdout=log, stderr=log)
        for _ in range(150):
            try:
                return self.get("/system") and None
            except httpx.TransportError:
                assert self.process.poll() is None, (self.folder / "log").read_text()[-2000:]
                time.sleep(0.1)
        raise AssertionError("Orthanc does not answer")

    def stop(self) -> None:
        if self.process:
            self.process.terminate()
            self.process.wait(30)
            self.process = None

    def get(self, path: str):
        """What its REST interface answers."""
        return httpx.get(f"http://127.0.0.1:{self.http}{path}", timeout=30).json()

    def count(self) -> int:
        """How many objects it holds."""
        return self.get("/statistics")["CountInstances"]

    def objects(self) -> list[dict]:
        """The tags of all objects."""
        return [self.get(f"/instances/{name}/simplified-tags") for name in self.get("/instances")]


class Listener:
    """`clip-koa listen` with a spool that stays when it is killed."""

    def __init__(self, folder: Path, model: Path, peer: str, *options):
        self.port, self.folder = free_port(), folder
        self.spool = folder / "spool"
        folder.mkdir(parents=True, exist_ok=True)
        self.command = [
            sys.executable, "-m", "clip_koa", "listen", "--model", model, "--send_to", peer, "--spool", self.spool,
            "--port", str(self.port), *options,
        ]  # fmt: skip
        self.process = None

    def start(self) -> None:
        """Starts it, and waits until it listens."""
        log = self.folder / "log"
        with log.open("w") as file:
            self.process = subprocess.Popen(
                list(map(str, self.command)), cwd=ROOT, stdout=file, stderr=file,
                env={**os.environ, "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        for _ in range(900):
            if "listens at" in log.read_text():
                return
            assert self.process.poll() is None, log.read_text()
            time.sleep(0.1)
        raise AssertionError(log.read_text())

    def kill(self) -> None:
        """As `kill -9`."""
        self.process.kill()
        self.process.wait(30)

    def stop(self) -> None:
        """As Ctrl+C."""
        if self.process and self.process.poll() is None:
            self.process.terminate()
            assert self.process.wait(60) == 0, self.log

    def peak(self) -> int:
        """The most memory that this process has had, in bytes."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return 1024 * int(next(line.split()[1] for line in lines if line.startswith("VmHWM")))

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text()

    def status(self) -> dict:
        return json.loads((self.spool / "status.json").read_text())

    def wait(self, seconds: float = 120, **expected) -> dict:
        """The status once it holds what is expected."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            status = self.status()
            if all(status[name] == value for name, value in expected.items()):
                return status
            time.sleep(0.2)
        raise AssertionError((self.status(), self.log))


def send(port: int, *files, title: str = "KOA", caller: str = "MODALITY", options=()) -> int:
    """Sends as a modality does, by dcmtk's storescu; its exit status."""
    command = ["storescu", *options, "-aet", caller, "-aec", title, "127.0.0.1", str(port), *map(str, files)]
    return subprocess.run(command, capture_output=True, timeout=120).returncode


@contextmanager
def running(*things):
    """Starts an archive or a listener, and stops it at the end."""
    try:
        for thing in things:
            thing.start()
        yield
    finally:
        for thing in reversed(things):
            thing.stop()
