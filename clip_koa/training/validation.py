"""Evaluations of a run: of the newest weights while it trains, and of best/ at its end."""

from datasets import DatasetDict
from tqdm.auto import tqdm

from clip_koa.data.corpus import is_drawn
from clip_koa.data.loader import XrayDataset, build_loader
from clip_koa.evaluation.heads import NEWEST, Predictions, describe_results, evaluate, predict
from clip_koa.evaluation.predictions import GradedSplit, write_predictions
from clip_koa.training.checkpoints import save_model_folder
from clip_koa.training.preparation import Run
from modeling_clip_koa import CLIPKOAForImageClassification


def validate(run: Run, bar: tqdm) -> None:
    """Evaluates the validation split and keeps the model in best/ where it is the best so far."""
    state, accelerator = run.state, run.accelerator
    model = accelerator.unwrap_model(run.model)
    # The newest of the last step will be best/, which is evaluated in fp32: then once is enough.
    last = run.finished and run.config.run.best_metric == NEWEST
    with run.average.applied():
        predictions = _predict_split(run, run.model, run.validation_loader, "validation", autocast=not last)
        run.of_best = predictions if last else None
        results = evaluate(predictions, model.config)
        _record_evaluation(run, results, "validation", "last")
        bar.write(f"epoch {state.epoch}, step {state.step}:\n" + describe_results(results))
        name = run.config.run.best_metric
        value = state.step if name == NEWEST else _metric(results, name)
        if state.best_value is None or value > state.best_value:
            state.best_value, state.best_step = value, state.step
            if accelerator.is_main_process:
                save_model_folder(run.folder / "best", model, run.start.image_processor, run.start.tokenizer)
    accelerator.wait_for_everyone()


def evaluate_best(run: Run, corpus: DatasetDict) -> None:
    """Loads best/ from disk, evaluates it and writes its predictions under report/.

    Of drawn X-rays the test split is evaluated, too. That of real ones is kept apart: `clip-koa evaluate --split
    test` measures it, when all choices are made.
    """
    run.accelerator.free_memory()
    model = CLIPKOAForImageClassification.from_pretrained(run.folder / "best").to(run.accelerator.device)
    for split in ("validation", "test") if is_drawn(run.config.data.corpus) else ("validation",):
        dataset = XrayDataset(corpus[split], run.start.image_processor)
        loader = build_loader(dataset, run.config.optimisation.batch_size, run.config.compute.num_workers)
        predictions = run.of_best if split == "validation" else None
        if predictions is None:  # in fp32, as clip-koa evaluate computes it
            predictions = _predict_split(run, model, run.accelerator.prepare(loader), split, autocast=False)
        results = evaluate(predictions, model.config)
        _record_evaluation(run, results, split, "best")
        run.accelerator.print(f"best/ (step {run.state.best_step}) on {split}:\n" + describe_results(results))
        if run.accelerator.is_main_process:
            graded = GradedSplit.of_split(predictions, corpus[split])
            write_predictions(run.folder / "report" / f"predictions_{split}.jsonl", graded)
    run.recorder.status("finished", step=run.state.step, total_steps=run.total_steps, best_step=run.state.best_step)


def describe_best(run: Run) -> str:
    """The best value so far, for the progress bar."""
    value = run.state.best_value
    if value is None:
        return "none yet"
    return "the newest" if run.config.run.best_metric == NEWEST else f"{value:.3f}"


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
