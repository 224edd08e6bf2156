"""The training loop on Accelerate: corpus and starting point in, run folder out."""

import json
import math
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from accelerate import Accelerator, skip_first_batches
from accelerate.utils import DataLoaderConfiguration, set_seed
from datasets import DatasetDict
from tqdm.auto import tqdm

from clip_koa.grading.evaluation import CHOOSABLE_METRICS, HEADS, Predictions, evaluate, predict
from clip_koa.grading.predictions import PredictionFile, write_predictions
from clip_koa.training.augmentation import Augmentation
from clip_koa.training.checkpoints import TrainState, find_checkpoint, save_checkpoint, save_model_folder
from clip_koa.training.loader import XrayDataset, build_loader, sample_images
from clip_koa.training.optimisation import build_optimizer, build_schedule, freeze_lower_blocks
from clip_koa.training.run_config import RunConfig, RunConfigError
from clip_koa.training.starting_points import StartingPoint, load_starting_point
from modeling_clip_koa import PROMPT_SETS, CLIPKOAForImageClassification

LOG_STEPS = 10
LOSS_PARTS = ("loss", "symmetry_loss", "consistency_loss", "classifier_loss")
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
    state: TrainState
    total_steps: int

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.config.output_dir)


def build_accelerator(config: RunConfig) -> Accelerator:
    """The accelerator of a run. Batches of the loader are split over processes, so `batch_size` stays global."""
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if bf16_is_fast() else "no"
    return Accelerator(
        mixed_precision=precision,
        gradient_accumulation_steps=config.gradient_accumulation_steps,
        dataloader_config=DataLoaderConfiguration(split_batches=True, use_seedable_sampler=True),
        step_scheduler_with_optimizer=False,
    )


def bf16_is_fast() -> bool:
    """Whether this machine computes matrix products in bf16 with hardware of its own."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return (
        torch.backends.mps.is_available()
        or torch.cpu._is_avx512_bf16_supported()
        or torch.cpu._is_amx_tile_supported()
    )


def prepare_run(config: RunConfig, corpus: DatasetDict, accelerator: Accelerator) -> Run:
    """Builds model, loaders, optimizer and schedule, and restores a checkpoint where `resume` names one.

    Args:
        corpus: splits `train` and `validation` of the `KneeXray` builder.

    Raises:
        RunConfigError: a batch that processes can't share, a train split smaller than it, or an output folder that
            holds another run.
    """
    folder = Path(config.output_dir)
    _check(config, corpus, accelerator)
    set_seed(config.seed)
    with accelerator.main_process_first():
        start = load_starting_point(
            config.model,
            PROMPT_SETS[config.prompts],
            sample_images(corpus["train"], _SAMPLE_IMAGES),
            symmetry=config.symmetry,
            consistency=config.consistency,
            consistency_weight=config.consistency_weight,
            classifier_weight=config.classifier_weight,
        )
    freeze_lower_blocks(start.model, config.freeze_layers)
    optimizer = build_optimizer(start.model, config, start.new_parameters)

    def loader(split, train):
        dataset = XrayDataset(corpus[split], start.image_processor)
        batch_size = config.batch_size // config.gradient_accumulation_steps
        return build_loader(dataset, batch_size, train=train, num_workers=config.num_workers, seed=config.seed)

    train_loader, validation_loader = loader("train", True), loader("validation", False)
    steps_per_epoch = math.ceil(len(train_loader) / config.gradient_accumulation_steps)
    total_steps = steps_per_epoch * config.epochs
    if config.max_steps:
        total_steps = min(total_steps, config.max_steps)
    schedule = build_schedule(optimizer, total_steps, config.warmup)

    model, optimizer, train_loader, validation_loader = accelerator.prepare(
        start.model, optimizer, train_loader, validation_loader
    )
    state = TrainState()
    accelerator.register_for_checkpointing(schedule, state)
    processor = start.image_processor
    augmentation = Augmentation(config.augmentation, processor.image_mean, processor.image_std, config.seed)
    run = Run(
        config, accelerator, start, model, optimizer, schedule, train_loader, validation_loader, augmentation, state,
        total_steps,
    )  # fmt: skip
    checkpoint = find_checkpoint(config.resume, folder / "checkpoints")
    if checkpoint is not None:
        accelerator.load_state(str(checkpoint))
        accelerator.print(f"Going on from {checkpoint} (epoch {state.epoch}, step {state.step}).")
    if accelerator.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "config.yaml").write_text(config.to_yaml(), encoding="utf-8")
        _drop_records_after(folder / "metrics.jsonl", state.step)
    return run


def _check(config: RunConfig, corpus: DatasetDict, accelerator: Accelerator) -> None:
    folder = Path(config.output_dir)
    if (folder / "config.yaml").exists() and not config.resume:
        raise RunConfigError(f"{folder} holds a run: pass --resume latest to go on, or another --output_dir.")
    if config.best_metric not in CHOOSABLE_METRICS:
        raise RunConfigError(f"best_metric={config.best_metric!r}: use one of {', '.join(CHOOSABLE_METRICS)}.")
    if config.evaluate_test and "test" not in corpus:
        raise RunConfigError(f"evaluate_test: the corpus has no test split; it has {', '.join(corpus)}.")
    parts = accelerator.num_processes * config.gradient_accumulation_steps
    if config.batch_size % parts:
        raise RunConfigError(f"batch_size={config.batch_size} cannot be shared by {parts} processes x accumulation.")
    if len(corpus["train"]) < config.batch_size:
        raise RunConfigError(f"batch_size={config.batch_size} is more than the train split's {len(corpus['train'])}.")


def train(run: Run) -> None:
    """Trains to the last epoch or step; evaluates, keeps the best and checkpoints after each epoch."""
    state = run.state
    bar = tqdm(
        total=run.total_steps,
        initial=state.step,
        desc="training",
        unit="step",
        disable=not run.accelerator.is_local_main_process,
    )
    while state.epoch < run.config.epochs and state.step < run.total_steps:
        _train_epoch(run, bar)
        if state.batches >= len(run.train_loader):
            state.epoch, state.batches = state.epoch + 1, 0
        _validate(run, bar)
        save_checkpoint(run.accelerator, run.folder / "checkpoints", state)
    bar.close()


def _train_epoch(run: Run, bar: tqdm) -> None:
    config, state, accelerator = run.config, run.state, run.accelerator
    # A loader that skips must be told the epoch too, or it shuffles anew.
    run.train_loader.set_epoch(state.epoch)
    loader = run.train_loader
    if state.batches:
        loader = skip_first_batches(run.train_loader, state.batches)
        loader.set_epoch(state.epoch)
    run.model.train()
    window = _Window()
    for batch in loader:
        with accelerator.accumulate(run.model):
            pixel_values = run.augmentation(batch["pixel_values"], batch["index"], state.epoch)
            output = run.model(pixel_values, labels=batch["labels"])
            accelerator.backward(output.loss)
            window.add(output, len(pixel_values) * accelerator.num_processes)
            if accelerator.sync_gradients:
                accelerator.clip_grad_norm_(run.model.parameters(), config.max_grad_norm)
            run.optimizer.step()
            if accelerator.sync_gradients:
                run.schedule.step()
            run.optimizer.zero_grad()
        state.batches += 1
        if not accelerator.sync_gradients:
            continue
        state.step += 1
        bar.update()
        if state.step % LOG_STEPS == 0 or state.step == run.total_steps:
            _log_training(run, window, bar)
            window = _Window()
        if state.step == run.total_steps:
            return
        if config.checkpoint_steps and state.step % config.checkpoint_steps == 0:
            save_checkpoint(accelerator, run.folder / "checkpoints", state)


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
    if not math.isfinite(losses["loss"]):
        raise FloatingPointError(
            f"The loss is {losses['loss']} at step {state.step}: lower learning_rate. "
            f"The last good checkpoint is in {run.folder / 'checkpoints'}."
        )
    speed = window.images / (time.perf_counter() - window.started)
    bar.set_postfix(loss=f"{losses['loss']:.3f}", xrays_per_s=f"{speed:.1f}")
    _record(
        run,
        kind="train",
        step=state.step,
        epoch=round(state.epoch + state.batches / len(run.train_loader), 4),
        **losses,
        learning_rate=max(run.schedule.get_last_lr()),
        images_per_second=speed,
    )


def _validate(run: Run, bar: tqdm) -> None:
    """Evaluates the validation split and keeps the model in best/ where it is the best so far."""
    state, accelerator = run.state, run.accelerator
    model = accelerator.unwrap_model(run.model)
    results = evaluate(_predict_split(run, run.model, run.validation_loader, "validation"), model.config)
    _record_evaluation(run, results, "validation", "last")
    bar.write(f"epoch {state.epoch}, step {state.step}: " + describe(results))
    value = _metric(results, run.config.best_metric)
    if state.best_value is None or value > state.best_value:
        state.best_value, state.best_step = value, state.step
        if accelerator.is_main_process:
            save_model_folder(run.folder / "best", model, run.start.image_processor, run.start.tokenizer)
    accelerator.wait_for_everyone()


def evaluate_best(run: Run, corpus: DatasetDict) -> None:
    """Loads best/ from disk, evaluates it and writes its predictions under report/."""
    run.accelerator.free_memory()
    model = CLIPKOAForImageClassification.from_pretrained(run.folder / "best").to(run.accelerator.device)
    for split in ["validation", "test"] if run.config.evaluate_test else ["validation"]:
        dataset = XrayDataset(corpus[split], run.start.image_processor)
        loader = build_loader(dataset, run.config.batch_size, train=False, num_workers=run.config.num_workers, seed=0)
        # In fp32, as evaluate_checkpoint.py computes it.
        predictions = _predict_split(run, model, run.accelerator.prepare(loader), split, autocast=False)
        results = evaluate(predictions, model.config)
        _record_evaluation(run, results, split, "best")
        run.accelerator.print(f"best/ (step {run.state.best_step}) on {split}: " + describe(results))
        if run.accelerator.is_main_process:
            graded = PredictionFile.of_split(predictions, corpus[split])
            write_predictions(run.folder / "report" / f"predictions_{split}.jsonl", graded)


def describe(results: dict) -> str:
    """One line a head: accuracy, quadratic weighted kappa, MAE, flip agreement."""
    return "".join(
        f"\n  {head:18}  accuracy {values['accuracy']:.4f}  QWK {values['quadratic_weighted_kappa']:.4f}  "
        f"MAE {values['mae']:.4f}  macro-F1 {values['macro_f1']:.4f}  flip agreement {values['flip_agreement']:.4f}"
        for head, values in ((head, results[head]) for head in HEADS)
    )


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
    _record(run, kind="evaluation", split=split, checkpoint=checkpoint, step=step, epoch=run.state.epoch, **results)


def _record(run: Run, **values) -> None:
    if run.accelerator.is_main_process:
        with open(run.folder / "metrics.jsonl", "a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")


def _drop_records_after(path: Path, step: int) -> None:
    """A resumed run writes these lines again, and the one that a kill cut short."""
    if path.exists():
        lines = [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]
        records = [json.loads(line) for line in lines]
        kept = [record for record in records if record["step"] <= step and record.get("checkpoint") != "best"]
        path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
