"""Where the knees lie in a picture, and whether there are any: a small head on the lower half of the vision tower."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, ImageOps
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from .calibration_clip_koa import file_beside
from .frames_clip_koa import inside_of_frames, shrink
from .preprocessing_clip_koa import CLIPKOAError

if TYPE_CHECKING:
    from .configuration_clip_koa import CLIPKOAConfig

LOCALISATION_FILE = "localisation.safetensors"
# What may be known of the sides of an image's knees, from its left to its right.
KNOWN_SIDES = ("", "R", "L", "RL", "LR")
# A knee of whose box a larger share lies outside of the picture is cut off.
MOST_OUTSIDE = 0.1
NO_LOCATOR = "This checkpoint cannot find knees yet: clip-koa fit-framing --model FOLDER --data_dir TRAINING_XRAYS."
UNIT_DEGREES = 15.0  # of the angles that a locator gives
# What becomes of an answer where the window is mirrored.
_MIRRORED = (-1.0, 1.0, 1.0, -1.0, 1.0, 1.0)
# The sides of neighbouring levels of a pyramid differ by this.
_STEP = math.sqrt(2)
TYPICAL_AXES = 64  # directions in which framed knees differ most
_BATCH_SIZE = 32
_MOST_PIXELS = 16_000_000  # of the pictures in which knees are looked for together

# A picture is framed already where the box that is found is the picture itself to within these: shares of its side,
# and the logarithm of the scale. Nearer than that a box is not known (docs/framing.md).
_FRAMED_OFFSET, _FRAMED_SCALE = 0.08, 0.14
_FRAMED_ASPECT = 1.1
# One view is enough where it is within this share of the limits, and as sure as this (docs/framing.md).
_CLEARLY, _CLEARLY_SURE = 0.6, 0.9
# A knee that leans by more degrees is set upright.
_TURNED = 5.0
# Windows of a search: their sides as shares of the shorter side of what is searched, and how far the next one lies.
_SEARCHED, _STRIDE = ((1.0, 0.5), (0.27,)), 0.45
_MOST_WINDOWS = 160
# A window may be followed to a knee from this confidence on; a knee is one from the second on.
_HINT, _SURE = 0.25, 0.7
_FOLLOWED, _STEPS = 6, 3
# Two boxes that share more than this (intersection over union) are the same knee.
_SAME = 0.3
# Two knees of a film: how much larger one may be, and how much higher, in sides.
_MOST_RATIO, _MOST_HIGHER = 1.5, 0.8


@dataclass(frozen=True)
class Knee:
    """A knee that was found in a picture."""

    box: tuple[int, int, int, int]  # left, top, right, bottom: a square in the picture's pixels, as training crops lie
    side: str = ""  # "R", "L", or "" where it is not known
    confidence: float = 1.0  # that this is a frontal knee, 0..1
    side_assumed: bool = False  # whether the side is only that of films as they are usually shown
    angle: float = 0.0  # degrees by which it leans clockwise, where it leans so far that it is to be set upright
    framed: bool = False  # whether the picture is cropped to this knee already and is to stay as it is
    outside: float = 0.0  # share of the box that lies outside of the picture, 0..1


class Pyramid:
    """A picture in several sizes, out of which windows of any place, size and angle are cut.

    What is cut of the mirror image is the mirror image of what is cut, to the bit.

    Args:
        picture: mode L.
    """

    def __init__(self, picture: Image.Image):
        self.picture = picture
        self._levels: dict[int, tuple[Image.Image, Image.Image]] = {}

    def window(self, centre: tuple[float, float], side: float, size: int, angle: float = 0.0) -> Image.Image:
        """A square window (mode L), black where it reaches out of the picture.

        Args:
            centre: (x, y) in the picture's pixels; x from its middle, so that mirrored places are exact opposites.
            side: in the picture's pixels.
            size: of what is given, in pixels.
            angle: by which the window is turned, in degrees clockwise as one sees it.
        """
        level, mirrored = self._level(round(math.log(max(1.0, side / size), _STEP)))
        scale = level.width / self.picture.width, level.height / self.picture.height
        across, down = centre[0] * scale[0], centre[1] * scale[1]
        step = side / size * scale[0], side / size * scale[1]
        one = _sample(level, (level.width / 2 + across, down), step, size, angle)
        other = _sample(mirrored, (level.width / 2 - across, down), step, size, -angle)[:, ::-1]
        return Image.fromarray(((one + other + 1) // 2).astype(np.uint8))

    def _level(self, number: int) -> tuple[Image.Image, Image.Image]:
        """The picture and its mirror image, smaller by `_STEP` to the power of `number`."""
        if number not in self._levels:
            size = tuple(max(1, round(length / _STEP**number)) for length in self.picture.size)
            level = self.picture if number == 0 else shrink(self.picture, size)
            self._levels[number] = level, ImageOps.mirror(level)
        return self._levels[number]


def _sample(level: Image.Image, centre, step, size: int, angle: float) -> np.ndarray:
    """Values (size, size) uint16 of a turned window, whose pixels are `step` (x, y) of the level's apart."""
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    # Each row: x (or y) of the level = a * x + b * y + c for pixels of the window. Corners lie at whole numbers.
    across = step[0] * cosine, -step[0] * sine
    down = step[1] * sine, step[1] * cosine
    half = size / 2
    data = (*across, centre[0] - half * sum(across), *down, centre[1] - half * sum(down))
    return np.asarray(
        level.transform((size, size), Image.Transform.AFFINE, data, Image.Resampling.BILINEAR), np.uint16
    )


class KneeLocator(nn.Module):
    """Says of a window where the knee lies in it, how large, how turned, and whether there is one.

    It reads the patch tokens of a lower block of the vision tower, (N, P, D), and gives (N, 5): how far the middle of
    the knee's box is right of and below the window's, in window sides; the natural logarithm of the box's side over
    the window's; the angle clockwise, in `UNIT_DEGREES`; and the logit of there being a knee.

    Args:
        width: D.
        patches: P.
        blocks: how many blocks of the tower are passed.
        window: side of the windows in pixels.
        channels, hidden: widths of its two inner layers.
    """

    def __init__(self, width: int, patches: int, blocks: int, window: int, channels: int = 48, hidden: int = 96):
        super().__init__()
        self.blocks, self.window = blocks, window
        self.register_buffer("image_mean", torch.zeros(3))
        self.register_buffer("image_std", torch.ones(3))
        self.register_buffer("centre", torch.zeros(width))
        self.register_buffer("spread", torch.ones(width))
        # What framed knees look like: Gaussian in some directions of the mean token and in the length of the rest.
        self.register_buffer("typical_mean", torch.zeros(width))
        self.register_buffer("typical_axes", torch.zeros(width, min(TYPICAL_AXES, width)))
        self.register_buffer("typical_centre", torch.zeros(min(TYPICAL_AXES, width) + 1))
        self.register_buffer("typical_precision", torch.zeros(*[min(TYPICAL_AXES, width) + 1] * 2))
        self.register_buffer("typical_limit", torch.ones(()))
        self.reduce = nn.Linear(width, channels)
        self.join = nn.Linear(patches * channels, hidden)
        self.give = nn.Linear(hidden, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        reduced = nn.functional.gelu(self.reduce((tokens.float() - self.centre) / self.spread))
        return self.give(nn.functional.gelu(self.join(reduced.flatten(1))))

    @torch.inference_mode()
    def pixels(self, windows: Sequence[Image.Image]) -> torch.Tensor:
        """The pixel values (N, 3, H, W) of windows (mode L, `window` pixels a side), as the tower takes them."""
        values = torch.from_numpy(np.stack([np.asarray(window) for window in windows])).float() / 255
        return (values[:, None] - self.image_mean[:, None, None]) / self.image_std[:, None, None]

    @torch.inference_mode()
    def tokens(self, model, windows: Sequence[Image.Image]) -> torch.Tensor:
        """The tokens (N, P, D) of windows (mode L, `window` pixels a side)."""
        return model.tokens_after(self.pixels(windows), self.blocks, any_size=True)[:, 1:].float().cpu()

    def traits(self, tokens: torch.Tensor) -> torch.Tensor:
        """By what framed knees are told from other images: (N, K + 1), of tokens (N, P, D)."""
        centred = tokens.double().mean(1) - self.typical_mean.double()
        along = centred @ self.typical_axes.double()
        rest = (centred.square().sum(1) - along.square().sum(1)).clamp(min=0).sqrt()
        return torch.cat([along, rest[:, None]], dim=1)

    def strangeness(self, tokens: torch.Tensor) -> torch.Tensor:
        """How unlike a framed knee windows are, (N,): a Mahalanobis distance, squared, over what is still a knee's."""
        apart = self.traits(tokens) - self.typical_centre.double()
        return (apart @ self.typical_precision.double() * apart).sum(1) / self.typical_limit.double()

    @torch.inference_mode()
    def locate(self, model, windows: Sequence[Image.Image]) -> np.ndarray:
        """What `forward` gives and `strangeness`, (N, 6), averaged over windows and their mirror images.

        In place of the logit is the confidence, 0..1.
        """
        found = []
        for start in range(0, len(windows), _BATCH_SIZE):
            views = list(windows[start : start + _BATCH_SIZE])
            views += [ImageOps.mirror(view) for view in views]
            one, other = self._see(model, views).chunk(2)
            found.append((one + other * torch.tensor(_MIRRORED)) / 2)
        return _confident(found)

    @torch.inference_mode()
    def glance(self, model, windows: Sequence[Image.Image]) -> np.ndarray:
        """What `locate` gives, (N, 6), from one view of each window, for half the work.

        It is the window or its mirror image, whichever has the smaller bytes: mirrored windows have mirrored answers.
        """
        found = []
        for start in range(0, len(windows), _BATCH_SIZE):
            pairs = [(window, ImageOps.mirror(window)) for window in windows[start : start + _BATCH_SIZE]]
            turned = [mirror.tobytes() < window.tobytes() for window, mirror in pairs]
            seen = self._see(model, [pair[turn] for pair, turn in zip(pairs, turned, strict=True)])
            found.append(torch.where(torch.tensor(turned)[:, None], seen * torch.tensor(_MIRRORED), seen))
        return _confident(found)

    def _see(self, model, views: list[Image.Image]) -> torch.Tensor:
        """What `forward` gives and `strangeness`, (N, 6), of windows as they are."""
        tokens = self.tokens(model, views)
        return torch.cat([self(tokens).double(), self.strangeness(tokens)[:, None]], dim=1)


def _confident(found: list[torch.Tensor]) -> np.ndarray:
    """Answers (N, 6) of several batches, with the confidence in place of its logit."""
    found = torch.cat(found) if found else torch.empty(0, 6)
    found[:, 4] = found[:, 4].sigmoid()
    return found.numpy()


@dataclass(frozen=True)
class _Guess:
    """A box (its middle, side, angle), how sure it is that a knee lies there, and how strange its window was.

    x is from the picture's middle.
    """

    x: float
    y: float
    side: float
    angle: float = 0.0
    confidence: float = 0.0
    strange: float = 0.0

    @property
    def sure(self) -> bool:
        """Whether it is a knee, once its window is the box itself or nearly."""
        return self.confidence >= _SURE and self.strange <= 1

    def window(self, pyramid: Pyramid, size: int) -> Image.Image:
        return pyramid.window((self.x, self.y), self.side, size, self.angle)

    def moved(self, answer: np.ndarray) -> _Guess:
        """The box that a locator sees from this one as a window; `answer` is (6,)."""
        across, down, scale, turn, confidence, strange = answer.tolist()
        cosine, sine = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        return _Guess(
            self.x + self.side * (cosine * across - sine * down),
            self.y + self.side * (sine * across + cosine * down),
            self.side * math.exp(min(1.2, max(-1.2, scale))),
            min(30.0, max(-30.0, self.angle + UNIT_DEGREES * turn)),
            confidence,
            strange,
        )

    def overlap(self, other: _Guess) -> float:
        """Intersection over union, as if both were upright."""
        across, down = (
            max(0.0, (self.side + other.side) / 2 - max(abs(a - b), abs(self.side - other.side) / 2))
            for a, b in ((self.x, other.x), (self.y, other.y))
        )
        shared = across * down
        return shared / (self.side**2 + other.side**2 - shared)


def find_knees(model, locator: KneeLocator, pictures: Iterable[Image.Image]) -> list[list[Knee]]:
    """The knees in each picture, at most two, the one at the left of the picture first.

    The mirror image gives the mirrored boxes. The windows of several pictures are looked at together, which is faster;
    a picture has the same knees by itself.

    Args:
        model: in evaluation mode.
        locator: fitted to this model.
        pictures: upright, mode L, bone bright, as `read_picture` gives them. They are taken as they are needed.

    Returns:
        For each picture a list: empty where there is no frontal knee. `name_sides` says which knee is which.
    """
    return [knees for group in group_pictures(pictures) for knees in _find_in_group(model, locator, group)]


def group_pictures(pictures: Iterable[Image.Image]) -> Iterator[list[Image.Image]]:
    """Pictures in groups of so few pixels that memory can hold each of them in several sizes."""
    group, pixels = [], 0
    for picture in pictures:
        area = picture.width * picture.height
        if group and (pixels + area > _MOST_PIXELS or len(group) == _BATCH_SIZE):
            yield group
            group, pixels = [], 0
        group.append(picture)
        pixels += area
    if group:
        yield group


def _find_in_group(model, locator: KneeLocator, pictures: list[Image.Image]) -> list[list[Knee]]:
    """`find_knees` of pictures that memory holds at once."""
    pyramids = [Pyramid(picture) for picture in pictures]
    framed = _glance(model, locator, pyramids)
    others = [pyramid for pyramid, knee in zip(pyramids, framed, strict=True) if not knee]
    found = iter(_find_together(model, locator, others))
    return [[knee] if knee else next(found) for knee in framed]


def _glance(model, locator: KneeLocator, pyramids: list[Pyramid]) -> list[Knee | None]:
    """The knees that pictures are clearly framed to, as most of an archive are; None for the others."""
    wholes = [_whole(pyramid.picture) for pyramid in pyramids]
    windows = [
        _central(whole, pyramid.picture.width).window(pyramid, locator.window)
        for whole, pyramid in zip(wholes, pyramids, strict=True)
    ]
    found: list[Knee | None] = []
    for answer, whole, pyramid in zip(locator.glance(model, windows), wholes, pyramids, strict=True):
        is_framed = _is_framed(answer, whole, _CLEARLY, _CLEARLY_SURE)
        found.append(_framed_knee(whole, pyramid.picture, float(answer[4])) if is_framed else None)
    return found


def _find_together(model, locator: KneeLocator, pyramids: list[Pyramid]) -> list[list[Knee]]:
    """The knees of pictures that are not clearly framed."""
    pictures = [pyramid.picture for pyramid in pyramids]
    insides = [inside_of_frames(picture) for picture in pictures]
    starts = [
        [_central(box, picture.width) for box in _boxes(picture, inside)]
        for picture, inside in zip(pictures, insides, strict=True)
    ]
    answers = iter(
        _look(model, locator, [(pyramid, guesses) for pyramid, guesses in zip(pyramids, starts, strict=True)])
    )
    first = [next(answers) for _ in pictures]
    framed = [
        next(
            (box for (answer, _), box in zip(found, _boxes(picture, inside), strict=True) if _is_framed(answer, box)),
            None,
        )
        for picture, inside, found in zip(pictures, insides, first, strict=True)
    ]
    likely = [
        [] if box else [max((guess for _, guess in found), key=lambda guess: guess.confidence)]
        for box, found in zip(framed, first, strict=True)
    ]
    second = _look(
        model,
        locator,
        [
            (pyramid, [guess for guess in guesses if guess.confidence >= _HINT])
            for pyramid, guesses in zip(pyramids, likely, strict=True)
        ],
    )
    knees = []
    for number, picture in enumerate(pictures):
        if framed[number]:
            confidence = max(guess.confidence for _, guess in first[number])
            knees.append([_framed_knee(framed[number], picture, confidence)])
            continue
        found = [guess for _, guess in second[number] if guess.sure]
        if not found or _has_room_beside(found[0], insides[number], picture.width):
            found = _search(model, locator, pyramids[number], insides[number])
        found = sorted(_choose(found), key=lambda guess: guess.x)
        knees.append([_as_knee(guess, picture.size) for guess in found])
    return knees


def _look(model, locator, asked) -> list[list[tuple[np.ndarray, _Guess]]]:
    """What the locator says of guesses in pictures, all in one: for each the answer (6,) and the guess it leads to.

    Args:
        asked: for each picture its pyramid and guesses.
    """
    windows = [guess.window(pyramid, locator.window) for pyramid, guesses in asked for guess in guesses]
    answers = iter(locator.locate(model, windows))
    return [[(answer := next(answers), guess.moved(answer)) for guess in guesses] for _, guesses in asked]


def _central(box, width: int) -> _Guess:
    left, top, right, bottom = box
    return _Guess((left + right - width) / 2, (top + bottom) / 2, min(right - left, bottom - top))


def _boxes(picture: Image.Image, inside) -> list[tuple[int, int, int, int]]:
    """Where a knee is looked for first: the whole picture, and what lies inside its frames."""
    return list(dict.fromkeys([_whole(picture), inside]))


def _whole(picture: Image.Image) -> tuple[int, int, int, int]:
    return 0, 0, *picture.size


def _is_framed(answer: np.ndarray, box, share: float = 1.0, least: float = _SURE) -> bool:
    """Whether a box is that of a knee already, by the answer (6,) on its central square.

    Args:
        share: of the limits, to which it must hold.
        least: confidence.
    """
    across, down, scale, turn, confidence, strange = np.abs(answer)
    placed = max(across, down) <= share * _FRAMED_OFFSET and scale <= share * _FRAMED_SCALE
    upright, is_knee = turn * UNIT_DEGREES <= share * _TURNED, confidence >= least and strange <= share
    sides = box[2] - box[0], box[3] - box[1]
    return bool(placed and upright and is_knee and max(sides) <= _FRAMED_ASPECT * min(sides))


def _framed_knee(box, picture: Image.Image, confidence: float) -> Knee:
    return Knee(box, confidence=confidence, framed=box == _whole(picture))


def _has_room_beside(guess: _Guess, inside, width: int) -> bool:
    """Whether another knee may lie beside this one."""
    middle = guess.x + width / 2
    return max(middle - inside[0], inside[2] - middle) > 1.3 * guess.side


def _follow(model, locator, pyramid: Pyramid, guesses: list[_Guess], steps: int) -> list[_Guess]:
    """The guesses after some steps, of those that stay likely; those that become one are one."""
    for _ in range(steps):
        guesses = [guess for _, guess in _look(model, locator, [(pyramid, guesses)])[0]]
        guesses = _distinct([guess for guess in guesses if guess.confidence >= _HINT])
    return [guess for guess in guesses if guess.sure]


def _distinct(guesses: list[_Guess]) -> list[_Guess]:
    """The surest first, without those that overlap a surer one."""
    kept: list[_Guess] = []
    for guess in sorted(guesses, key=lambda guess: -guess.confidence):
        if all(guess.overlap(other) <= _SAME for other in kept):
            kept.append(guess)
    return kept


def _search(model, locator, pyramid: Pyramid, inside) -> list[_Guess]:
    """Knees of any size inside a box: windows over all of it, and steps from the likeliest ones."""
    for shares in _SEARCHED:
        starts = [guess for share in shares for guess in _grid(inside, share, pyramid.picture.width)][:_MOST_WINDOWS]
        guesses = [guess for _, guess in _look(model, locator, [(pyramid, starts)])[0]]
        guesses = _distinct([guess for guess in guesses if guess.confidence >= _HINT])[:_FOLLOWED]
        if found := _follow(model, locator, pyramid, guesses, _STEPS):
            return found
    return []


def _grid(inside, share: float, width: int) -> list[_Guess]:
    """Square windows over a box (left, top, right, bottom), placed alike from both its sides."""
    left, top, right, bottom = inside
    left, right = left - width / 2, right - width / 2
    side = share * min(right - left, bottom - top)
    places = []
    for low, high in ((left, right), (top, bottom)):
        count = 1 + math.ceil((high - low - side) / (_STRIDE * side) - 1e-6)
        middle, step = (low + high) / 2, (high - low - side) / max(1, count - 1)
        places.append([middle + step * (number - (count - 1) / 2) for number in range(count)])
    return [_Guess(x, y, side) for y in places[1] for x in places[0]]


def _choose(guesses: list[_Guess]) -> list[_Guess]:
    """The surest knee, and one that lies beside it and is of its size."""
    guesses = _distinct(guesses)
    if not guesses:
        return []
    first = guesses[0]
    for other in guesses[1:]:
        ratio = max(first.side, other.side) / min(first.side, other.side)
        mean = (first.side + other.side) / 2
        if ratio <= _MOST_RATIO and abs(first.y - other.y) <= _MOST_HIGHER * mean < 1.6 * abs(first.x - other.x):
            return [first, other]
    return [first]


def name_sides(knees: list[Knee], known: str = "") -> list[Knee]:
    """Knees, from left to right of their picture, with their sides; right knee first.

    Args:
        known: one of `KNOWN_SIDES`. Of two knees of which nothing is known, the left one of the picture is taken for
            the right knee, as films are shown.
    """
    if len(knees) == 1 and len(known) == 1:
        return [replace(knees[0], side=known)]
    if len(knees) != 2:
        return knees
    assumed = len(known) != 2
    sided = [
        replace(knee, side=side, side_assumed=assumed)
        for knee, side in zip(knees, "RL" if assumed else known, strict=True)
    ]
    return sorted(sided, key=lambda knee: knee.side, reverse=True)


def _as_knee(guess: _Guess, size: tuple[int, int]) -> Knee:
    # The sides are as even or odd as the picture is wide, and middles are counted from its middle: so mirrored boxes
    # are rounded alike.
    width, height = size
    side = max(2, 2 * round((guess.side - width % 2) / 2) + width % 2)
    left = round(guess.x) + (width - side) // 2
    top = round(guess.y - side / 2)
    box = left, top, left + side, top + side
    across, down = (
        max(0, min(high, end) - max(low, 0)) for low, high, end in (box[::2] + (width,), box[1::2] + (height,))
    )
    angle = guess.angle if abs(guess.angle) > _TURNED else 0.0
    return Knee(box, "", guess.confidence, angle=angle, outside=1 - across * down / side**2)


def cut_knee(picture: Image.Image, knee: Knee) -> Image.Image:
    """The picture of one knee, as training crops are: the picture itself where it is one already.

    What lies outside of the picture is black. The mirror image gives the mirrored one.
    """
    if knee.framed:
        return picture
    if not knee.angle:
        return picture.crop(knee.box)
    left, top, right, bottom = knee.box
    side = right - left
    return Pyramid(picture).window(((left + right - picture.width) / 2, (top + bottom) / 2), side, side, knee.angle)


class LocalisationError(CLIPKOAError, ValueError):
    """A locator that is missing or damaged; the message says what would be right."""


def locator_file(locator: KneeLocator) -> bytes:
    """The content of `LOCALISATION_FILE`."""
    tensors = {name: value.detach().contiguous() for name, value in locator.state_dict().items()}
    # One entry, since those of a header come in no order.
    return save(tensors, metadata={"reads": f"{locator.blocks} blocks, {locator.window} pixels"})


def read_locator(name: str, config: CLIPKOAConfig, **hub_arguments) -> KneeLocator | None:
    """The locator that a checkpoint keeps; None where none was fitted to it.

    Args:
        name: model folder or Hub id.
        config: of its model, which it must fit.
        **hub_arguments: for a Hub id, such as `revision`.

    Raises:
        LocalisationError: a damaged file, or another model's.
    """
    path = file_beside(name, LOCALISATION_FILE, **hub_arguments)
    return None if path is None else load_locator(path, config)


def load_locator(path: Path, config: CLIPKOAConfig) -> KneeLocator:
    """The locator in a file, for a model of this configuration; raises as `read_locator` does."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
            blocks, _, window, _ = file.metadata()["reads"].split()  # "6 blocks, 112 pixels"
        channels, width = state["reduce.weight"].shape
        hidden, joined = state["join.weight"].shape
        locator = KneeLocator(width, joined // channels, int(blocks), int(window), channels, hidden)
        locator.load_state_dict(state)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise LocalisationError(
            f"{path} is damaged ({type(error).__name__}): run clip-koa fit-framing anew."
        ) from error
    vision = config.vision_config
    if width != vision.hidden_size or joined != channels * (locator.window // vision.patch_size) ** 2:
        raise LocalisationError(f"{path} belongs to another model: run clip-koa fit-framing anew.")
    if locator.blocks > vision.num_hidden_layers or not all(torch.isfinite(value).all() for value in state.values()):
        raise LocalisationError(f"{path} is damaged (blocks, or values): run clip-koa fit-framing anew.")
    return locator.eval()
