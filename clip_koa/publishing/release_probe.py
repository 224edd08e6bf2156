"""Loads a published model in every way that the card promises and prints what each gives, as JSON.

    python release_probe.py MODEL IMAGE...

Stands alone: it is run as a file, in a process of its own, where nothing of the project is imported.
"""

import json
import sys

import torch
from PIL import Image
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoProcessor,
    CLIPModel,
    pipeline,
)


def probe(name: str, files: list[str]) -> dict:
    """Class names, logits and scores of each way to load `name`, a folder or Hub id, for N images."""
    images = [Image.open(file).convert("RGB") for file in files]
    pixels = AutoImageProcessor.from_pretrained(name)(images, return_tensors="pt")
    found = {}
    with torch.no_grad():
        for title, auto in (("auto_model", AutoModel), ("auto_classifier", AutoModelForImageClassification)):
            model = auto.from_pretrained(name, trust_remote_code=True).eval()
            found[title] = {"class": type(model).__name__, "logits": model(**pixels).logits.tolist()}
            found[title]["graded"] = [grade.probabilities for grade in model.grade(images)]
        single = model(**pixels, flip_average=False)
        found["text"] = single.logits.tolist()
        found["linear"] = single.classifier_logits.softmax(-1).tolist()
        config = model.config
        prompts = [texts[0] for texts in config.prompts]
        stock = CLIPModel.from_pretrained(name).eval()
        batch = AutoProcessor.from_pretrained(name)(text=prompts, images=images, return_tensors="pt", padding=True)
        found["clip"] = {"class": type(stock).__name__, "logits": stock(**batch).logits_per_image.tolist()}
    linear = pipeline("image-classification", model=name)
    labels = [config.id2label[grade] for grade in range(len(prompts))]
    rows = [{row["label"]: row["score"] for row in linear(image, top_k=len(labels))} for image in images]
    found["pipeline"] = {
        "class": type(linear.model).__name__,
        "scores": [[row[label] for label in labels] for row in rows],
    }
    zero_shot = pipeline("zero-shot-image-classification", model=name)
    rows = [
        {row["label"]: row["score"] for row in zero_shot(image, candidate_labels=prompts, hypothesis_template="{}")}
        for image in images
    ]
    found["zero_shot"] = {
        "class": type(zero_shot.model).__name__,
        "scores": [[row[prompt] for prompt in prompts] for row in rows],
    }
    found["one_prompt_a_grade"] = all(len(texts) == 1 for texts in config.prompts)
    return found


if __name__ == "__main__":
    print(json.dumps(probe(sys.argv[1], sys.argv[2:])))
