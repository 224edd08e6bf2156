"""Grade knee X-rays: for each, the KL grade and the probabilities of the image and of its mirror image.

    python predict.py --model runs/demo/best XRAY_OR_FOLDER...

The exit status is 0 where every X-ray was graded and 1 where one could not be read. Research only, no medical device.
"""

import argparse
import sys

from clip_koa.grading.grader import Grader, find_xrays
from clip_koa.memory import keep_freed_memory


def main(arguments: list[str] | None = None) -> int:
    """Prints a line for each X-ray and one for its mirror image; returns the exit status."""
    parser = argparse.ArgumentParser(description="Grade knee X-rays. Research only, no medical device.")
    parser.add_argument("--model", required=True, help="model folder, such as runs/demo/best, or Hub id")
    parser.add_argument("inputs", nargs="+", metavar="XRAY_OR_FOLDER", help="image files, or folders of them")
    parser.add_argument(
        "--level", type=float, default=0.9,
        help="how often the confidence set is to hold the true grade (default: 0.9; for calibrated models)",
    )  # fmt: skip
    options = parser.parse_args(arguments)
    keep_freed_memory()
    try:
        files = find_xrays(options.inputs)
        grader = Grader(options.model, options.level)
    except (FileNotFoundError, OSError, ValueError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2

    labels = [grader.model.config.id2label[grade] for grade in range(grader.model.config.num_labels)]
    width = max(len(str(file)) for file in files)
    print(
        f"{'file':{width}}  {'grade':12}  {f'set {options.level:.0%}':8}  {'view':6}  "
        + "  ".join(f"{label:>12}" for label in labels)
    )
    unread = 0
    for xray in grader.grade(files):
        if xray.error:
            unread += 1
            print(f"{xray.file:{width}}  not graded: {xray.error}")
            continue
        views = (("image", xray.image_probabilities), ("mirror", xray.mirror_probabilities))
        for view, probabilities in views:
            first = (xray.file, xray.name, _range(xray.confidence_set)) if view == "image" else ("", "", "")
            print(
                f"{first[0]:{width}}  {first[1]:12}  {first[2]:8}  {view:6}  "
                + "  ".join(f"{probability:12.3f}" for probability in probabilities)
            )
    if grader.threshold is None:
        print("No confidence sets: the model is not calibrated (calibrate.py does it).")
    print("The grade is read from both views averaged. Research only: not for diagnosis.")
    return 1 if unread else 0


def _range(grades: tuple[int, ...]) -> str:
    """Neighbouring grades in words: `2`, `2 to 3`, nothing for none."""
    return " to ".join(dict.fromkeys((str(grades[0]), str(grades[-1])))) if grades else ""


if __name__ == "__main__":
    sys.exit(main())
