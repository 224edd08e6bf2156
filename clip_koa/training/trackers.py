"""Where a run's numbers go besides metrics.jsonl: files of TensorBoard and of Trackio, each in the run's folder."""

import os
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from accelerate import Accelerator
from PIL import Image

from clip_koa.training.config_fields import RunConfigError

TRACKERS = ("tensorboard", "trackio")
# Set by whoever sends Trackio's records to another machine: numbers then go there, and pictures of people do not.
_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL")


def check_trackers(text: str) -> tuple[str, ...]:
    """The trackers that a text such as "tensorboard,trackio" names.

    Raises:
        RunConfigError: a name that is none.
        ImportError: one that is not installed.
    """
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",")))
    if unknown := [name for name in names if name not in TRACKERS]:
        raise RunConfigError(f"trackers={unknown[0]!r}: it must be {' or '.join(TRACKERS)}, or both with a comma.")
    if "trackio" in names and find_spec("trackio") is None:
        raise ImportError("Trackio is missing: pip install 'clip-koa[trackio]'.", name="trackio")
    return names


def open_trackers(accelerator: Accelerator, names: Sequence[str], folder: Path, values: dict, step: int) -> None:
    """Opens a run's trackers, at `step` of a resumed run.

    Trackio keeps its records in the run's `trackio/`, unless the environment's TRACKIO_DIR names another folder.

    Args:
        names: of `TRACKERS`.
        folder: of the run.
        values: of its fields.
    """
    options = {"tensorboard": {"purge_step": step + 1}}
    if "trackio" in names:
        if not os.environ.get("TRACKIO_DIR"):  # Trackio reads it when it is imported
            os.environ["TRACKIO_DIR"] = str((folder / "trackio").resolve())
        # A resumed run goes on in its own curve; steps after its checkpoint are then drawn twice.
        options["trackio"] = {
            "name": folder.resolve().name, "resume": "allow", "embed": False, "auto_log_gpu": False,
            "auto_log_cpu": False,
        }  # fmt: skip
    accelerator.init_trackers("clip_koa", config=values, init_kwargs=options)


def log_pictures(accelerator: Accelerator, title: str, shown: Sequence[tuple[Image.Image, str]], step: int) -> None:
    """Shows pictures with captions in Trackio's dashboard, where a run has it and it stays on this machine.

    Args:
        title: what they are shown under.
        shown: pictures and their captions.
        step: of the run.
    """
    sent_away = any(os.environ.get(name) for name in _ELSEWHERE)
    for tracker in accelerator.trackers:
        if tracker.name == "trackio" and accelerator.is_main_process and shown and not sent_away:
            import trackio

            pictures = {
                f"{title}/{place:02d}": trackio.Image(image, caption=caption)
                for place, (image, caption) in enumerate(shown, start=1)
            }
            tracker.log(pictures, step=step)
