"""Configuration of CLIP-KOA: a `CLIPConfig` with the grade prompts, the flip-consistency losses and the heads."""

import hashlib
import json

from transformers import CLIPConfig

from .prompts_clip_koa import GRADE_LABELS, PROMPT_SETS

CONSISTENCY_KINDS = ("js", "kl", "mse", "similarity")

# Where a saved folder tells `Auto*.from_pretrained(..., trust_remote_code=True)` to find the classes.
AUTO_MAP = {
    "AutoConfig": "configuration_clip_koa.CLIPKOAConfig",
    "AutoModel": "modeling_clip_koa.CLIPKOAForImageClassification",
    "AutoModelForImageClassification": "modeling_clip_koa.CLIPKOAForImageClassification",
}


_LABEL_FIELDS = ("num_labels", "id2label", "label2id")
_OWN_FIELDS = ("prompts", "consistency", "consistency_weight", "classifier_weight", "problem_type")  # that are checked


def prompts_digest(prompts: list[list[str]]) -> str:
    """Digest of a set of prompts (16 hexadecimal digits), to notice prompts that were edited after tokenisation."""
    return hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:16]


class CLIPKOAConfig(CLIPConfig):
    r"""Configuration of [`CLIPKOAForImageClassification`].

    `model_type` stays `"clip"`: a saved folder also loads as stock `CLIPModel` and `CLIPForImageClassification`.

    Args:
        text_config, vision_config (`dict` or config, *optional*): the two towers, as in `CLIPConfig`.
        prompts (`list[list[str]]`, *optional*): for each grade, the descriptions whose mean embedding stands for it.
            Default: the "ensemble" set of `prompts_clip_koa.py` (for other numbers of labels it must be given).
        prompt_shape (`list[int]`, *optional*): number of prompts and tokens of the longest. Written by `set_prompts`.
        tokenized_prompts (`str`, *optional*): digest of the prompts the checkpoint's tokens belong to. Written by
            `set_prompts`; a difference from `prompts` makes `from_pretrained` tokenise them anew.
        symmetry (`bool`, defaults to `True`): cross-entropy on the X-ray and on its mirror image.
        consistency (`str`, defaults to `"js"`): how the two grade distributions are compared: js, kl or mse; or
            similarity, which compares the similarities of image and prompts.
        consistency_weight (`float`, defaults to 1.0): weight of the consistency loss; 0 switches it off.
        classifier_weight (`float`, defaults to 1.0): weight of the linear head's loss beside the text head's.
        flip_average (`bool`, defaults to `True`): average the logits of X-ray and mirror image at inference.
        calibration (`dict`, *optional*): `text_temperature` and `linear_temperature`, by which the heads' weights are
            divided already.
        initializer_range (`float`, defaults to 0.02): standard deviation of a new linear head.

    Raises:
        ValueError: unknown consistency kind, negative weight, another problem than grading, or prompts that do not
            match the labels.
    """

    keys_to_ignore_at_inference = [
        "symmetry_loss",
        "consistency_loss",
        "classifier_loss",
        "flipped_logits",
        "classifier_logits",
        "flipped_classifier_logits",
        "image_embeds",
        "grade_embeds",
        "hidden_states",
        "attentions",
    ]

    def __init__(
        self,
        text_config=None,
        vision_config=None,
        prompts=None,
        prompt_shape=(0, 0),
        tokenized_prompts=None,
        symmetry=True,
        consistency="js",
        consistency_weight=1.0,
        classifier_weight=1.0,
        flip_average=True,
        calibration=None,
        initializer_range=0.02,
        **kwargs,
    ):
        if kwargs.get("id2label") is None:
            kwargs["num_labels"] = kwargs.get("num_labels") or len(GRADE_LABELS)
            if kwargs["num_labels"] == len(GRADE_LABELS):
                kwargs["id2label"] = dict(enumerate(GRADE_LABELS))
                kwargs["label2id"] = {label: grade for grade, label in enumerate(GRADE_LABELS)}
        # A config read from the Hub names its repository here; what we save always brings its own code.
        kwargs["auto_map"] = dict(AUTO_MAP)
        super().__init__(text_config=text_config, vision_config=vision_config, **kwargs)
        self.prompts = PROMPT_SETS["ensemble"] if prompts is None else prompts
        self.prompt_shape = list(prompt_shape)
        self.tokenized_prompts = tokenized_prompts
        self.symmetry = symmetry
        self.consistency = consistency
        self.consistency_weight = consistency_weight
        self.classifier_weight = classifier_weight
        self.flip_average = flip_average
        self.calibration = calibration
        self.initializer_range = initializer_range
        self._check()

    @classmethod
    def from_dict(cls, config_dict, **kwargs):
        """As in `PretrainedConfig`; what is given beside is checked with the rest, and labels and prompts together.

        Raises:
            ValueError: as the class, such as for a new number of labels without prompts for them.
        """
        config_dict = dict(config_dict)
        given = {name: kwargs.pop(name) for name in (*_LABEL_FIELDS, *_OWN_FIELDS) if name in kwargs}
        _check_given_together(given, config_dict)
        if "num_labels" in given or "id2label" in given:
            for name in _LABEL_FIELDS:
                config_dict.pop(name, None)
        elif config_dict.get("id2label") is None and len(config_dict.get("prompts") or ()) == 2:
            config_dict["num_labels"] = 2  # transformers does not write the names of two labels
        return super().from_dict(config_dict | given, **kwargs)

    def _check(self) -> None:
        if self.consistency not in CONSISTENCY_KINDS:
            raise ValueError(
                f"consistency={self.consistency!r} is not known: use one of {', '.join(CONSISTENCY_KINDS)}."
            )
        for name in ("consistency_weight", "classifier_weight"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name}={getattr(self, name)} is negative: use 0 to switch the loss off.")
        problem = getattr(self, "problem_type", None)
        if problem not in (None, "single_label_classification") or self.num_labels < 2:
            raise ValueError(
                f"problem_type={problem!r} with num_labels={self.num_labels}: CLIP-KOA gives one label of two or more."
            )
        check_prompts(self.prompts, self.num_labels)


def _check_given_together(given: dict, config_dict: dict) -> None:
    """Refuses, of a new number of labels and prompts for them, the one without the other."""
    labels = given.get("num_labels") or len(given.get("id2label") or ())
    kept = len(config_dict.get("prompts") or GRADE_LABELS)  # stock CLIP has no prompts, and gets those of the grades
    prompts = given.get("prompts")
    if labels and prompts is None and labels != kept:
        raise ValueError(
            f"{labels} labels are given and the checkpoint has prompts for {kept}: give prompts as well, one list of "
            "descriptions for each label."
        )
    if isinstance(prompts, (list, tuple)) and not labels and len(prompts) != kept:
        raise ValueError(
            f"Prompts for {len(prompts)} labels are given and the checkpoint has {kept}: give "
            f"num_labels={len(prompts)} as well."
        )


def check_prompts(prompts: list[list[str]], num_labels: int) -> None:
    """Refuses prompts that are not one non-empty list of texts for each label.

    Raises:
        ValueError: says how many lists are expected, or which grade has no prompt.
    """
    if not isinstance(prompts, (list, tuple)):
        raise ValueError(f"prompts must be a list of descriptions for each label, not {prompts!r}.")
    if len(prompts) != num_labels:
        raise ValueError(
            f"prompts has {len(prompts)} lists for {num_labels} labels: give num_labels and prompts that fit each "
            "other, one list of descriptions for each label."
        )
    for grade, texts in enumerate(prompts):
        if isinstance(texts, str) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
            raise ValueError(f"prompts[{grade}] must be a list of at least one description, not {texts!r}.")
