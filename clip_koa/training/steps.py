"""One optimizer step, from X-rays to new weights."""

import math
from collections.abc import Iterator
from itertools import islice

import torch

from clip_koa.evaluation.heads import NotFiniteError
from clip_koa.training.checkpoints import last_checkpoint
from clip_koa.training.preparation import Run
from modeling_clip_koa import soft_labels

LOSS_PARTS = ("loss", "symmetry_loss", "consistency_loss", "classifier_loss")
_MAX_GRADIENT_NORM = 1.0
_FILES_NAMED = 4


def train_step(run: Run, batches: Iterator[dict], both_views: bool) -> torch.Tensor:
    """Takes one optimizer step on the next batch of the loader, or on as many parts of it as a step is computed in.

    Args:
        batches: of `pixel_values` (N, 3, H, W), `labels` (N,) and `index` (N,), on this process.
        both_views: False: the losses see the X-rays alone; True: their mirror images too, where a loss asks for them.

    Returns:
        The means of `LOSS_PARTS` over the X-rays of this process, (4,) fp32, detached.

    Raises:
        NotFiniteError: a loss or gradient is not finite; the weights are those from before.
    """
    config, accelerator, epoch = run.config, run.accelerator, run.state.epoch
    losses, indices = [], []
    for batch in islice(batches, config.compute.gradient_accumulation_steps):
        with accelerator.accumulate(run.model):
            pixel_values = run.augmentation(batch["pixel_values"], batch["index"], epoch)
            run.drop_path.draw(batch["index"], epoch)
            run.patch_dropout.draw(batch["index"], epoch)
            labels = batch["labels"]
            if config.losses.ordinal_smoothing:
                num_labels = run.start.model.config.num_labels
                labels = soft_labels(labels, num_labels, ordinal_smoothing=config.losses.ordinal_smoothing)

            output = run.model(pixel_values, labels=labels, both_views=both_views)
            accelerator.backward(output.loss)
            losses.append(torch.stack([output[name].detach().float() for name in LOSS_PARTS]))
            indices.append(batch["index"])

            if accelerator.sync_gradients:  # the last part of the batch
                norm = accelerator.clip_grad_norm_(run.model.parameters(), _MAX_GRADIENT_NORM)
                # A scaler of fp16 leaves out steps with broken gradients by itself and lowers its scale.
                if not math.isfinite(output.loss.item() if accelerator.scaler else float(norm)):
                    raise _not_finite(run, torch.cat(indices))
            run.optimizer.step()
            if accelerator.sync_gradients:
                run.schedule.step()
            run.optimizer.zero_grad()
        run.state.batches += 1
    run.average.update()
    run.state.step += 1
    return torch.stack(losses).mean(0)


def _not_finite(run: Run, indices: torch.Tensor) -> NotFiniteError:
    """The error of a step whose loss or gradient is not finite; its `files` are all X-rays of the batch."""
    files = [run.train_files[index] for index in run.accelerator.gather(indices).tolist()]
    named = ", ".join(files[:_FILES_NAMED]) + (f" and {len(files) - _FILES_NAMED} more" * (len(files) > _FILES_NAMED))
    error = NotFiniteError(
        f"The loss or its gradient is not finite at step {run.state.step + 1} (X-rays {named}: all in status.json). "
        f"Lower optimisation.learning_rate. The last good checkpoint: {last_checkpoint(run.folder / 'checkpoints')}."
    )
    error.files = files
    return error
