"""What an evaluation starts from: a checkpoint, and a split of the corpus."""

from pathlib import Path

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from clip_koa.files import file_digest
from clip_koa.grading.model_loading import CheckpointError, load_checkpoint, readable
from dataset_script.knee_xray import CorpusError, KneeXray
from dataset_script.layouts import SPLIT_FOLDERS
from modeling_clip_koa import CLIPKOAForImageClassification

__all__ = ["CheckpointError", "load_checkpoint", "load_split", "load_tokenizer", "split_name", "weights_digest"]


def load_tokenizer(name: str, model: CLIPKOAForImageClassification) -> PreTrainedTokenizerBase:
    """The tokenizer saved beside a checkpoint, for a folder that the model is saved to.

    Args:
        name: model folder or Hub id.
        model: loaded from there.

    Raises:
        CheckpointError: none, or one that does not give the tokens the checkpoint keeps of its prompts.
    """
    with readable(name, "its tokenizer"):
        tokenizer = AutoTokenizer.from_pretrained(name)
        tokens = tokenizer([text for texts in model.config.prompts for text in texts])["input_ids"]
    kept = model.grade_prompts.input_ids.tolist()
    # transformers 5 makes a tokenizer without words where there are no files of one.
    if not any(row[: len(ids)] == ids for row, ids in zip(kept, tokens, strict=True)):
        raise CheckpointError(f"{name}: its tokenizer is missing or another model's.")
    return tokenizer


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
