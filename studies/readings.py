"""What averaging over slight turns and scales of an X-ray gives, and what each of them says by itself.

    python -m studies.readings --data_dir FOLDER --output runs/readings.npz --precision bf16

Each X-ray of the validation split is graded as it is, turned by 4 degrees either way, and shown 5 % smaller and
larger, by OpenVINO. The logits of both views are kept in the file, person by person in an order drawn once, so that a
run that was stopped goes on, and other means of them cost nothing. The table compares means of several readings with
the X-ray as it is: the temperature is fitted anew for each, on other people, and intervals are over people
(docs/grading.md).
"""

import argparse
import io
import sys
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from tqdm.auto import tqdm

from clip_koa.calibration.temperatures import cross_fitted_temperatures
from clip_koa.data.loader import XrayDataset
from clip_koa.evaluation.heads import Predictions
from clip_koa.evaluation.loading import load_split, weights_digest
from clip_koa.evaluation.predictions import GradedSplit, pseudonyms
from clip_koa.files import write_file
from clip_koa.grading.backends import load_model
from clip_koa.interruption import work_is_kept
from clip_koa.locks import WriterLock
from clip_koa.released import released_model
from dataset_script.exit_status import main_of
from metrics.kl_grading.paired import compare_kl_gradings
from modeling_clip_koa.preprocessing_clip_koa import turn
from studies.members.networks import StudyError

# By how many degrees an X-ray is turned, and how large it is shown.
CHANGES = ((0.0, 1.0), (4.0, 1.0), (-4.0, 1.0), (0.0, 0.95), (0.0, 1.05))
# Which readings are averaged, by their places in `CHANGES`.
MEANS = {"turns of 4 degrees": (0, 1, 2), "scales of 5 %": (0, 3, 4), "all five": (0, 1, 2, 3, 4)}
FIGURES = {"log_loss": "log loss", "accuracy": "accuracy", "quadratic_weighted_kappa": "QWK"}
_BATCH, _KEPT_EVERY = 8, 5


def draw_order(people: list[str]) -> np.ndarray:
    """The places of X-rays (N,), person by person, in an order that the names alone decide."""
    names = np.unique(people)
    rank = dict(zip(np.random.default_rng(0).permutation(names).tolist(), range(len(names)), strict=True))
    return np.argsort([rank[person] for person in people], kind="stable")


def read_all(
    model, xrays: XrayDataset, order: np.ndarray, people: list[str], path: Path, about: str
) -> dict[str, np.ndarray]:
    """Grades what the file has not, and returns all: `logits` (N, R, 2, K) by reading and view, `labels`, `people`.

    Args:
        about: what the logits depend on; a file of another is refused.

    Raises:
        StudyError: there is such a file.
    """
    kept = np.zeros((0, len(CHANGES), 2, model.config.num_labels), np.float32)
    if path.is_file():
        with np.load(path) as file:
            kept, known = file["logits"], str(file["about"])
        if known != about:
            raise StudyError(f"{path} is of another model, precision or corpus: name another --output.")
    labels = np.array(xrays.split["label"])
    bar = tqdm(total=len(order), initial=len(kept), unit="X-ray")
    while len(kept) < len(order):
        for _ in range(_KEPT_EVERY):
            places = order[len(kept) : len(kept) + _BATCH]
            if not len(places):
                break
            pixel_values = torch.stack([xrays[int(place)]["pixel_values"] for place in places])
            read = [model.grade_pixels(turn(pixel_values, *change))[:2] for change in CHANGES]
            logits = np.stack([np.stack([view.numpy() for view in views], 1) for views in read], 1)
            kept = np.concatenate([kept, logits])
            bar.update(len(places))
        done = order[: len(kept)]
        content = io.BytesIO()
        np.savez(content, logits=kept, labels=labels[done], people=np.array(people)[done], about=about)
        write_file(path, content.getvalue())
    return dict(np.load(path))


def as_it_is(path: Path) -> GradedSplit:
    """The predictions of the X-rays as they are, out of a file of `read_all`; the linear head is not in it.

    Raises:
        StudyError: it is no such file.
    """
    try:
        with np.load(path) as file:
            logits, labels, people = torch.from_numpy(file["logits"][:, 0]).float(), file["labels"], file["people"]
    except (OSError, ValueError, KeyError) as error:
        raise StudyError(f"{path} is no file that studies.readings wrote: {error}") from error
    image, mirror = logits.unbind(1)
    numbers, none = torch.arange(len(labels)), torch.full_like(image, torch.nan)
    predictions = Predictions(numbers, torch.from_numpy(labels), image, mirror, none, none)
    return GradedSplit(predictions, [str(number) for number in numbers.tolist()], people.tolist())


def grade_mean(logits: np.ndarray, labels: np.ndarray, people: list[str]) -> dict[str, np.ndarray]:
    """Calibrated probabilities (N, K) of the mean over readings (N, R, 2, K): `both` views, the `image`, the `mirror`.

    Each tenth of the people has the temperature that the others give.
    """
    image, mirror = torch.from_numpy(logits).double().mean(1).unbind(1)
    views = {"both": (image + mirror) / 2, "image": image, "mirror": mirror}
    temperatures = cross_fitted_temperatures(views["both"], torch.from_numpy(labels), people)
    return {name: (view / temperatures).softmax(-1).numpy() for name, view in views.items()}


def describe(kept: dict[str, np.ndarray]) -> str:
    """The figures of the X-ray as it is, and of each mean with its difference, as a table in Markdown."""
    logits, labels, people = kept["logits"], kept["labels"], kept["people"].tolist()

    def compare(first, second, view):
        sides = [
            {
                "predictions": side[view].argmax(1).tolist(),
                "probabilities": side[view].tolist(),
                "flipped_predictions": side["mirror"].argmax(1).tolist(),
            }
            for side in (first, second)
        ]
        return compare_kl_gradings(*sides, labels.tolist(), people)

    def row(name, places):
        mean = grade_mean(logits[:, places], labels, people)
        found = dict.fromkeys(FIGURES, compare(base, mean, "both")) | {"flip_agreement": compare(base, mean, "image")}
        cells = []
        for figure, compared in found.items():
            bounds = compared["intervals"][figure]
            told = f" ({compared['difference'][figure]:+.3f}, {bounds[0]:+.3f} to {bounds[1]:+.3f})"
            cells.append(f"{compared['second'][figure]:.3f}{told if len(places) > 1 else ''}")
        return f"| {name} | {' | '.join(cells)} |"

    base = grade_mean(logits[:, :1], labels, people)
    lines = [f"| {len(labels)} X-rays | {' | '.join(FIGURES.values())} | flip agreement |", "|---|---|---|---|---|"]
    lines += [row("as it is", (0,)), *(row(name, places) for name, places in MEANS.items())]
    return "\n".join(lines)


def run(arguments: list[str] | None, prog: str) -> None:
    """Grades what is not graded yet, and prints the table."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=released_model(), help="model folder (default: the released one)")
    parser.add_argument("--data_dir", help="the corpus; default: the environment's KNEE_XRAY_DIR")
    parser.add_argument("--output", required=True, type=Path, help=".npz file of all logits")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "bf16"), help="default: fp32")
    options = parser.parse_args(arguments)
    with work_is_kept("Start it again to go on."), WriterLock(options.output):
        model, _ = load_model(options.model, "openvino", options.precision, None)
        split, digest = load_split(options.data_dir, "validation", Accelerator(cpu=True))
        people = pseudonyms(list(split["file"]), list(split["person_id"]))
        xrays = XrayDataset(split, model.image_processor)
        about = f"weights {weights_digest(options.model)}, {options.precision}, data {digest}, changes {CHANGES}"
        print(describe(read_all(model, xrays, draw_order(people), people, options.output, about)))


main = main_of("studies.readings", run)


if __name__ == "__main__":
    sys.exit(main())
