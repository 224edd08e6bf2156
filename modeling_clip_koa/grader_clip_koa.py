"""Grades images in three lines: load, grade, explain. With how sure the model is, and what the grade leans on."""

import json
import math
import textwrap
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from transformers import AutoImageProcessor
from transformers.image_processing_utils import BaseImageProcessor
from transformers.utils import cached_file, logging

from .configuration_clip_koa import CLIPKOAConfig
from .modeling_clip_koa import CLIPKOAForImageClassification
from .preprocessing_clip_koa import CLIPKOAError, XrayPreprocessor, read_picture
from .prompts_clip_koa import GRADE_MEANINGS
from .tensors_clip_koa import all_finite

CALIBRATION_FILE = "calibration.json"
TYPICALITY_FILE = "typicality.safetensors"
# X-rays less like the training data than this share of knees it was not trained on are warned about.
ATYPICAL = 0.99
# Levels of confidence for which a calibrated checkpoint keeps thresholds.
LEVELS = tuple(round(0.5 + step / 100, 2) for step in range(50))
# Radiographic osteoarthritis begins here (Kellgren & Lawrence).
_OSTEOARTHRITIS_GRADE = 2
_BATCH_SIZE = 16
PRECISIONS = ("fp32", "bf16", "auto")

# Pixel values (N, 3, H, W) -> text logits (N, K) of the X-rays and of their mirror images, and what `Typicality` takes
# (N, D), or None.
Network = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]]


class CheckpointError(CLIPKOAError, ValueError):
    """A model folder or Hub id that cannot grade; the message names it and says why, in one line."""


class CalibrationError(CLIPKOAError, ValueError):
    """A calibration that is missing or cannot give what is asked; the message says what would be right."""


@dataclass(frozen=True)
class Grade:
    """What the model says of one X-ray. Probabilities are (K,), one for each grade."""

    grade: int  # 0..4, from the two views averaged
    name: str  # the grade's label
    meaning: str  # in the words of the Kellgren-Lawrence scale
    probabilities: tuple[float, ...]  # of the two views' averaged logits
    image_probabilities: tuple[float, ...]  # of the X-ray as given
    mirror_probabilities: tuple[float, ...]  # of its mirror image
    confidence_set: tuple[int, ...] = ()  # neighbouring grades; empty where the checkpoint is not calibrated
    atypicality: float | None = None  # share of unseen knees more like the training X-rays, 0..1; None: unknown
    inverted: bool = False  # whether the X-ray was taken to show bone dark, and was inverted before it was graded

    @property
    def warning(self) -> str:
        """Says so where the image is unlike the X-rays the model was trained on; else empty."""
        if self.atypicality is None or self.atypicality < ATYPICAL:
            return ""
        return "Unlike the knee X-rays the model was trained on: the grade may mean nothing."

    @property
    def expected_grade(self) -> float:
        """The mean grade under the probabilities, 0..4."""
        return sum(grade * share for grade, share in enumerate(self.probabilities))

    @property
    def osteoarthritis_probability(self) -> float:
        """The probability of grade 2 or above."""
        return sum(self.probabilities[_OSTEOARTHRITIS_GRADE:])

    @property
    def entropy(self) -> float:
        """Of the probabilities, in nats."""
        return -sum(share * math.log(share) for share in self.probabilities if share > 0)

    @property
    def flip_agreement(self) -> bool:
        """Whether X-ray and mirror image alone would get the same grade."""
        return len({view.index(max(view)) for view in (self.image_probabilities, self.mirror_probabilities)}) == 1


@dataclass(frozen=True)
class Explanation:
    """A heat map: which parts of an X-ray speak for a grade, or for a grade rather than another."""

    image: Image.Image  # the upright picture that was looked at, mode L
    grade: int
    against: int | None  # the other grade; None: all the others
    heat_map: torch.Tensor  # (H, W) of the image, 0..1, 1 where it speaks loudest

    def layer(self, size: tuple[int, int] | None = None) -> Image.Image:
        """The map as a picture (RGBA) to lay over the X-ray: clear where cold, orange to bright yellow where hot.

        Args:
            size: (width, height) in pixels; default: the image's.
        """
        heat = self.heat_map
        red, green, blue = (low + (high - low) * heat for low, high in zip(_WARM, _HOT, strict=True))
        pixels = torch.stack([red, green, blue, 255 * heat.clamp(0, 1)], dim=-1).round().to(torch.uint8)
        height, width = heat.shape
        picture = Image.frombytes("RGBA", (width, height), pixels.contiguous().numpy().tobytes())
        return picture.resize(size, Image.Resampling.BILINEAR) if size else picture

    def overlay(self, opacity: float = 0.6) -> Image.Image:
        """The X-ray (RGB) under its heat map."""
        layer = self.layer()
        layer.putalpha(layer.getchannel("A").point(lambda value: round(value * opacity)))
        return Image.alpha_composite(self.image.convert("RGBA"), layer).convert("RGB")


@dataclass(frozen=True)
class Typicality:
    """How like the training X-rays an image is: Mahalanobis distance of a block's patches (Lee et al. 2018).

    arXiv 1807.03888. Of both views, so that X-ray and mirror image are equally typical.
    """

    block: int  # of the vision tower, from 0, whose patch tokens are averaged
    mean: torch.Tensor  # (D,), over training X-rays
    precision: torch.Tensor  # (D, D), inverse of their covariance
    distances: torch.Tensor  # sorted distances of X-rays the model was not trained on

    def shares(self, features: torch.Tensor) -> list[float]:
        """For features (N, D) the share of the unseen X-rays that are more typical, each in 0..1."""
        return (torch.searchsorted(self.distances, self.measure(features)) / len(self.distances)).tolist()

    def measure(self, features: torch.Tensor) -> torch.Tensor:
        """Squared distances (N,) of features (N, D)."""
        centred = features.double() - self.mean.double()
        return (centred @ self.precision.double() * centred).sum(-1).float()


def patch_features(hidden: torch.Tensor) -> torch.Tensor:
    """What `Typicality` takes, (N, D), from tokens (2N, T, D) of N X-rays and then of their mirror images."""
    original, mirrored = hidden[:, 1:].float().mean(1).chunk(2)
    return ((original + mirrored) / 2).cpu()


@contextmanager
def watched_block(model: CLIPKOAForImageClassification, block: int):
    """While it is open, each pass of both views adds the block's `patch_features` to the list it gives."""
    found = []

    def keep(layer, inputs, output):
        hidden = output[0] if isinstance(output, tuple) else output  # transformers 4 gives a tuple
        found.append(patch_features(hidden))

    handle = model.vision_model.encoder.layers[block].register_forward_hook(keep)
    try:
        yield found
    finally:
        handle.remove()


# Colours of the middle and of the top of a heat map.
_WARM, _HOT = (200.0, 40.0, 0.0), (255.0, 235.0, 60.0)


class CLIPKOAGrader:
    """Grades X-rays that are images already; `dataset_script.radiograph` reads them from any file.

    An image may be in any mode, deep or turned by EXIF: it goes through `read_picture`, as files do in
    `read_radiograph`.

    Args:
        model: in evaluation mode; its weights may be bf16.
        image_processor: the one saved beside it.
        threshold: of the confidence sets, as `read_threshold` gives it; None: no sets.
        typicality: as `read_typicality` gives it; None: nothing is said of images unlike the training X-rays.
        network: what grades in the model's place, such as an exported graph; it cannot explain.
    """

    def __init__(
        self,
        model: CLIPKOAForImageClassification | None,
        image_processor,
        threshold: float | None = None,
        typicality: Typicality | None = None,
        network: Network | None = None,
        labels: dict[int, str] | None = None,
    ):
        self.model, self.image_processor, self.threshold = model, image_processor, threshold
        self.typicality = typicality
        self.network = network or self._run_model
        self.labels = labels or model.config.id2label
        self.pixel_values = XrayPreprocessor(image_processor)

    @classmethod
    def from_pretrained(
        cls, name: str, level: float = 0.9, device: str | None = None, precision: str = "fp32"
    ) -> "CLIPKOAGrader":
        """Loads a checkpoint.

        Args:
            name: model folder or Hub id.
            level: how often the confidence sets are to hold the true grade, 0.50 to 0.99.
            device: a torch device; default: a GPU where there is one.
            precision: of the vision tower, one of `PRECISIONS`: fp32; bf16, faster where the hardware has it, and
                not quite the same; or auto, bf16 where the hardware has it.

        Raises:
            CheckpointError: no such model, or one that cannot grade.
            CalibrationError: a level for which the checkpoint keeps no threshold, or a damaged file.
            ValueError: another precision.
        """
        if precision not in PRECISIONS:
            raise ValueError(f"There is no precision {precision!r}: use one of {', '.join(PRECISIONS)}.")
        device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        model, image_processor = load_checkpoint(name, dtype=torch.float32)
        threshold, typicality = read_threshold(name, level), read_typicality(name, model.config)
        model = model.to(device)
        if precision == "bf16" or (precision == "auto" and bf16_is_fast(device)):
            _compute_in_bf16(model)
        return cls(model, image_processor, threshold, typicality)

    def grade(self, images: Image.Image | Sequence[Image.Image], keep_polarity: bool = False) -> Grade | list[Grade]:
        """Grades one X-ray, or each of a list, cropped to one knee.

        Args:
            images: PIL images in any mode, one or a list of them.
            keep_polarity: grade an X-ray that shows bone dark as it is; otherwise it is inverted.

        Raises:
            ValueError: an image that is none, is damaged, has several frames or an absurd size.
        """
        if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
            picture, inverted = read_picture(images, keep_polarity=keep_polarity)
            return replace(self._grade_batch([picture])[0], inverted=inverted)
        grades = []
        for start in range(0, len(images), _BATCH_SIZE):
            read = [
                read_picture(image, keep_polarity=keep_polarity, name=f"Image {number} of {len(images)}")
                for number, image in enumerate(images[start : start + _BATCH_SIZE], start + 1)
            ]
            batch = self._grade_batch([picture for picture, _ in read])
            grades += [replace(grade, inverted=inverted) for grade, (_, inverted) in zip(batch, read, strict=True)]
        return grades

    def explain(
        self, image: Image.Image, grade: int | None = None, against: int | None = None, keep_polarity: bool = False
    ) -> Explanation:
        """Which parts of an X-ray speak for a grade: relevance of the patches (Chefer et al. 2021, arXiv 2103.15679).

        Through the blocks, attention weighted by the gradient of the text head's logit of the grade, less the other
        grade's, or less the mean of all others'. Maps of X-ray and mirror image are averaged, so that the mirror image
        gives the mirrored map.

        Args:
            image, keep_polarity: see `grade`.
            grade: default: the one that the model gives.
            against: the grade to tell it from; default: all others.

        Raises:
            ValueError: a grade that the model does not give, the same grade twice, an exported network, or an image
                that `grade` refuses.
        """
        if self.model is None:
            raise ValueError("An exported network cannot explain: load the checkpoint it was exported from.")
        picture, _ = read_picture(image, keep_polarity=keep_polarity)
        grade = self._grade_batch([picture])[0].grade if grade is None else grade
        for asked in (grade, grade if against is None else against):
            if asked not in self.labels:
                raise ValueError(f"There is no grade {asked!r}: the model gives 0 to {len(self.labels) - 1}.")
        if grade == against:
            raise ValueError(f"Grade {grade} cannot be told from itself: give another as against.")
        relevance = patch_relevance(self.model, self.pixel_values([picture]), grade, against)[0]
        return Explanation(picture, grade, against, self._spread(relevance, picture.size))

    def _grade_batch(self, pictures: list[Image.Image]) -> list[Grade]:
        logits, flipped_logits, features = self.network(self.pixel_values(pictures))
        averaged = ((logits + flipped_logits) / 2).softmax(-1)
        sets, atypicality = [()] * len(pictures), [None] * len(pictures)
        if self.threshold is not None:
            sets = confidence_sets(averaged, self.threshold)
        if self.typicality is not None and features is not None:
            atypicality = self.typicality.shares(features)
        views = (averaged, logits.softmax(-1), flipped_logits.softmax(-1))
        grades = averaged.argmax(-1).tolist()
        rows = zip(grades, *(view.tolist() for view in views), sets, atypicality, strict=True)
        return [
            Grade(grade, self.labels[grade], GRADE_MEANINGS[grade], *map(tuple, shares), found, atypical)
            for grade, *shares, found, atypical in rows
        ]

    @torch.inference_mode()
    def _run_model(self, pixel_values: torch.Tensor):
        block = self.typicality.block if self.typicality else 0
        weight = self.model.visual_projection.weight
        views = torch.cat([pixel_values, pixel_values.flip(-1)]).to(weight.device, weight.dtype)
        with watched_block(self.model, block) as features:
            logits, flipped_logits = self.model.grade_views(views).cpu().chunk(2)
        return logits, flipped_logits, features[0]

    def _spread(self, relevance: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
        """Relevance of the patches, (side, side), over the pixels (H, W) of the box that the network sees."""
        left, top, right, bottom = self.pixel_values.cut(size) or (0, 0, *size)
        # Places of the pixels' middles in the box, -1 to 1; halves are exact, so that mirrored places are opposite.
        across = (torch.arange(size[0]) + 0.5 - size[0] / 2) / ((right - left) / 2)
        down = (torch.arange(size[1]) + 0.5 - size[1] / 2) / ((bottom - top) / 2)
        places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)[None]
        options = {"mode": "bicubic", "padding_mode": "border", "align_corners": False}
        views = (relevance[None, None], relevance.flip(-1)[None, None])
        one, other = (torch.nn.functional.grid_sample(view, places, **options)[0, 0] for view in views)
        seen = (places[0].abs() <= 1).all(-1)
        heat_map = torch.where(seen, (one + other.flip(-1)) / 2, 0).clamp(min=0)
        return heat_map / heat_map.max().clamp(min=1e-12)


def bf16_is_fast(device: str) -> bool:
    """Whether a torch device computes matrix products in bf16 with hardware of its own."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "mps" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def _compute_in_bf16(model: CLIPKOAForImageClassification) -> None:
    tower = model.vision_model
    for part in (tower.embeddings.patch_embedding, tower.encoder, tower.post_layernorm, model.visual_projection):
        part.to(torch.bfloat16)
    # Tokens are put together and first normalised in fp32, for positions may stand far above what tells tokens apart:
    # those of a tower that started from DINOv2 do.
    tower.pre_layrnorm.register_forward_hook(lambda norm, inputs, output: output.to(torch.bfloat16))


def patch_relevance(
    model: CLIPKOAForImageClassification, pixel_values: torch.Tensor, grade: int, against: int | None = None
) -> torch.Tensor:
    """Relevance of each patch for the text head's logit of a grade against another's, or the mean of all others'.

    Args:
        pixel_values: (N, 3, H, W).

    Returns:
        (N, side, side), not negative; of the X-ray averaged with the mirrored one of its mirror image.
    """
    config = model.vision_model.config
    implementation = config._attn_implementation
    config._attn_implementation = "eager"  # the others keep no attention
    try:
        with torch.enable_grad():
            weight = model.visual_projection.weight
            views = torch.cat([pixel_values, pixel_values.flip(-1)]).to(weight.device, weight.dtype).requires_grad_()
            vision = model.vision_model(pixel_values=views, output_attentions=True)
            image_embeds = model.visual_projection(vision.pooler_output).float()
            image_embeds = torch.nn.functional.normalize(image_embeds, dim=-1)
            cosines = image_embeds @ model.kept_grade_embeds().t()
            others = [other for other in range(cosines.shape[1]) if other != grade] if against is None else [against]
            score = (cosines[:, grade] - cosines[:, others].mean(1)).sum()
            gradients = torch.autograd.grad(score, vision.attentions)
    finally:
        config._attn_implementation = implementation
    relevance = _roll_out(vision.attentions, gradients)
    side = math.isqrt(relevance.shape[1])
    original, mirrored = relevance.view(-1, side, side).chunk(2)
    return ((original + mirrored.flip(-1)) / 2).cpu()


@torch.no_grad()
def _roll_out(attentions, gradients) -> torch.Tensor:
    """Relevance of the patches for the class token, (N, patches), from (N, heads, tokens, tokens) of each block."""
    count, _, tokens, _ = attentions[0].shape
    # Only the class token's row is asked for: the product is taken from the last block down, a row at a time.
    row = torch.zeros(count, 1, tokens, device=attentions[0].device)
    row[:, :, 0] = 1
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        row = row + row @ (attention * gradient).float().clamp(min=0).mean(1)
    return row[:, 0, 1:]


def grown_intervals(probabilities: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """For each X-ray the nested intervals of grades that grow from the likeliest to its likelier neighbour.

    Args:
        probabilities: (N, K).

    Returns:
        order (N, K), the grades as they join, and mass (N, K), the interval's probability once they have.
    """
    count, grades = probabilities.shape
    padded = torch.nn.functional.pad(probabilities, (1, 1), value=-1.0)  # a neighbour outside never joins
    rows = torch.arange(count)
    low = high = probabilities.argmax(1) + 1
    order = [low - 1]
    for _ in range(grades - 1):
        down = padded[rows, low - 1] > padded[rows, high + 1]
        low, high = torch.where(down, low - 1, low), torch.where(down, high, high + 1)
        order.append(torch.where(down, low, high) - 1)
    order = torch.stack(order, dim=1)
    return order, probabilities.gather(1, order).cumsum(1)


def confidence_sets(probabilities: torch.Tensor, threshold: float) -> list[tuple[int, ...]]:
    """For each row of (N, K) the largest grown interval within the threshold, of at least the likeliest grade."""
    order, mass = grown_intervals(probabilities.double())
    # A hair above, so that an interval whose mass is the threshold itself is taken.
    sizes = (mass <= threshold + 1e-9).sum(1).clamp(min=1).tolist()
    return [tuple(sorted(row[:size])) for row, size in zip(order.tolist(), sizes, strict=True)]


@contextmanager
def readable(name: str, part: str = ""):
    """While it is open, whatever goes wrong with the files of a model is a `CheckpointError` of one line.

    Args:
        name: model folder or Hub id.
        part: what of it is read, as in "its tokenizer".
    """
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # what transformers only warns of is an error here
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or foreign folder can hold anything
        reason = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
        if isinstance(error, SafetensorError):
            reason = f"its weights are damaged ({reason})"
        here = (Path(name) / "config.json").is_file()
        advice = "" if here else "give a model folder, such as runs/demo/best, or a Hub id. "
        subject = f"{name}: {part}" if part else name
        raise CheckpointError(f"{subject} cannot be loaded: {advice}{reason}") from error
    finally:
        logging.set_verbosity(verbosity)


def load_config(name: str) -> CLIPKOAConfig:
    """The configuration of a CLIP-KOA checkpoint, or of what was exported from one.

    Args:
        name: model folder or Hub id.

    Raises:
        CheckpointError: none, a damaged one, or one of another model or of other labels than the five grades.
    """
    with readable(name):
        found, _ = CLIPKOAConfig.get_config_dict(name)
        if not found:  # what transformers gives of a folder without one
            raise CheckpointError(f"{name} holds no config.json: give a model folder, such as runs/demo/best.")
        if found.get("model_type") != CLIPKOAConfig.model_type:
            raise CheckpointError(f"{name} is a {found.get('model_type')} model: give a CLIP-KOA checkpoint.")
        if found.get("tokenized_prompts") is None:
            raise CheckpointError(f"{name} is a plain CLIP model: give a CLIP-KOA checkpoint, as train.py writes it.")
        config = CLIPKOAConfig.from_dict(found)
    if config.num_labels != len(GRADE_MEANINGS):
        raise CheckpointError(f"{name} has {config.num_labels} labels: it must grade 0 to {len(GRADE_MEANINGS) - 1}.")
    return config


def load_image_processor(name: str, image_size: int) -> BaseImageProcessor:
    """The image processor saved beside a model that reads square images of `image_size` pixels.

    Raises:
        CheckpointError: none, a damaged one, or one that gives images of another size.
    """
    with readable(name, "its image processor"):
        image_processor = AutoImageProcessor.from_pretrained(name)
        given = image_processor([Image.new("RGB", (image_size + 8, image_size))], return_tensors="pt")["pixel_values"]
    if given.shape[2:] != (image_size, image_size):
        raise CheckpointError(
            f"{name}: preprocessor_config.json gives images of {given.shape[3]}x{given.shape[2]} pixels, but its "
            f"model reads {image_size}x{image_size}."
        )
    return image_processor


def load_checkpoint(name: str, **options) -> tuple[CLIPKOAForImageClassification, BaseImageProcessor]:
    """A model in evaluation mode, all of whose weights were found, and the image processor saved beside it.

    Args:
        name: model folder or Hub id.
        **options: for `from_pretrained`, such as `dtype`.

    Raises:
        CheckpointError: no such checkpoint, a damaged one, or one that does not grade 0 to 4.
    """
    config = load_config(name)
    with readable(name):
        model, info = CLIPKOAForImageClassification.from_pretrained(name, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{name} cannot be loaded: its weights lack {missing[0]}, which train.py writes.")
    check_values(name, model)
    model.config.return_dict = True  # what grades reads outputs by name
    return model.eval(), load_image_processor(name, config.vision_config.image_size)


def check_values(name: str, model: torch.nn.Module) -> None:
    """Refuses, as `CheckpointError`, weights with values that are no finite numbers."""
    for key, weight in model.named_parameters():
        if all_finite(weight) is False:
            raise CheckpointError(f"{name} cannot be loaded: {key} holds values that are no finite numbers.")


def read_threshold(name: str, level: float) -> float | None:
    """The threshold that a checkpoint keeps for a level; None where it was never calibrated.

    Args:
        name: model folder or Hub id.

    Raises:
        CalibrationError: a level that is not kept, or a damaged file.
    """
    found = _file_beside(name, CALIBRATION_FILE)
    if found is None:
        return None
    try:
        thresholds = json.loads(Path(found).read_text(encoding="utf-8"))["thresholds"]
        thresholds = {key: float(value) for key, value in thresholds.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{found} is damaged ({type(error).__name__}): run calibrate.py anew.") from error
    for key, value in thresholds.items():
        if not (math.isfinite(value) and value >= 0):
            raise CalibrationError(f"{found} is damaged (the threshold of {key} is {value}): run calibrate.py anew.")
    if f"{level:.2f}" not in thresholds or not math.isclose(level, round(level, 2)):
        raise CalibrationError(f"--level {level}: use one of {LEVELS[0]:.2f}, {LEVELS[1]:.2f} ... {LEVELS[-1]:.2f}.")
    return thresholds[f"{level:.2f}"]


def read_typicality(name: str, config: CLIPKOAConfig | None = None) -> Typicality | None:
    """What a checkpoint knows of its training X-rays; None where it was never calibrated with them at hand.

    Args:
        name: model folder or Hub id.
        config: of its model, which it must fit.

    Raises:
        CalibrationError: a damaged file, or another model's.
    """
    found = _file_beside(name, TYPICALITY_FILE)
    if found is None:
        return None
    try:
        with safe_open(found, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in ("mean", "precision", "distances")}
            typicality = Typicality(block=int(file.metadata()["block"]), **tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{found} is damaged ({type(error).__name__}): run calibrate.py anew.") from error
    if wrong := _fault(typicality, config):
        raise CalibrationError(f"{found} is damaged ({wrong}): run calibrate.py anew.")
    return typicality


def _fault(typicality: Typicality, config: CLIPKOAConfig | None) -> str:
    """What is wrong with it, in itself or for a model; empty where nothing is."""
    mean, precision, distances = typicality.mean, typicality.precision, typicality.distances
    width = len(mean) if mean.ndim == 1 else 0
    if not width or precision.shape != (width, width) or distances.ndim != 1 or not len(distances):
        return "its tensors do not fit each other"
    if not all(tensor.is_floating_point() and all_finite(tensor) for tensor in (mean, precision, distances)):
        return "it holds values that are no finite numbers"
    if (distances.diff() < 0).any():
        return "its distances are not sorted"
    if config is None:
        return ""
    vision = config.vision_config
    if width != vision.hidden_size or not 0 <= typicality.block < vision.num_hidden_layers:
        return f"block {typicality.block} of width {width} is not in this model"
    return ""


def _file_beside(name: str, file: str) -> Path | None:
    """A file of a model folder or Hub repository; None where it has none."""
    found = Path(name) / file
    if not Path(name).is_dir():
        found = cached_file(name, file, _raise_exceptions_for_missing_entries=False)
    return Path(found) if found and Path(found).is_file() else None
