"""Export a checkpoint for ONNX Runtime: both views, calibration and softmax in one graph.

    python export_onnx.py runs/demo/best exported
    python export_onnx.py runs/demo/best exported-int8 --int8
    python predict.py --backend onnx --model exported XRAY_OR_FOLDER

The export is checked against the checkpoint before it is put in place. Research only, no medical device.
"""

import argparse
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Exports; returns the exit status."""
    parser = argparse.ArgumentParser(description="Export a CLIP-KOA checkpoint for ONNX Runtime.")
    parser.add_argument("checkpoint", type=Path, help="model folder, such as runs/demo/best")
    parser.add_argument("output", type=Path, help="folder to write; an earlier export there is replaced")
    parser.add_argument("--int8", action="store_true", help="matrix products in 8 bits: faster, not quite the same")
    options = parser.parse_args(arguments)
    try:
        from clip_koa.exporting.export import export
        from clip_koa.exporting.graph import ExportError
        from clip_koa.locks import WriterLock
    except ModuleNotFoundError as error:
        print(f"export_onnx.py needs {error.name}: pip install 'clip-koa[onnx]'.", file=sys.stderr)
        return 2
    if options.output.exists() and not (options.output / "model.onnx").is_file():
        parser.error(f"{options.output} is there and no export: name another folder.")
    try:
        with WriterLock(options.output):
            difference = export(options.checkpoint, options.output, options.int8)
    except (ExportError, OSError, ValueError) as error:
        print(f"export_onnx.py: {error}", file=sys.stderr)
        return 2
    size = (options.output / "model.onnx").stat().st_size / 2**20
    print(f"{options.output}: {size:.1f} MiB; probabilities differ by at most {difference:.1g} on drawn X-rays.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
