"""What a release may not hold, a test for each form, in every place of a release; and what only looks like it."""

import base64
import hashlib
import io
import json
import struct
import uuid
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, PngImagePlugin
from safetensors.numpy import save

from clip_koa.publishing import content_check
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.forms import FORMS, MACHINE, PERSON, SECRET, find_form, redact
from clip_koa.publishing.release_check import check_folder

_AB = "aB3dE6gH9jK2mN5pQ8sT1vW4yZ7bC0fG3iJ6"  # 36 letters and digits

SECRETS = [
    f"123456789:AA{_AB[:33]}", f"M{_AB[:24]}.{_AB[:6]}.{_AB[:27]}", "AC" + "0123456789abcdef" * 2,
    "0123456789abcdef" * 2 + "-us12", f"sq0csp-{_AB}", f"AKC{_AB}{_AB}",
    f"hf_{_AB[:34]}", f"api_org_{_AB[:34]}", f"ghp_{_AB}", f"gho_{_AB}", f"ghs_{_AB}",
    f"github_pat_11{_AB[:20]}_{_AB}", f"glpat-{_AB[:20]}", "AKIA" + "IOSFODNN7EXAMPLE", "ASIA" + "IOSFODNN7EXAMPLE",
    f"aws_secret_access_key = {_AB}/+ab", f"sk-{_AB}", f"sk-ant-api03-{_AB}", f"sk-proj-{_AB[:9]}_{_AB}",
    f"sk_live_{_AB[:24]}", f"AIza{_AB[:35]}", f"GOCSPX-{_AB[:28]}", f"ya29.{_AB}", f"xoxb-123456789012-{_AB[:24]}",
    "https://hooks.slack.com/services/" + "T00/B00/x", f"npm_{_AB}", f"pypi-AgEIcHlwaS5vcmc{_AB}", f"gsk_{_AB}",
    f"nvapi-{_AB}", "dapi" + "0123456789abcdef" * 2, f"SG.{_AB[:22]}.{_AB}{_AB[:7]}", f"AccountKey={_AB}{_AB}==",
    f"https://x.blob.core.windows.net/a?sv=2024&sig={_AB}%3D",
    f"https://b.s3.amazonaws.com/k?X-Amz-Signature={_AB}", f"eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.{_AB}",
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----", "-----BEGIN " + "PRIVATE KEY-----",
    "https://anna:geheim@example.org/x", "postgresql://:geheim@db/knees", f"curl -H Bearer {_AB}", f"Basic {_AB}==",
    "password = hunter2hunter2", "api_key: 0123456789ab",
]  # fmt: skip
MACHINES = [
    "/home/anna/run", "/data1/x", "see /scratch01/x", "see /ro" "ot/x", "(/tmp/x)", "path:/scratch/x",
    "/gpfs/project/x", "/lustre/x",
    "/Volumes/Disk/x", "/Users/anna", "/mnt/x", "--out=/home/anna", "/nfs/x", "/opt/x", "/private/var/x",
    "/some/unknown/folder", "/a1/knees.csv", "file:///home/anna/x", "file://localhost/x", "FILE:/x",
    "C:/Users/anna", r"C:\Users\anna", r"d:\data", r"C:\\Users\\anna", r"\\srv\share\x", r"\\\\srv\\share\\x",
    r"\\?\C:\x", "//srv/share/x", "~/runs/x", "~anna/runs", "smb://srv/share", "s3://bucket/knees",
    "gs://bucket/knees", "sftp://srv/x", "nfs://srv/x", "hdfs://srv/x", "anna@gpu7:/data/x", "anna@gpu7:runs",
    "anna@hospital.org", "anna.b+c@mail.hospital.co.uk", "host 10.1.2.3", "http://192.168.1.7:8000/x", "172.16.0.1",
    "%2Fhome%2Fanna", "file%3A%2F%2F%2Fx", "&#47;home&#47;anna", "\uff0fhome\uff0fanna",
]  # fmt: skip
PEOPLE = [
    "9001234", "train/2/9001234L.png, patient id_9001235", "9001234.png", "9001234_L", "9001234L", "9001234R",
    "9001234-r", "9001234_left", "id_9001235", "OAI9001234", "patient9001234", "L9001234", "x=9001234;",
    "(9001234)", "9001234,9001235", "9001234:", "9001234/V01", "a 9001234.", "900\u200b1234",
    "\uff19\uff10\uff10\uff11\uff12\uff13\uff14", "%39001234", "1234567L", "1234567_R.dcm", "20481_right",
    "patient 12345", "Patient ID: AB123456", "subject_00017", "person #10042", "MRN 12345678", "mrn=AB1234567",
    "Accession Number: 1234567", "id 123456", "born as patient no. 77123", "date of birth 1950-01-02",
    "DOB: 2.1.1950", "DOE^JANE", "doe^jane^^", "1.2.826.0.1.3680043.8.498.12345", "1.3.6.1.4.1.9328.50.4.1",
    "knee_20481.dcm", "scan0001.jpeg", "IM0001", "IM-00012", "DSC_0123", "train/3/x", r"val\\0\\x",
]  # fmt: skip

# What the project's own releases hold, or could.
HARMLESS = [
    "", "9001234.5", "0.9001234", "0.99001234", "-12.9001234", "9001234e-3", "9001234E5", "22056576", "9,001,234",
    "900123", "90012345", "9412345 parameters", "2024-01-31", "20240131", "1700000000", "12:30:00", "and/or",
    "24/7", "KL2/KL3", "w/o", "/dev/null", "/usr/bin/env python", "#!/bin/sh", "</b>", "a / b", "1/2",
    "https://doi.org/10.17632/56rmx5bjcr.1", "doi 10.5281/zenodo.9001234", "PMC9001234", "PMID: 9001234",
    "https://arxiv.org/abs/2504.19443", "arXiv 2203.05482",
    "https://huggingface.co/clip-koa/clip-koa-small/resolve/main/examples/kl0_left.png",
    "http://localhost:7860/x", "https://matplotlib.org/", "//", "anna/knees", "git@github.com:anna/knees",
    "Anna <anna@example.org>", "@torch.no_grad()", "model.safetensors", "figures/roc_validation.png", "knee.png",
    "0:validation", "x: y", "L: 2", "~5 %", "~ 12 h", "mask-rcnn-sk-learn-and-more-words",
    "task-specific-fine-tuning-of-the-tower", "hf_hub_download", "pad_token_id", "password",
    "token: str | None = None", "secret=None", "api_key = get_key()", "a basic understanding-of-radiographs",
    "sha256:a9001234bc0d1e2f", "0123456789ab", "9001234abcde", "3f9001234a5b6c7d8e9f", "1.2.840.10008.1.2.4.70",
    "5.23.0", "127.0.0.1", "nvidia-cufft==10.3.9.90", "10.17632", "x^2", "e^x", "10^-5", "KL^2", "train/validation",
    "test/0.5", "413 people, 826 X-rays", "person 1 and person 2", "patients 5778", "people: 413",
    "subject to change in 2025", "id 49407", r"\s+\d", r"\\p{L}+", "CC BY 4.0", "a <b> c", "line\nbreak",
    "KL0 none", "Knee X-ray, healthy: no osteophytes",
]  # fmt: skip


def _config(folder, text):
    (folder / "config.json").write_text(json.dumps({"id2label": {"0": ["nested", {"a": text}]}}))


def _key(folder, text):
    (folder / "processor_config.json").write_text(json.dumps({f"x {text} x": 1}))


def _twice(folder, text):
    """A reader of JSON keeps the last of two."""
    (folder / "metrics.json").write_text(f'{{"a": {json.dumps(text)}, "a": 1}}')


def _card(folder, text):
    (folder / "README.md").write_text(f"---\nlicense: mit\n---\n# Card\nSee {text} there.\n", encoding="utf-8")


def _front_matter(folder, text):
    letters = "".join(f"\\u{ord(letter):04x}" for letter in text)  # which a reader of YAML undoes
    (folder / "README.md").write_text(f'---\nlicense: mit\nx:\n- a: "{letters}"\n---\n# Card\n')


def _tokenizer(folder, text):
    (folder / "tokenizer.json").write_text(
        json.dumps({"model": {"vocab": {"a": 1}}, "added_tokens": [{"content": text}]})
    )


def _metadata(folder, text):
    (folder / "typicality.safetensors").write_bytes(save({"a": np.zeros(2)}, {"note": text}))


def _tensor(folder, text):
    (folder / "typicality.safetensors").write_bytes(save({f"a {text}": np.zeros(2)}))


PLACES = (_config, _key, _twice, _card, _front_matter, _tokenizer, _metadata, _tensor)
EXAMPLES = [
    (kind, text) for kind, texts in ((SECRET, SECRETS), (MACHINE, MACHINES), (PERSON, PEOPLE)) for text in texts
]


@pytest.mark.parametrize("kind, text", EXAMPLES, ids=[f"{kind}: {text[:24]}" for kind, text in EXAMPLES])
def test_each_form_is_refused_wherever_it_stands(tmp_path, kind, text):
    for place in PLACES:
        folder = tmp_path / place.__name__
        folder.mkdir()
        place(folder, text)
        with pytest.raises(ReleaseError) as refused:
            check_folder(folder)
        [file] = folder.iterdir()
        message = str(refused.value)
        assert message.startswith(f"{file.name} holds ") and "\n" not in message and len(message) < 250
        if kind == SECRET:
            assert text not in message and not any(text[at : at + 12] in message for at in range(len(text) - 12))


@pytest.mark.parametrize("text", HARMLESS, ids=lambda text: text[:24])
def test_what_looks_like_a_form_passes(tmp_path, text):
    for place in PLACES:
        if place in (_config, _key, _twice, _tokenizer) and ".png" in text:
            continue  # data name no pictures; cards do
        folder = tmp_path / place.__name__
        folder.mkdir()
        place(folder, text)
        check_folder(folder)


@given(
    st.integers(9_000_000, 9_999_999),
    st.sampled_from(["", "id_", "OAI", "x ", "train/2/", "(", "knee-", '"', "\n", "=", "#", "é", "../", "0 "]),
    st.sampled_from(["", "L", "_R", ".png", " ", ")", '"', ",", "\n", "/V00", "-1", "_left.dcm", "e", "L.", "..."]),
)
def test_a_persons_number_is_found_in_any_dress(number, before, after):
    assert find_form(f"{before}{number}{after}")


@given(st.lists(st.one_of(st.floats(), st.integers(-8_999_999, 8_999_999), st.integers(10**7)), max_size=20))
def test_numbers_that_are_measured_pass(numbers):
    assert find_form(json.dumps({"values": numbers})) is None


@given(st.binary(min_size=6, max_size=40), st.uuids())
def test_digests_pass(content, identifier):
    for algorithm in ("sha256", "sha1", "md5"):
        assert find_form(hashlib.new(algorithm, content).hexdigest()) is None
    assert find_form(str(identifier)) is None and isinstance(identifier, uuid.UUID)
    assert find_form(base64.b64encode(content[:20]).decode()) is None


@pytest.mark.parametrize("text", SECRETS, ids=lambda text: text[:12])
def test_secrets_are_kept_from_the_screen(text):
    told = redact(f"Error: {text}, tried twice", ["geheim"])
    assert text not in told and told.startswith("Error: ") and told.endswith("tried twice")


def test_every_form_has_an_example():
    for form in FORMS:
        assert any(form.pattern.search(text) for kind, text in EXAMPLES if kind == form.kind), form.pattern.pattern


def test_numbers_in_data_are_people_unless_they_count(tmp_path):
    (tmp_path / "metrics.json").write_text('{"num_parameters": 9412345, "total_bytes": 9412345, "seed": 9000000}')
    check_folder(tmp_path)
    for data in (
        {"hardest": [0, 9001234]},
        {"9001234": 1},
        {"person": "a"},
        {"a": {"Patient-Name": "x"}},
        {"files": ["x"]},
    ):
        (tmp_path / "metrics.json").write_text(json.dumps(data))
        with pytest.raises(ReleaseError, match=r"^metrics\.json (?:has|holds) "):
            check_folder(tmp_path)


def _png(**extra) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(buffer, "PNG", **extra)
    return buffer.getvalue()


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def _with(chunk: bytes) -> bytes:
    return _png()[:33] + chunk + _png()[33:]


def _with_text(keyword: str, text: str) -> bytes:
    info = PngImagePlugin.PngInfo()
    info.add_text(keyword, text)
    return _png(pnginfo=info)


def _exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x9C9D] = "anna"
    return exif


_HIDDEN = zlib.compress(b"".join(b"\0" + bytes(range(8 * y, 8 * y + 8)) for y in range(8)))
_HEAD, _TAIL = _png()[:33], _chunk(b"IEND", b"")
SPOILT = {
    "text": _with_text("Comment", "anna"),
    "text in another's name": _with_text("Software", "/home/anna/draw.py"),
    "compressed text": _with(_chunk(b"zTXt", b"a\0\0" + zlib.compress(b"anna"))),
    "EXIF": _png(exif=_exif()),
    "colour profile": _png(icc_profile=b"anna"),
    "time": _with(_chunk(b"tIME", bytes(7))),
    "a chunk of its own": _with(_chunk(b"anNa", b"x")),
    "bytes after the end": _png() + b"anna",
    "bytes after the pixels": _HEAD + _chunk(b"IDAT", _HIDDEN + b"anna") + _TAIL,
    "more rows than it says": _HEAD + _chunk(b"IDAT", zlib.compress(bytes(9 * 8) + b"anna")) + _TAIL,
    "cut off": _png()[:-20],
    "a wrong checksum": _png()[:-1] + b"\0",
    "a bomb": _chunk(b"IHDR", struct.pack(">IIBBBBB", 10**5, 10**5, 8, 0, 0, 0, 0)).join([_png()[:8], _png()[33:]]),
    "a JPEG": b"\xff\xd8\xff\xe0" + bytes(20),
    "nothing": b"",
}


@pytest.mark.parametrize("how", SPOILT)
def test_a_picture_holds_pixels_alone(tmp_path, how):
    (tmp_path / "examples").mkdir()
    picture = tmp_path / "examples" / "kl1_left.png"
    for content in (_png(), _HEAD + _chunk(b"IDAT", _HIDDEN) + _TAIL):
        picture.write_bytes(content)
        check_folder(tmp_path)
    picture.write_bytes(SPOILT[how])
    with pytest.raises(ReleaseError, match=r"^examples/kl1_left\.png [^\n]+$"):
        check_folder(tmp_path)


_TENSORS = save({"a": np.zeros(3)})
DAMAGED = {
    "config.json": [
        b"{", b'{"a": 1} x', b'{"a": NaN}', b"[" * 100_000, b'{"a": ' + b"9" * 5000 + b"}", b"\xff\xfe{\0}\0",
    ],
    "README.md": [
        "# Über".encode("utf-16"), b"\xff", b"a\0b", b"a\x1bb", b"---\na: [\n---\n", b"---\na: !!python/x y\n---\n",
    ],
    "model.safetensors": [
        b"", b"\x80\x04pickle", _TENSORS[:-1], _TENSORS + b"anna", (2**60).to_bytes(8, "little") + b"{}",
        (2).to_bytes(8, "little") + b"\xff\xff",
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    "name, content",
    [(name, content) for name in DAMAGED for content in DAMAGED[name]],
    ids=lambda part: str(part)[:20],
)
def test_what_is_damaged_or_hides_bytes_is_told_in_a_line(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ReleaseError, match=rf"^{name}[^\n]+$"):
        check_folder(tmp_path)


@pytest.mark.parametrize("name", ["figures/9001234L.png", "figures/a/roc_test.png", "examples/kl5_left.png", ".netrc"])
def test_files_of_other_names_have_no_place(tmp_path, name):
    (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / name).write_bytes(_png())
    with pytest.raises(ReleaseError, match="has no place in a release"):
        check_folder(tmp_path)


def test_what_is_private_is_found_across_the_parts_of_a_large_file(tmp_path, monkeypatch):
    monkeypatch.setattr(content_check, "_PART", 16)
    secret = "the-secret-of-this-session"
    for lead in range(24):
        weights = np.frombuffer(b"\1" * lead + secret.encode() + b"\1" * (38 - lead), np.uint8)
        (tmp_path / "model.safetensors").write_bytes(save({"a": weights}))
        check_folder(tmp_path)
        with pytest.raises(ReleaseError, match="^model.safetensors holds the token") as refused:
            check_folder(tmp_path, private={secret: "the token"})
        assert secret not in str(refused.value)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text('{"a": "the-secret-of-this\\u002dsession"}')
    with pytest.raises(ReleaseError, match="^config.json holds the token"):
        check_folder(tmp_path, private={secret: "the token"})
