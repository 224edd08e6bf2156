"""What an evaluation starts from: a checkpoint, and a split of the corpus."""

from pathlib import Path

from datasets import Dataset
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor

from clip_koa.files import file_digest
from dataset_script.knee_xray import CorpusError, KneeXray
from dataset_script.layouts import SPLIT_FOLDERS
from modeling_clip_koa import GRADE_LABELS, CLIPKOAForImageClassification


class CheckpointError(ValueError):
    """A checkpoint that cannot be evaluated; the message names it and says what would be right."""


def load_checkpoint(name: str) -> tuple[CLIPKOAForImageClassification, BaseImageProcessor]:
    """A model in evaluation mode and the image processor saved beside it.

    Args:
        name: model folder or Hub id.

    Raises:
        CheckpointError: no such checkpoint, a damaged one, or one that does not grade 0 to 4.
    """
    try:
        model = CLIPKOAForImageClassification.from_pretrained(name).eval()
        image_processor = AutoImageProcessor.from_pretrained(name)
    except (OSError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"--model {name} cannot be loaded: give a model folder, such as runs/demo/best, or a Hub id.\n"
            f"{reason[:300]}"
        ) from error
    if model.config.num_labels != len(GRADE_LABELS):
        raise CheckpointError(
            f"--model {name} has {model.config.num_labels} labels: it must grade 0 to {len(GRADE_LABELS) - 1}."
        )
    return model, image_processor


def weights_digest(name: str) -> str:
    """SHA-256 of a model folder's weights, which tells what an evaluation is of; empty for a Hub id."""
    weights = Path(name) / "model.safetensors"
    return file_digest(weights) if weights.is_file() else ""


def split_name(name: str) -> str:
    """The corpus's own name of a split that may be named by its folder, as val."""
    return next((split for split, folders in SPLIT_FOLDERS.items() if name in folders), name)


def load_split(data_dir: str | None, split: str, accelerator) -> tuple[Dataset, str]:
    """A split of the corpus and the corpus's digest; the main process builds it first for the others to find.

    Raises:
        CorpusError: no corpus, a damaged one, or one without the split.
    """
    with accelerator.main_process_first():
        builder = KneeXray("folder", data_dir=data_dir or None)
        builder.download_and_prepare()
        corpus = builder.as_dataset()
    if split not in corpus:
        raise CorpusError(f"--split {split}: {builder.config.data_dir} has {', '.join(corpus)}.")
    return corpus[split], builder.manifest_digest
