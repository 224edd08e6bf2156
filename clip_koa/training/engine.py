"""The training loop on Accelerate: corpus and starting point in, run folder out."""

import math
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, ProjectConfiguration, broadcast_object_list, set_seed
from datasets import DatasetDict
from tqdm.auto import tqdm

from clip_koa.data.augmentation import Augmentation
from clip_koa.data.loader import XrayDataset, build_loader, sample_images
from clip_koa.data.sampling import EpochSampler
from clip_koa.evaluation.heads import CHOOSABLE_METRICS, NEWEST, Predictions, describe_results, evaluate, predict
from clip_koa.evaluation.predictions import PredictionFile, write_predictions
from clip_koa.files import WriteError
from clip_koa.training.averaging import WeightAverage
from clip_koa.training.checkpoints import (
    TrainState,
    find_checkpoint,
    list_checkpoints,
    restore_previous,
    save_checkpoint,
    save_model_folder,
)
from clip_koa.training.cpu_kernels import choose_kernels
from clip_koa.training.lora import add_lora
from clip_koa.training.mirror_symmetry import make_mirror_symmetric
from clip_koa.training.optimisation import build_optimizer, build_schedule, freeze_lower_blocks
from clip_koa.training.preemption import Preempted, StopRequest
from clip_koa.training.recording import Recorder, tracker_names
from clip_koa.training.regularisation import DropPath, PatchDropout
from clip_koa.training.run_config import RunConfig, RunConfigError, read_run_config
from clip_koa.training.starting_points import StartingPoint, load_starting_point
from modeling_clip_koa import PROMPT_SETS, CLIPKOAForImageClassification, bf16_is_fast, soft_labels

LOSS_PARTS = ("loss", "symmetry_loss", "consistency_loss", "classifier_loss")
_SAMPLE_IMAGES = 64
_FILES_NAMED = 4


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

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output_dir)

    @property
    def finished(self) -> bool:
        """Whether the last step is done, or no better evaluation came for `patience` epochs."""
        config, state = self.config, self.state
        impatient = config.patience and state.epoch - state.best_epoch >= config.patience
        return impatient or state.epoch >= config.epochs or state.step >= self.total_steps

    def is_within(self, share: float) -> bool:
        """Whether the next step is one of the first `share` of them."""
        return self.state.step < share * self.total_steps


def build_accelerator(config: RunConfig) -> Accelerator:
    """The accelerator of a run. Batches of the loader are split over processes, so `batch_size` stays global."""
    precision = config.mixed_precision
    if precision == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
        precision = "bf16" if bf16_is_fast(device) else "no"
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        step_scheduler_with_optimizer=False,
        log_with=tracker_names(config),
        project_config=ProjectConfiguration(
            config.output_dir, logging_dir=str(Path(config.output_dir) / "tensorboard")
        ),
    )


def prepare_run(config: RunConfig, corpus: DatasetDict, accelerator: Accelerator) -> Run:
    """Builds model, loaders, optimizer and schedule, and restores a checkpoint where `resume` names one.

    Args:
        corpus: splits `train` and `validation` of the `KneeXray` builder.

    Raises:
        RunConfigError: a batch that processes can't share, a train split smaller than it, an output folder that holds
            another run, or a resume that changes what is learned.
    """
    _check(config, corpus, accelerator)
    set_seed(config.seed)
    start = _build_start(config, corpus, accelerator)
    tower = start.model.vision_model
    drop_path = DropPath(tower.encoder.layers, config.drop_path, config.freeze_layers, config.seed)
    patch_dropout = PatchDropout(tower.embeddings, config.patch_dropout, config.seed)
    optimizer = build_optimizer(start.model, config, start.new_parameters)
    train_loader, validation_loader = _build_loaders(config, corpus, start)
    total_steps = len(corpus["train"]) // config.batch_size * config.epochs
    if config.max_steps:
        total_steps = min(total_steps, config.max_steps)
    schedule = build_schedule(optimizer, total_steps, config.warmup)

    model, optimizer, train_loader, validation_loader = accelerator.prepare(
        start.model, optimizer, train_loader, validation_loader
    )
    average = WeightAverage(accelerator.unwrap_model(model), config.ema_decay)
    state = TrainState()
    accelerator.register_for_checkpointing(schedule, state, average)
    processor = start.image_processor
    run = Run(
        config, accelerator, start, model, optimizer, schedule, train_loader, validation_loader,
        Augmentation(
            config.augmentation, processor.image_mean, processor.image_std, config.seed, config.random_flip
        ),
        drop_path, patch_dropout, average, state, Recorder(config, accelerator), list(corpus["train"]["file"]),
        total_steps,
    )  # fmt: skip
    _restore(run)
    run.recorder.start(corpus, state.step)
    return run


def _build_start(config: RunConfig, corpus: DatasetDict, accelerator: Accelerator) -> StartingPoint:
    with accelerator.main_process_first():
        start = load_starting_point(
            config.model,
            PROMPT_SETS[config.prompts],
            sample_images(corpus["train"], _SAMPLE_IMAGES),
            config.image_size,
            symmetry=config.symmetry,
            consistency=config.consistency,
            consistency_weight=config.consistency_weight,
            classifier_weight=config.classifier_weight,
        )
    freeze_lower_blocks(start.model, config.freeze_layers)
    if config.mirror_symmetric:
        make_mirror_symmetric(start.model)
    if config.lora_rank:
        add_lora(start.model, config.lora_rank)
    choose_kernels(start.model, accelerator.device)
    if config.gradient_checkpointing:
        start.model.gradient_checkpointing_enable({"use_reentrant": False})
    return start


def _build_loaders(config: RunConfig, corpus: DatasetDict, start: StartingPoint):
    train, validation = (XrayDataset(corpus[split], start.image_processor) for split in ("train", "validation"))
    batch_size = config.batch_size // config.gradient_accumulation_steps
    # Whole batches only, so that no step weighs an X-ray more than another.
    epoch_size = len(train) // config.batch_size * config.batch_size
    sampler = EpochSampler(corpus["train"]["label"], epoch_size, config.class_balance, config.seed)
    return (
        build_loader(train, batch_size, config.num_workers, sampler),
        build_loader(validation, batch_size, config.num_workers),
    )


def _check(config: RunConfig, corpus: DatasetDict, accelerator: Accelerator) -> None:
    folder = Path(config.output_dir)
    if (folder / "config.yaml").exists():
        if not config.resume:
            raise RunConfigError(f"{folder} holds a run: pass --resume latest to go on, or another --output_dir.")
        if differences := config.differences(read_run_config(folder / "config.yaml")):
            raise RunConfigError(f"resume may not change {'; '.join(differences)}. Start a new run for that.")
    if config.best_metric not in CHOOSABLE_METRICS:
        raise RunConfigError(f"best_metric={config.best_metric!r}: use one of {', '.join(CHOOSABLE_METRICS)}.")
    if config.evaluate_test and "test" not in corpus:
        raise RunConfigError(f"evaluate_test: the corpus has no test split; it has {', '.join(corpus)}.")
    parts = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch_size % parts:
        raise RunConfigError(f"batch_size={config.batch_size} cannot be shared by {parts} processes x accumulation.")
    if len(corpus["train"]) < config.batch_size:
        raise RunConfigError(f"batch_size={config.batch_size} is more than the train split's {len(corpus['train'])}.")


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


def train(run: Run) -> None:
    """Trains to the last epoch or step; evaluates, keeps the best and checkpoints after each epoch.

    Raises:
        Preempted: SIGTERM or SIGUSR1 came; a checkpoint is saved.
        FloatingPointError: a loss or gradient is not finite; the checkpoints are from before.
        SaveError: a checkpoint could not be written.
    """
    state = run.state
    stop = StopRequest()
    _tell(run, "running")
    try:
        with tqdm(
            total=run.total_steps,
            initial=state.step,
            desc="training",
            unit="step",
            disable=not run.accelerator.is_local_main_process,
        ) as bar:
            while not run.finished:
                _train_epoch(run, bar, stop)
                if state.batches >= len(run.train_loader):
                    state.epoch, state.batches = state.epoch + 1, 0
                if state.epoch % run.config.evaluation_epochs == 0 or run.finished:
                    _validate(run, bar)
                _save(run)
    except (Preempted, KeyboardInterrupt):
        _tell(run, "interrupted")
        raise
    except Exception as error:
        _tell(run, "failed", reason=str(error) or type(error).__name__, files=getattr(error, "files", []))
        raise


def _tell(run: Run, state: str, **values) -> None:
    """Writes status.json; a full disk must not hide what the run ends with."""
    with suppress(WriteError):
        run.recorder.status(state, step=run.state.step, total_steps=run.total_steps, **values)


def _save(run: Run) -> None:
    """Saves a checkpoint, unless the weights are beyond use."""
    for value in run.accelerator.unwrap_model(run.model).state_dict().values():
        if not value.isfinite().all():
            raise FloatingPointError(
                f"The weights are not finite after step {run.state.step}. Lower learning_rate. "
                f"The last good checkpoint: {_last_checkpoint(run)}."
            )
    save_checkpoint(run.accelerator, run.folder / "checkpoints", run.state, run.config.keep_checkpoints)


def _train_epoch(run: Run, bar: tqdm, stop: StopRequest) -> None:
    config, state, accelerator = run.config, run.state, run.accelerator
    # A loader that skips must be told the epoch too, or it shuffles anew.
    run.train_loader.set_epoch(state.epoch)
    loader = run.train_loader
    if state.batches:
        loader = skip_first_batches(run.train_loader, state.batches)
        loader.set_epoch(state.epoch)
    run.model.train()
    window, indices = _Window(), []
    for batch in loader:
        indices.append(batch["index"])
        with accelerator.accumulate(run.model):
            output = _forward(run, batch)
            accelerator.backward(output.loss)
            window.add(output, len(batch["labels"]) * accelerator.num_processes)
            if accelerator.sync_gradients:
                _clip(run, output.loss, indices)
                indices = []
            run.optimizer.step()
            if accelerator.sync_gradients:
                run.schedule.step()
            run.optimizer.zero_grad()
        state.batches += 1
        if not accelerator.sync_gradients:
            continue
        run.average.update()
        state.step += 1
        bar.update()
        if state.step % config.log_steps == 0 or state.step == run.total_steps:
            _log_training(run, window, bar)
            window = _Window()
        if state.step == run.total_steps or state.batches == len(run.train_loader):
            return
        if stop.agreed(accelerator):
            _save(run)
            raise Preempted(f"Stopped at step {state.step} as {stop.received or 'another process'} asked.")
        if config.checkpoint_steps and state.step % config.checkpoint_steps == 0:
            _save(run)


def _forward(run: Run, batch: dict):
    config, epoch = run.config, run.state.epoch
    pixel_values = run.augmentation(batch["pixel_values"], batch["index"], epoch)
    run.drop_path.draw(batch["index"], epoch)
    if run.is_within(config.patch_dropout_until):
        run.patch_dropout.draw(batch["index"], epoch)
    else:
        run.patch_dropout.keep_all()
    labels = batch["labels"]
    if config.label_smoothing or config.ordinal_smoothing:
        num_labels = run.start.model.config.num_labels
        labels = soft_labels(labels, num_labels, config.label_smoothing, config.ordinal_smoothing)
    with _views_of_step(run):
        return run.model(pixel_values, labels=labels)


@contextmanager
def _views_of_step(run: Run):
    """Until `one_view_until` of the steps the model computes the loss of the X-ray alone, then as its config says.

    A mirror-symmetric tower sees one view throughout: of both, symmetry loss would be twice the X-ray's cross-entropy
    and consistency loss 0.
    """
    model_config = run.start.model.config
    symmetry, consistency_weight = model_config.symmetry, model_config.consistency_weight
    if run.config.mirror_symmetric or run.is_within(run.config.one_view_until):
        model_config.symmetry, model_config.consistency_weight = False, 0.0
    try:
        yield
    finally:
        # Evaluation sees both views, and what is saved says how the run ends.
        model_config.symmetry, model_config.consistency_weight = symmetry, consistency_weight


def _clip(run: Run, loss: torch.Tensor, indices: list[torch.Tensor]) -> None:
    """Clips the gradients of a step, and stops the run where they are not finite, before they reach the weights."""
    norm = run.accelerator.clip_grad_norm_(run.model.parameters(), run.config.max_grad_norm or math.inf)
    # A scaler of fp16 leaves such steps out by itself and lowers its scale; the loss must be finite all the same.
    if math.isfinite(loss.item() if run.accelerator.scaler else float(norm)):
        return
    files = [run.train_files[index] for index in run.accelerator.gather(torch.cat(indices)).tolist()]
    named = ", ".join(files[:_FILES_NAMED]) + (f" and {len(files) - _FILES_NAMED} more" * (len(files) > _FILES_NAMED))
    error = FloatingPointError(
        f"The loss or its gradient is not finite at step {run.state.step + 1} (X-rays {named}: all in status.json). "
        f"Lower learning_rate. The last good checkpoint: {_last_checkpoint(run)}."
    )
    error.files = files
    raise error


def _last_checkpoint(run: Run) -> str:
    checkpoints = list_checkpoints(run.folder / "checkpoints")
    return str(checkpoints[-1]) if checkpoints else "none yet"


class _Window:
    """Sums of the losses and X-rays since the last log line."""

    def __init__(self):
        self.sums = None
        self.batches = self.images = 0
        self.started = time.perf_counter()

    def add(self, output, images: int) -> None:
        values = torch.stack([output[part].detach().float() for part in LOSS_PARTS])
        self.sums = values if self.sums is None else self.sums + values
        self.batches += 1
        self.images += images


def _log_training(run: Run, window: _Window, bar: tqdm) -> None:
    state = run.state
    means = run.accelerator.reduce(window.sums / window.batches, "mean").tolist()
    losses = dict(zip(LOSS_PARTS, means, strict=True))
    speed = window.images / (time.perf_counter() - window.started)
    bar.set_postfix(loss=f"{losses['loss']:.3f}", xrays_per_s=f"{speed:.1f}", best=_best(run))
    run.recorder.record(
        kind="train",
        step=state.step,
        epoch=round(state.epoch + state.batches / len(run.train_loader), 4),
        **losses,
        learning_rate=max(run.schedule.get_last_lr()),
        images_per_second=speed,
    )
    _tell(run, "running")


def _best(run: Run) -> str:
    value = run.state.best_value
    if value is None:
        return "none yet"
    return "the newest" if run.config.best_metric == NEWEST else f"{value:.3f}"


def _validate(run: Run, bar: tqdm) -> None:
    """Evaluates the validation split and keeps the model in best/ where it is the best so far."""
    state, accelerator = run.state, run.accelerator
    model = accelerator.unwrap_model(run.model)
    with run.average.applied():
        results = evaluate(_predict_split(run, run.model, run.validation_loader, "validation"), model.config)
        _record_evaluation(run, results, "validation", "last")
        bar.write(f"epoch {state.epoch}, step {state.step}:\n" + describe_results(results))
        name = run.config.best_metric
        value = state.step if name == NEWEST else _metric(results, name)
        if state.best_value is None or value > state.best_value:
            state.best_value, state.best_step, state.best_epoch = value, state.step, state.epoch
            if accelerator.is_main_process:
                save_model_folder(run.folder / "best", model, run.start.image_processor, run.start.tokenizer)
    accelerator.wait_for_everyone()


def evaluate_best(run: Run, corpus: DatasetDict) -> None:
    """Loads best/ from disk, evaluates it and writes its predictions under report/."""
    run.accelerator.free_memory()
    model = CLIPKOAForImageClassification.from_pretrained(run.folder / "best").to(run.accelerator.device)
    for split in ["validation", "test"] if run.config.evaluate_test else ["validation"]:
        dataset = XrayDataset(corpus[split], run.start.image_processor)
        loader = build_loader(dataset, run.config.batch_size, run.config.num_workers)
        # In fp32, as evaluate_checkpoint.py computes it.
        predictions = _predict_split(run, model, run.accelerator.prepare(loader), split, autocast=False)
        results = evaluate(predictions, model.config)
        _record_evaluation(run, results, split, "best")
        run.accelerator.print(f"best/ (step {run.state.best_step}) on {split}:\n" + describe_results(results))
        if run.accelerator.is_main_process:
            graded = PredictionFile.of_split(predictions, corpus[split])
            write_predictions(run.folder / "report" / f"predictions_{split}.jsonl", graded)
    run.recorder.status("finished", step=run.state.step, total_steps=run.total_steps, best_step=run.state.best_step)


def _predict_split(run: Run, model, loader, split: str, autocast: bool = True) -> Predictions:
    batches = tqdm(loader, desc=split, unit="batch", leave=False, disable=not run.accelerator.is_local_main_process)
    return predict(model, batches, run.accelerator, autocast=autocast)


def _metric(results: dict, name: str) -> float:
    """The value of `head.metric`, signed so that more is better."""
    head, metric = name.split(".")
    value = results[head][metric]
    return -value if metric == "mae" else value


def _record_evaluation(run: Run, results: dict, split: str, checkpoint: str) -> None:
    step = run.state.best_step if checkpoint == "best" else run.state.step
    run.recorder.record(
        kind="evaluation", split=split, checkpoint=checkpoint, step=step, epoch=run.state.epoch, **results
    )
