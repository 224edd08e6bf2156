"""From the corpus to batches: X-rays read by the one reader and prepared by the checkpoint's image processor."""

import torch
from datasets import Dataset as ArrowDataset
from datasets import Image
from torch.utils.data import DataLoader, Dataset
from transformers.image_processing_utils import BaseImageProcessor

from clip_koa.data.sampling import EpochSampler
from dataset_script.radiograph import read_stored_image
from modeling_clip_koa import XrayPreprocessor


class XrayDataset(Dataset):
    """The X-rays of one split, decoded on access.

    An item is `pixel_values` (3, H, W) fp32, normalised; `labels`, the grade, or with `soft_labels` (N, K) its row of
    them; `index`, its place in the split.
    """

    def __init__(
        self, split: ArrowDataset, image_processor: BaseImageProcessor, soft_labels: torch.Tensor | None = None
    ):
        self.split = split.cast_column("image", Image(decode=False))
        self.soft_labels = soft_labels
        self.preprocess = XrayPreprocessor(image_processor)

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> dict:
        row = self.split[index]
        image = read_stored_image(row["image"])
        labels = row["label"] if self.soft_labels is None else self.soft_labels[index]
        return {"pixel_values": self.preprocess([image])[0], "labels": labels, "index": index}


def sample_images(split: ArrowDataset, count: int) -> list:
    """`count` X-rays spread evenly over the split, as PIL images."""
    undecoded = split.cast_column("image", Image(decode=False))
    step = max(1, len(split) // count)
    return [read_stored_image(undecoded[index]["image"]) for index in range(0, len(split), step)][:count]


def build_loader(
    dataset: XrayDataset, batch_size: int, num_workers: int, sampler: EpochSampler | None = None
) -> DataLoader:
    """Batches of `batch_size` X-rays: those that the sampler draws, or all of them in order and the last one short."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=sampler,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        pin_memory=torch.cuda.is_available(),
    )
