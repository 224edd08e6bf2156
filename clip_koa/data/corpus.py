"""The corpus of a run: the X-rays it names, in any layout, or generated ones."""

from accelerate import Accelerator
from datasets import DatasetDict

from clip_koa.training.run_config import RunConfig
from clip_koa.training.starting_points import SMALL_CONFIGURATIONS
from dataset_script.knee_xray import CorpusError, KneeXray

NEEDED_SPLITS = ("train", "validation")


def load_corpus(config: RunConfig, accelerator: Accelerator) -> DatasetDict:
    """Builds the corpus on the main process first, so that the others find it in the cache.

    Raises:
        CorpusError: no corpus, a damaged one, or one without train and validation.
    """
    with accelerator.main_process_first():
        if config.synthetic_people:
            # Drawn at the size a small model reads; other models read 224 pixels.
            small = SMALL_CONFIGURATIONS.get(config.model)
            size = small["vision_config"]["image_size"] if small else 224
            builder = KneeXray("synthetic", people=config.synthetic_people, image_size=size, seed=config.seed)
        else:
            builder = KneeXray("folder", data_dir=config.data_dir)
        builder.download_and_prepare()
        corpus = builder.as_dataset()
    missing = [split for split in NEEDED_SPLITS if split not in corpus]
    if missing:
        raise CorpusError(
            f"{config.data_dir or 'KNEE_XRAY_DIR'} has no {missing[0]} split: training needs one. "
            "`python -m dataset_script.splitter` splits by person."
        )
    return corpus
