"""Makes tests/data/dicom from a generated knee with Debian's dcmtk and libgdcm-tools, which know nothing of pydicom.

    apt-get install dcmtk libgdcm-tools
    python tests/data/make_dicom.py

The .pgm files are what dcmtk's own renderer makes of some of them; those in gray_scale are of the files that
tests/dicom_files.py writes. htj2k.dcm needs `pip install imagecodecs` too, whose encoder is OpenJPH; without it that
file stays as it is. No patient is in any of these files.
"""

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

sys.path[:0] = [str(Path(__file__).parents[2]), str(Path(__file__).parents[1])]
from dicom_files import CASES, write_dicom  # noqa: E402

from dataset_script.synthetic import draw_knee  # noqa: E402

OUTPUT = Path(__file__).parent / "dicom"
SIDE = 48
HEADER = """\
(0008,0016) UI =DigitalXRayImageStorageForPresentation
(0008,0018) UI [1.2.826.0.1.3680043.10.543.1]
(0008,0060) CS [{modality}]
(0010,0010) PN [GENERATED^KNEE]
(0010,0020) LO [GENERATED-7]
(0018,1164) DS [0.16\\0.16]
(0018,5101) CS [PA]
(0020,000d) UI [1.2.826.0.1.3680043.10.543.2]
(0020,000e) UI [1.2.826.0.1.3680043.10.543.3]
(0020,0062) CS [L]
(0028,0002) US 1
(0028,0004) CS [{photometric}]
{frames}(0028,0010) US {side}
(0028,0011) US {side}
(0028,0030) DS [0.2\\0.3]
(0028,0100) US 16
(0028,0101) US 12
(0028,0102) US 11
(0028,0103) US {signed}
"""
PIXELS = "(7fe0,0010) OW ={raw}\n"
WINDOW = "(0028,1050) DS [1500]\n(0028,1051) DS [2000]\n"
RESCALE = "(0028,1052) DS [-1000]\n(0028,1053) DS [2]\n"
# 256 entries of 12 bits from value 320 on: a curve. Values outside take the first and the last entry.
LUT = (
    "(0028,3010) SQ\n(fffe,e000) -\n(0028,3002) US 256\\320\\12\n(0028,3006) US {entries}\n"
    "(fffe,e00d) -\n(fffe,e0dd) -\n"
)


def run(*command) -> None:
    subprocess.run([str(word) for word in command], check=True, capture_output=True)


def build(name: str, values: np.ndarray, attributes: str = "", pixels: bool = True, **settings) -> Path:
    """Writes one file with dump2dcm; `values` (H, W) or (frames, H, W) of 12 bits."""
    settings = {"photometric": "MONOCHROME2", "modality": "DX", "signed": 0, "frames": "", **settings}
    with tempfile.TemporaryDirectory() as folder:
        raw, dump = Path(folder, "raw"), Path(folder, "dump")
        raw.write_bytes(values.astype("<i2" if settings["signed"] else "<u2").tobytes())
        text = HEADER.format(side=SIDE, **settings) + attributes + (PIXELS.format(raw=raw) if pixels else "")
        dump.write_text(text)
        run("dump2dcm", "+te", dump, OUTPUT / f"{name}.dcm")
    return OUTPUT / f"{name}.dcm"


def main() -> None:
    OUTPUT.mkdir(exist_ok=True)
    knee = draw_knee(3, "L", 0, image_size=SIDE)
    deep = np.asarray(knee).astype(int) * 8 + 300  # 12 bits
    window = build("window", deep, WINDOW)
    build("monochrome1", 4095 - deep, "(0028,1050) DS [2596]\n(0028,1051) DS [2000]\n", photometric="MONOCHROME1")
    build("rescale", deep, "(0028,1050) DS [2000]\n(0028,1051) DS [4000]\n" + RESCALE)
    build("sigmoid", deep, WINDOW + "(0028,1056) CS [SIGMOID]\n")
    build("signed", deep - 2048, "(0028,1050) DS [-548]\n(0028,1051) DS [2000]\n", signed=1)
    curve = "\\".join(str(int(4095 * (index / 255) ** 0.5)) for index in range(256))
    build("voi_lut", np.asarray(knee).astype(int) + 300, LUT.format(entries=curve))
    build("no_window", deep)
    padded = deep.copy()
    padded[:, :6] = 4095
    build("padding", padded, "(0028,0120) US 4095\n")
    build("two_frames", np.stack([deep, deep[::-1]]), WINDOW, frames="(0028,0008) IS [2]\n")
    build("no_pixels", deep, pixels=False)
    build("magnetic_resonance", deep, modality="MR")
    build("window_beside_the_values", deep, "(0028,1050) DS [60000]\n(0028,1051) DS [10]\n")

    run("dcmcjpeg", "+e1", window, OUTPUT / "jpeg_lossless_sv1.dcm")
    run("dcmcjpeg", "+el", window, OUTPUT / "jpeg_lossless.dcm")
    run("dcmcjpeg", "+ee", "+q", 95, window, OUTPUT / "jpeg_extended.dcm")
    run("dcmcjpeg", "+es", "+q", 95, window, OUTPUT / "jpeg_spectral_selection.dcm")
    run("dcmcjpeg", "+ep", "+q", 95, window, OUTPUT / "jpeg_progressive.dcm")
    run("dcmcjpls", window, OUTPUT / "jpeg_ls.dcm")
    run("dcmcjpls", "+en", window, OUTPUT / "jpeg_ls_near.dcm")
    run("dcmcrle", window, OUTPUT / "rle.dcm")
    run("gdcmconv", "--j2k", window, OUTPUT / "jpeg_2000.dcm")
    run("dcmconv", "+td", window, OUTPUT / "deflated.dcm")
    run("dcmconv", "+tb", window, OUTPUT / "big_endian.dcm")
    run("dcmconv", "+ti", window, OUTPUT / "implicit.dcm")
    with tempfile.TemporaryDirectory() as folder:
        knee.save(Path(folder, "knee.bmp"))
        knee.save(Path(folder, "knee.jpg"), quality=95)
        run("img2dcm", "-i", "BMP", Path(folder, "knee.bmp"), OUTPUT / "secondary_capture.dcm")
        run("img2dcm", Path(folder, "knee.jpg"), OUTPUT / "jpeg_baseline.dcm")
        knee.convert("RGB").save(Path(folder, "colour.bmp"))
        Image.merge("RGB", [knee] * 3).save(Path(folder, "colour.jpg"), quality=95)
        run("img2dcm", "-i", "BMP", Path(folder, "colour.bmp"), OUTPUT / "rgb.dcm")
        run("img2dcm", Path(folder, "colour.jpg"), OUTPUT / "ybr_jpeg.dcm")
        run("dcmquant", OUTPUT / "rgb.dcm", OUTPUT / "palette.dcm")
    for name, option in {"window": "+Wi", "monochrome1": "+Wi", "rescale": "+Wi", "voi_lut": "+Wl"}.items():
        run("dcm2pnm", "+op", option, 1, OUTPUT / f"{name}.dcm", OUTPUT / f"{name}.pgm")
    run("dcm2pnm", "+op", "+Wi", 1, "+Wfs", OUTPUT / "sigmoid.dcm", OUTPUT / "sigmoid.pgm")
    render_cases()
    encode_htj2k(deep)


def render_cases() -> None:
    folder = OUTPUT / "gray_scale"
    folder.mkdir(exist_ok=True)
    for name, (content, options) in CASES.items():
        with tempfile.NamedTemporaryFile(suffix=".dcm") as file:
            file.write(content)
            file.flush()
            run("dcm2pnm", "+op", *options, file.name, folder / f"{name}.pgm")


def encode_htj2k(deep: np.ndarray) -> None:
    try:
        import imagecodecs
    except ImportError:
        return
    frame = imagecodecs.htj2k_encode(deep.astype(np.uint16))
    content = write_dicom(
        deep.astype(np.uint16), "1.2.840.10008.1.2.4.201", frame, BitsStored=12, WindowCenter=1500, WindowWidth=2000
    )
    (OUTPUT / "htj2k.dcm").write_bytes(content)


if __name__ == "__main__":
    main()
