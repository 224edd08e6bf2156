"""From a configuration to a run that is ready to be trained, at its first step or where a checkpoint left it."""

from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, broadcast_object_list, set_seed
from datasets import DatasetDict

from clip_koa.data.augmentation import Augmentation
from clip_koa.data.corpus import load_corpus
from clip_koa.data.loader import XrayDataset, build_loader, sample_images
from clip_koa.data.sampling import EpochSampler
from clip_koa.data.soft_labels import read_soft_labels
from clip_koa.evaluation.heads import Predictions
from clip_koa.grading.precision import bf16_is_fast
from clip_koa.training.averaging import WeightAverage
from clip_koa.training.checkpoints import TrainState, find_checkpoint, list_checkpoints, restore_previous
from clip_koa.training.cpu_kernels import choose_kernels
from clip_koa.training.lora import add_lora
from clip_koa.training.optimisation import build_optimizer, build_schedule, freeze_lower_blocks
from clip_koa.training.recording import Recorder, differences_from
from clip_koa.training.regularisation import DropPath, PatchDropout
from clip_koa.training.run_config import RunConfig, RunConfigError
from clip_koa.training.starting_points import StartingPoint, drawn_size, load_starting_point
from modeling_clip_koa import PROMPT_SETS

_SAMPLE_IMAGES = 64


@dataclass
class Run:
    """Everything a training run consists of, prepared by the accelerator."""

    config: RunConfig
    accelerator: Accelerator
    start: StartingPoint
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    train_loader: torch.utils.data.DataLoader
    validation_loader: torch.utils.data.DataLoader
    augmentation: Augmentation
    drop_path: DropPath
    patch_dropout: PatchDropout
    average: WeightAverage
    state: TrainState
    recorder: Recorder
    train_files: list[str]
    total_steps: int
    of_best: Predictions | None = None  # of the validation split, where best/ is known to hold what gave them

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.run.output_dir)

    @property
    def finished(self) -> bool:
        """Whether the last step is done."""
        return self.state.epoch >= self.config.optimisation.epochs or self.state.step >= self.total_steps


def build_accelerator(config: RunConfig) -> Accelerator:
    """The accelerator of a run. Batches of the loader are split over processes, so `batch_size` stays global."""
    precision = config.compute.mixed_precision
    if precision == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        precision = "bf16" if bf16_is_fast(device) else "no"
    folder = config.run.output_dir
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=config.compute.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        step_scheduler_with_optimizer=False,
        log_with=list(config.trackers),
        project_config=ProjectConfiguration(folder, logging_dir=str(Path(folder) / "tensorboard")),
    )


def load_run_corpus(config: RunConfig, accelerator: Accelerator) -> DatasetDict:
    """The X-rays that a run names.

    Raises:
        CorpusError: no corpus, a damaged one, or one without train and validation.
    """
    size = drawn_size(config.model.start)
    return load_corpus(config.data.corpus, accelerator, seed=config.run.seed, drawn_size=size)


def prepare_run(config: RunConfig, corpus: DatasetDict, accelerator: Accelerator) -> Run:
    """Builds model, loaders, optimizer and schedule, and restores a checkpoint where `resume` names one.

    Args:
        corpus: splits `train` and `validation` of the `KneeXray` builder.

    Raises:
        RunConfigError: a batch that processes can't share, a train split smaller than it, an output folder that holds
            another run, or a resume that changes what is learned.
        SoftLabelsError: soft labels that are none, or that do not hold the train split.
    """
    _check(config, len(corpus["train"]), accelerator)
    seed, optimisation = config.run.seed, config.optimisation
    set_seed(seed)
    start = _build_start(config, corpus, accelerator)
    tower, processor = start.model.vision_model, start.image_processor
    drop_path = DropPath(tower.encoder.layers, config.model.drop_path, config.model.freeze_layers, seed)
    patch_dropout = PatchDropout(tower.embeddings, config.model.patch_dropout, seed)
    optimizer = build_optimizer(start.model, optimisation, start.new_parameters)
    train_loader, validation_loader = _build_loaders(config, corpus, start, accelerator)
    total_steps = len(corpus["train"]) // optimisation.batch_size * optimisation.epochs
    if optimisation.max_steps:
        total_steps = min(total_steps, optimisation.max_steps)
    schedule = build_schedule(optimizer, total_steps, optimisation.warmup)

    model, optimizer, train_loader, validation_loader = accelerator.prepare(
        start.model, optimizer, train_loader, validation_loader
    )
    average = WeightAverage(accelerator.unwrap_model(model), optimisation.ema_decay)
    state = TrainState()
    accelerator.register_for_checkpointing(schedule, state, average)
    augmentation = Augmentation(
        config.data.augmentation, processor.image_mean, processor.image_std, seed, config.data.random_flip
    )
    run = Run(
        config, accelerator, start, model, optimizer, schedule, train_loader, validation_loader, augmentation,
        drop_path, patch_dropout, average, state, Recorder(config, accelerator), list(corpus["train"]["file"]),
        total_steps,
    )  # fmt: skip
    _restore(run)
    run.recorder.start(corpus, state.step)
    return run


def _build_start(config: RunConfig, corpus: DatasetDict, accelerator: Accelerator) -> StartingPoint:
    with accelerator.main_process_first():
        start = load_starting_point(
            config.model.start,
            PROMPT_SETS[config.model.prompts],
            sample_images(corpus["train"], _SAMPLE_IMAGES),
            symmetry=config.losses.symmetry,
            consistency=config.losses.consistency,
            consistency_weight=config.losses.consistency_weight,
        )
    freeze_lower_blocks(start.model, config.model.freeze_layers)
    if config.model.lora_rank:
        add_lora(start.model, config.model.lora_rank)
    choose_kernels(start.model, accelerator.device)
    if config.model.lora_rank:
        # LoRA keeps more activations than it saves in gradients (docs/performance.md): they are computed twice.
        start.model.gradient_checkpointing_enable({"use_reentrant": False})
    return start


def _build_loaders(config: RunConfig, corpus: DatasetDict, start: StartingPoint, accelerator: Accelerator):
    soft_labels = None
    if config.data.soft_labels:
        soft_labels = read_soft_labels(config.data.soft_labels, corpus["train"], accelerator.is_local_main_process)
    train = XrayDataset(corpus["train"], start.image_processor, soft_labels)
    validation = XrayDataset(corpus["validation"], start.image_processor)
    whole, workers = config.optimisation.batch_size, config.compute.num_workers
    part = whole // config.compute.gradient_accumulation_steps
    # Whole batches only, so that no step weighs an X-ray more than another.
    epoch_size = len(train) // whole * whole
    sampler = EpochSampler(corpus["train"]["label"], epoch_size, config.data.class_balance, config.run.seed)
    return build_loader(train, part, workers, sampler), build_loader(validation, part, workers)


def _check(config: RunConfig, train_size: int, accelerator: Accelerator) -> None:
    folder, batch_size = Path(config.run.output_dir), config.optimisation.batch_size
    if (folder / "config.yaml").exists():
        if not config.resume:
            raise RunConfigError(f"{folder} holds a run: pass --resume latest to go on, or another --run.output_dir.")
        if differences := differences_from(folder, config):
            raise RunConfigError(f"resume may not change {'; '.join(differences)}. Start a new run for that.")
    if list_checkpoints(folder / "checkpoints"):
        for name in ("config.yaml", "run.json"):
            if not (folder / name).exists():
                raise RunConfigError(
                    f"{folder} holds checkpoints but no {name}, which says how they were trained: bring it back, or "
                    "pass another --run.output_dir."
                )
    parts = accelerator.num_processes * config.compute.gradient_accumulation_steps
    if batch_size % parts:
        raise RunConfigError(
            f"optimisation.batch_size={batch_size} cannot be shared by {parts} processes x accumulation."
        )
    if train_size < batch_size:
        raise RunConfigError(f"optimisation.batch_size={batch_size} is more than the train split's {train_size}.")


def _restore(run: Run) -> None:
    """Goes back to the checkpoint that `resume` names; all processes to the same."""
    accelerator = run.accelerator
    found = [None]
    if accelerator.is_main_process:
        restore_previous(run.folder / "best")
        found = [find_checkpoint(run.config.resume, run.folder / "checkpoints", accelerator.print)]
    broadcast_object_list(found)
    if found[0] is not None:
        accelerator.load_state(str(found[0]))
        accelerator.print(f"Going on from {found[0]} (epoch {run.state.epoch}, step {run.state.step}).")
