"""The model card: metadata that the Hub reads, and a page that people do, both from the same figures."""

import json
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData
from jinja2 import Environment, FileSystemLoader

from clip_koa.evaluation.error_groups import FILE as GROUPS_FILE
from clip_koa.grading.onnx_network import RELEASE_FILES
from clip_koa.publishing.card_facts import CardFacts
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.examples import PICTURE, title_of
from clip_koa.publishing.measured_apart import measured_apart
from clip_koa.reporting import pictures
from clip_koa.reporting.page import MAIN_HEAD, METRIC_NAMES, figure_text, interval_text, save_picture
from modeling_clip_koa import CALIBRATION_FILE, GRADE_LABELS, LOCALISATION_FILE

_SET_FIGURES = ("level", "coverage", "mean_set_size")
_TAGS = ["clip", "medical", "radiography", "knee", "osteoarthritis", "kellgren-lawrence"]


def write_card(folder: Path, card: str, facts: CardFacts) -> None:
    """Writes README.md, metrics.json, error_groups.json and figures/ of a release.

    Args:
        card: of `render_card`.
    """
    (folder / "metrics.json").write_text(json.dumps(facts.results, indent=2) + "\n", encoding="utf-8")
    if facts.groups:
        (folder / GROUPS_FILE).write_text(json.dumps(facts.groups, indent=1) + "\n", encoding="utf-8")
    if facts.results or facts.pictures:
        (folder / "figures").mkdir(exist_ok=True)
    for name, picture in facts.pictures.items():
        (folder / "figures" / f"{name}.png").write_bytes(picture)
    for split, results in facts.results.items():
        for name, draw in (("confusion_matrix", pictures.confusion_matrices), ("recall", pictures.recall_per_grade)):
            save_picture(folder / "figures" / f"{name}_{split}.png", "", "", draw, results)
    (folder / "README.md").write_text(card, encoding="utf-8")


def render_card(
    folder: Path, repo_id: str, model, facts: CardFacts, dtype: str, scores: dict[str, list[float]]
) -> str:
    """The card of a release.

    Args:
        folder: the release, whose calibration and locator the card speaks of.
        model: as loaded, or its checkpoint's.
        dtype: of the stored weights.
        scores: for each example's file the stock pipeline's probabilities, (K,), for the widget.
    """
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), trim_blocks=True, lstrip_blocks=True
    )
    config = model.config
    text = environment.get_template("model_card.md").render(
        repo_id=repo_id, name=repo_id.split("/")[-1], facts=facts, dtype=dtype,
        parameters=model.num_parameters() / 1e6,
        prompts=[texts[0] for texts in config.prompts], one_prompt=all(len(texts) == 1 for texts in config.prompts),
        sections=[_section(*item) for item in facts.results.items()],
        heads=list(pictures.HEAD_NAMES.values()), pictures=facts.pictures,
        calibration=_calibration(folder / CALIBRATION_FILE), examples=bool(scores),
        films=(folder / LOCALISATION_FILE).is_file(),
        tested=any(split.endswith("test") for split in facts.results),
        picture=(folder / PICTURE).is_file(), groups=facts.groups, apart=measured_apart(folder),
        onnx=(folder / RELEASE_FILES["fp32"]).is_file(), size=config.vision_config.image_size,
    )  # fmt: skip
    return str(ModelCard(f"---\n{_data(repo_id, facts, scores).to_yaml()}\n---\n\n{text}"))


def _calibration(path: Path) -> dict | None:
    """The figures that calibration measured on people it did not fit on, of the text head; None without them."""
    if not path.is_file():
        return None
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
        text = report["heads"]["text"]
        error = {side: text[side]["expected_calibration_error"] for side in ("before", "after")}
        by_grade = [share for share in text.get("coverage_per_grade") or () if share is not None]
        return {
            "split": report["split"], **{name: text[name] for name in _SET_FIGURES}, **error,
            "least_coverage": min(by_grade, default=None), "has_limits": "least_probabilities" in report,
        }  # fmt: skip
    except (ValueError, KeyError, TypeError) as damage:
        raise ReleaseError(
            f"{path.name} of the checkpoint is damaged ({type(damage).__name__}): run clip-koa calibrate anew."
        ) from damage


def _data(repo_id: str, facts: CardFacts, scores) -> ModelCardData:
    widget = [
        {
            "src": f"https://huggingface.co/{repo_id}/resolve/main/examples/{name}",
            "example_title": title_of(name),
            "output": [
                {"label": label, "score": round(float(score), 4)}
                for score, label in sorted(zip(row, GRADE_LABELS, strict=True), reverse=True)
            ],
        }
        for name, row in scores.items()
    ]
    return ModelCardData(
        library_name="transformers", pipeline_tag="image-classification", license="apache-2.0", tags=_TAGS,
        base_model=facts.base_model, datasets=facts.dataset_id, model_name=repo_id.split("/")[-1],
        widget=widget or None,
        eval_results=_eval_results(facts) or None,
    )  # fmt: skip


def _eval_results(facts: CardFacts) -> list[EvalResult]:
    """Every metric of every head and split, with its interval."""
    results = []
    for split, heads in facts.results.items():
        for head, title in pictures.HEAD_NAMES.items():
            values = heads[head]
            for metric, name in METRIC_NAMES.items():
                if values.get(metric) is None:
                    continue
                bounds = values["intervals"].get(metric)
                results.append(
                    EvalResult(
                        task_type="image-classification",
                        task_name="Kellgren-Lawrence grading",
                        dataset_type="knee-xray",
                        dataset_name=facts.dataset,
                        dataset_split=split,
                        metric_type=metric,
                        metric_name=f"{name} ({title})",
                        metric_value=round(values[metric], 6),
                        metric_config=head,
                        metric_args={"interval_95": [round(bound, 6) for bound in bounds]} if bounds else None,
                    )  # fmt: skip
                )
    return results


def _section(split: str, results: dict) -> dict:
    def cells(metric, grade=None):
        for head in pictures.HEAD_NAMES:
            value, bounds = results[head][metric], results[head]["intervals"].get(metric)
            if grade is not None:
                value, bounds = value[grade], bounds[grade] if bounds else None
            yield figure_text(value) + (f" ({interval_text(bounds)})" if bounds else "")

    known = [metric for metric in METRIC_NAMES if metric in results["text"]]
    recalls = [(label, list(cells("recall_per_grade", grade))) for grade, label in enumerate(GRADE_LABELS)]
    accuracy = {head: results[head]["accuracy"] for head in ("text", "linear")}
    return {
        "split": split,
        "samples": results["text"]["num_samples"],
        "people": results["text"].get("num_people"),
        "rows": [(METRIC_NAMES[metric], list(cells(metric))) for metric in known],
        "recalls": recalls,
        "confusion": list(zip(GRADE_LABELS, results[MAIN_HEAD]["confusion_matrix"], strict=True)),
        "gap": accuracy["linear"] - accuracy["text"],
        "intervals": bool(results["text"]["intervals"]),
        "far_off": 1 - results[MAIN_HEAD]["adjacent_accuracy"],
    }
