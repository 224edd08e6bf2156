"""A model that grades in OpenVINO, the compiler for CPUs, as the checkpoint does in PyTorch."""

from __future__ import annotations

import io
import json
import math
import threading
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import torch

from clip_koa.grading.model_loading import (
    CheckpointError,
    checked_image_processor,
    load_checkpoint,
    load_config,
    readable,
)
from clip_koa.grading.openvino_cache import entry_name, find_entry, forget_entry, keep_entry
from modeling_clip_koa import LocalisationError, XrayPreprocessor
from modeling_clip_koa.grading_clip_koa import Beside, GradesXrays

if TYPE_CHECKING:
    from modeling_clip_koa import CLIPKOAConfig, CLIPKOAForImageClassification, Explanation

GRADING, FINDING = "grading", "finding"
NETWORK_FILE = "openvino_{}.xml"  # of an export; the weights lie in the .bin beside it
EXPORT_FILE = "openvino.json"  # of an export: its precision, and what it was made of
INPUT, OUTPUTS = "pixel_values", ("logits", "flipped_logits", "features")
KEPT_FILE = "kept.json"  # of a cache's entry: of the configuration and the image processor what grading reads
_HINTS = {"fp32": "f32", "bf16": "bf16", "int8": "f32", "int8+bf16": "bf16"}
# Images of one request: what is computed of more fits the caches of a processor less well.
_PARTS = {GRADING: 2, FINDING: 16}
_VISION = ("hidden_size", "num_hidden_layers", "image_size", "patch_size")
_SETTINGS = ("do_resize", "size", "resample", "do_center_crop", "crop_size")


class OpenVINOModel(GradesXrays):
    """The networks of a checkpoint, or of an export in 8 bits, compiled for this machine's processor.

    They are converted from the PyTorch module, compiled, and kept by `openvino_cache`. Started again, it imports them
    alone: no weights are read then, nor is transformers imported for a model folder. Several threads may grade with
    one model.

    Fewer images than there are threads are computed by all threads together. Of more, each thread computes some by
    itself, which is faster: none waits for another.

    Args:
        name: model folder or Hub id, or a folder that `clip-koa export-openvino` wrote.
        precision: fp32, int8 (of an export alone), bf16, or auto, bf16 where the processor has it, which of an export
            is for what is not in 8 bits; default: that of the export, else fp32.
        keep: keep the compiled networks for the next start.

    Raises:
        CheckpointError: no such model, a damaged one, or a precision that it or the processor does not have.
        ImportError: OpenVINO is not installed.
    """

    def __init__(self, name: str | Path, precision: str | None = None, keep: bool = True):
        self._name, self._export = str(name), read_export(name)
        import openvino

        self._core = openvino.Core()
        # Where they are kept, the networks say what grading needs to know of the configuration.
        self._config = None if Path(name).is_dir() else load_config(self._name)
        self.precision = self._precision(precision)
        self._checkpoint: CLIPKOAForImageClassification | None = None
        self._threads, self._lock = torch.get_num_threads(), threading.Lock()
        self._networks = {}  # by their part and how many streams of threads they have
        self._idle = defaultdict(list)  # likewise, requests that compute nothing now: a new one waits for the others
        self._blobs = {}  # by their part, what `import_model` reads
        self.entry = find_entry(self._name, self._entry_name()) if keep else None
        self.was_compiled = self.entry is None or not self._read_entry()
        if self.was_compiled:
            self._compile(keep)

    @property
    def config(self) -> CLIPKOAConfig | _KeptConfig:
        """The model's configuration, or what is kept of it with the compiled networks."""
        if self._config is None:
            self._config = load_config(self._name)
        return self._config

    def _entry_name(self) -> str:
        machine = {name: str(self._core.get_property("CPU", name)) for name in _MACHINE}
        return entry_name(self._name, precision=self.precision, **machine)

    @property
    def is_export(self) -> bool:
        """Whether it is the networks alone, without the checkpoint that they came from."""
        return self._export is not None

    def _precision(self, asked: str | None) -> str:
        own = self._export["precision"] if self._export else None
        if own and asked not in (None, own, "auto"):
            raise CheckpointError(f"{self._name} is an export in {own}: leave --precision {asked} out.")
        if asked == "int8" and not own:
            raise CheckpointError(
                f"--precision int8: {self._name} must be calibrated for it (clip-koa export-openvino {self._name} "
                "FOLDER --data_dir XRAYS); then name that FOLDER as --model."
            )
        has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if asked == "bf16" and not has_bf16:
            raise CheckpointError("--precision bf16: this processor does not compute in it; use fp32.")
        rough = has_bf16 and asked in ("bf16", "auto")
        if own:
            return f"{own}+bf16" if rough else own
        return "bf16" if rough else "fp32"

    def _options(self, streams: int) -> dict:
        return {
            "INFERENCE_PRECISION_HINT": _HINTS[self.precision],  # never what OpenVINO thinks best for the machine
            "INFERENCE_NUM_THREADS": self._threads,
            "NUM_STREAMS": streams,
            "ENABLE_CPU_PINNING": False,  # several processes would be bound to the same cores
        }

    def _read_entry(self) -> bool:
        """Takes what an entry of the cache holds; returns whether it could."""
        try:
            config, preprocess = _read_kept(self.entry / KEPT_FILE, self._name)
            blobs = {path.stem: np.memmap(path, dtype=np.uint8, mode="r") for path in self.entry.glob("*.blob")}
            self._blobs = {GRADING: blobs[GRADING], **blobs}
        except (OSError, ValueError, KeyError):  # a disk that was full, a file that was edited
            self._forget_entry()
            return False
        self._config = config
        self.beside = Beside.read(self._name, config, preprocess)
        return True

    def _forget_entry(self) -> None:
        forget_entry(self.entry)
        self.entry = None

    def _network(self, part: str, streams: int):
        """A compiled network, imported when it is first asked for."""
        with self._lock:
            if (part, streams) not in self._networks:
                self._networks[part, streams] = self._import_network(part, streams)
            return self._networks[part, streams]

    def _import_network(self, part: str, streams: int):
        from openvino import Tensor

        content = Tensor(self._blobs[part])
        try:
            return self._core.import_model(content, "CPU", self._options(streams))
        except RuntimeError:
            if self.was_compiled:
                raise
            self.was_compiled = True
            self._forget_entry()
            self._compile(keep=True)
            return self._import_network(part, streams)

    def _compile(self, keep: bool) -> None:
        """Compiles the networks, and keeps them for the next start if they are to be."""
        if self._export:
            with readable(self._name):
                networks = {part: self._core.read_model(path) for part, path in _exported(self._name).items()}
            self.beside = Beside.read(self._name, self.config)
            checked_image_processor(self._name, self.beside, self.config.vision_config.image_size)
        else:
            model, _ = load_checkpoint(self._name, dtype=torch.float32)
            networks, self.beside = convert(model), model.beside
        with readable(self._name):
            for part, network in networks.items():
                content = io.BytesIO()
                self._core.compile_model(network, "CPU", self._options(1)).export_model(content)
                self._blobs[part] = np.frombuffer(content.getbuffer(), np.uint8)
        if keep:  # named anew, for the files of a Hub id are all there only now
            files = {KEPT_FILE: _kept(self.config, self.beside.preprocess)}
            files |= {f"{part}.blob": blob for part, blob in self._blobs.items()}
            self.entry = keep_entry(self._name, self._entry_name(), files)

    def grade_pixels(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 3, H, W) -> logits (N, K), the mirror images' (N, K), features (N, D)."""
        return tuple(self._run(GRADING, pixel_values))

    def tokens_after(self, pixel_values: torch.Tensor, count: int, any_size: bool = False) -> torch.Tensor:
        """The tokens, (V, T, D), of windows of the locator's size after the blocks that it passes."""
        (tokens,) = self._run(FINDING, pixel_values)
        return tokens

    def _run(self, part: str, pixel_values: torch.Tensor) -> list[torch.Tensor]:
        images = pixel_values.contiguous().numpy()
        streams = self._threads if len(images) >= self._threads else 1
        parts = streams * math.ceil(len(images) / (streams * _PARTS[part])) if streams == self._threads else 1
        network, idle = self._network(part, streams), self._idle[part, streams]
        requests = []
        for some in np.array_split(images, parts):
            if len(some):
                requests.append(_take(idle) or network.create_infer_request())
                requests[-1].start_async([some], share_inputs=True)
        found = []
        for request in requests:
            request.wait()
            found.append([tensor.data for tensor in request.output_tensors])
        whole = [torch.from_numpy(np.concatenate(same)) for same in zip(*found, strict=True)]
        idle += requests
        return whole

    @property
    def can_find_knees(self) -> bool:
        """Whether a locator was fitted to the checkpoint."""
        return self.beside.has_locator

    def explain(self, *arguments, **options) -> Explanation:
        """As the checkpoint, which PyTorch reads when it is first asked: compiled networks give no gradients.

        Raises:
            CheckpointError: the networks were exported without it.
        """
        if self._export:
            raise CheckpointError("An exported network cannot explain: load the checkpoint it was exported from.")
        if self._checkpoint is None:
            self._checkpoint, _ = load_checkpoint(self._name, dtype=torch.float32)
        return self._checkpoint.explain(*arguments, **options)


_MACHINE = ("FULL_DEVICE_NAME", "OPTIMIZATION_CAPABILITIES")


def _take(idle: list):
    """One of several, or None; other threads take from them, too."""
    with suppress(IndexError):
        return idle.pop()


def convert(model: CLIPKOAForImageClassification) -> dict:
    """The networks of a model in OpenVINO's form, in fp32: what grades, and what finds knees if it has a locator.

    A damaged locator is told where knees are looked for, as in PyTorch.
    """
    import openvino

    from clip_koa.grading.networks import FindingNetwork, GradingNetwork, quiet

    beside = model.beside
    parts = {GRADING: (GradingNetwork(model), OUTPUTS)}
    sizes = {GRADING: model.config.vision_config.image_size}
    locator = None
    with suppress(LocalisationError):
        locator = beside.locator
    if locator:
        parts[FINDING], sizes[FINDING] = (FindingNetwork(model, locator.blocks), ("tokens",)), locator.window
    networks = {}
    for part, (network, outputs) in parts.items():
        shape = (model.config.vision_config.num_channels, sizes[part], sizes[part])
        with quiet(), torch.inference_mode(False), torch.no_grad():
            networks[part] = openvino.convert_model(
                network, example_input=torch.zeros(2, *shape), input=[(INPUT, [-1, *shape])]
            )
        for output, given in zip(networks[part].outputs, outputs, strict=True):
            output.get_tensor().set_names({given})
    return networks


def read_export(folder: str | Path) -> dict | None:
    """What `EXPORT_FILE` of an exported folder says; None of any other folder.

    Raises:
        CheckpointError: it is damaged.
    """
    path = Path(folder) / EXPORT_FILE
    if not path.is_file():
        return None
    try:
        export = json.loads(path.read_text(encoding="utf-8"))
        if export["precision"] not in _HINTS:
            raise ValueError
        return export
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged: run clip-koa export-openvino anew.") from error


def _exported(folder: str) -> dict[str, Path]:
    paths = {part: Path(folder) / NETWORK_FILE.format(part) for part in (GRADING, FINDING)}
    if not paths[GRADING].is_file():
        raise CheckpointError(f"{folder} holds no {paths[GRADING].name}: run clip-koa export-openvino anew.")
    return {part: path for part, path in paths.items() if path.is_file()}


@dataclass(frozen=True)
class _KeptConfig:
    """Of a configuration what grading reads."""

    id2label: dict[int, str]
    vision_config: SimpleNamespace  # with `_VISION`

    @property
    def num_labels(self) -> int:
        return len(self.id2label)


class _KeptProcessor:
    """An image processor whose settings are known; transformers' own is read where a picture needs more of it."""

    def __init__(self, name: str, config: _KeptConfig, settings: dict):
        self._name, self._config = name, config
        vars(self).update({setting: settings[setting] for setting in _SETTINGS})

    def __call__(self, *arguments, **options):
        return Beside.read(self._name, self._config).image_processor(*arguments, **options)


def _kept(config: CLIPKOAConfig, preprocess: XrayPreprocessor) -> bytes:
    processor = preprocess.image_processor
    settings = {name: getattr(processor, name, None) for name in _SETTINGS}
    settings |= {name: dict(settings[name] or {}) for name in ("size", "crop_size")}
    settings["resample"] = int(settings["resample"])
    labels = [config.id2label[grade] for grade in range(config.num_labels)]
    vision = {name: getattr(config.vision_config, name) for name in _VISION}
    kept = {"labels": labels, "vision": vision, "settings": settings, "shades": preprocess.shades.tolist()}
    return json.dumps(kept).encode()


def _read_kept(path: Path, name: str) -> tuple[_KeptConfig, XrayPreprocessor]:
    kept = json.loads(path.read_text(encoding="utf-8"))
    vision = SimpleNamespace(**{field: kept["vision"][field] for field in _VISION})
    config = _KeptConfig(dict(enumerate(kept["labels"])), vision)
    processor = _KeptProcessor(name, config, kept["settings"])
    return config, XrayPreprocessor(processor, torch.tensor(kept["shades"]))
