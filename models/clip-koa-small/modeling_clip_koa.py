"""CLIP-KOA: CLIP that grades knee osteoarthritis on the Kellgren-Lawrence scale, consistently under mirroring.

After Jeong & Lee 2025, arXiv 2504.19443. The towers, projections and key names are `CLIPModel`'s; added are the tokens
and embeddings of the grade prompts, and a linear head in the place where stock `CLIPForImageClassification` has it.
"""

import copy
import math
import re
import shutil
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, CLIPModel
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import ModelOutput

from .calibration_clip_koa import mean_patch
from .configuration_clip_koa import AUTO_MAP, CLIPKOAConfig, check_prompts, prompts_digest
from .grading_clip_koa import Beside, GradesXrays
from .losses_clip_koa import as_targets, consistency_loss, symmetry_loss
from .tensors_clip_koa import Snapshot, all_finite, take_snapshot, truth
from .transformers4_clip_koa import block_output, mismatched_names, tokens_of

# CLIP's own bound on the temperature (Radford et al. 2021): logits are scaled by at most 100.
MAX_LOGIT_SCALE = math.log(100.0)

_NO_PROMPTS = "This model has no prompts yet: call model.set_prompts(prompts, tokenizer)."

# What `from_pretrained` passes on to find what lies beside the weights.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")

# What plain CLIP weights do not hold. Weights of the towers are never made up.
_HEADS = ("classifier.", "grade_prompts.")
_BLOCK = re.compile(r"(text|vision)_model\.encoder\.layers\.\d+\.")


@dataclass
class CLIPKOAOutput(ModelOutput):
    """Output of [`CLIPKOAForImageClassification`]. N X-rays, K grades, D projection dimensions.

    Args:
        loss: scalar, with labels: `symmetry_loss + consistency_weight * consistency_loss + classifier_weight *
            classifier_loss`.
        symmetry_loss: scalar; cross-entropy of the text head on both views (on the X-ray alone with `symmetry=False`).
        consistency_loss: scalar; distance of the text head's two distributions (0 with `consistency_weight=0`).
        classifier_loss: scalar; symmetry loss plus weighted consistency loss of the linear head.
        logits: (N, K), of the text head; at inference with `flip_average` the mean over X-ray and mirror image.
        flipped_logits: (N, K), of the text head for the mirror image alone; `None` where only one view was computed.
        classifier_logits: (N, K), of the linear head, averaged as `logits` is.
        flipped_classifier_logits: (N, K), of the linear head for the mirror image alone.
        image_embeds: (N, D), unit length, of the X-rays as given.
        grade_embeds: (K, D), unit length.
        hidden_states: tokens (V, T, W) before the vision tower's first block and after each, where asked for. V is N,
            or 2N where both views were computed: the X-rays, then their mirror images.
        attentions: (V, heads, T, T) of each block, where asked for (the implementation "eager" alone keeps them).
    """

    loss: torch.FloatTensor | None = None
    symmetry_loss: torch.FloatTensor | None = None
    consistency_loss: torch.FloatTensor | None = None
    classifier_loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    flipped_logits: torch.FloatTensor | None = None
    classifier_logits: torch.FloatTensor | None = None
    flipped_classifier_logits: torch.FloatTensor | None = None
    image_embeds: torch.FloatTensor | None = None
    grade_embeds: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None
    attentions: tuple[torch.FloatTensor, ...] | None = None


class GradePrompts(nn.Module):
    """What the checkpoint keeps of the prompts: their tokens (P, L) and the grades' embeddings (K, D)."""

    def __init__(self, config: CLIPKOAConfig):
        super().__init__()
        # Persistent, for other buffers hold garbage after from_pretrained.
        self.register_buffer("input_ids", torch.zeros(*config.prompt_shape, dtype=torch.long))
        self.register_buffer("embeds", torch.zeros(config.num_labels, config.projection_dim))


class KeptGradeEmbeds:
    """The grade embeddings that inference reads, and a snapshot of the text tower that they were computed by.

    A copy of a model, also one that is unpickled, starts without: it watches tensors of its own.
    """

    def __init__(self):
        self.forget()

    def forget(self) -> None:
        self.kept: tuple[Snapshot, torch.Tensor] | None = None

    def __deepcopy__(self, memo) -> "KeptGradeEmbeds":
        return KeptGradeEmbeds()

    def __reduce__(self):
        return KeptGradeEmbeds, ()


class LinearHead(nn.Linear):
    """The linear head; a class of its own so that `_init_weights` can tell it from the towers' layers."""


class CLIPKOAForImageClassification(GradesXrays, CLIPModel):
    """CLIP with a text head and a linear head for KL grades, trained and read on an X-ray and its mirror image.

    `grade` takes images as Pillow opens them, `forward` pixel values. What lies beside the weights that a model was
    loaded from, its image processor and calibration, goes with it and into what it is saved to. `train` leaves the
    calibration out, since it holds for the weights that it was fitted on, and what finds knees, unless all that it
    reads is frozen.

    A new model needs its prompts once: `model.set_prompts(prompts, tokenizer)`. `from_pretrained` does it where the
    checkpoint has none (plain CLIP weights) or where `prompts` in the config was edited.
    """

    config_class = CLIPKOAConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: CLIPKOAConfig):
        check_prompts(config.prompts, config.num_labels)
        super().__init__(config)
        self.num_labels = config.num_labels
        self.grade_prompts = GradePrompts(config)
        self.classifier = LinearHead(config.vision_config.hidden_size, config.num_labels)
        self.beside = Beside()
        self._kept_grade_embeds = KeptGradeEmbeds()
        self.register_state_dict_pre_hook(_refresh_before_saving)
        self.post_init()

    def _init_weights(self, module):
        super()._init_weights(module)
        # torch.nn.init leaves loaded tensors alone under from_pretrained; in-place edits would not.
        if isinstance(module, LinearHead):
            nn.init.normal_(module.weight, std=self.config.initializer_range)
            nn.init.zeros_(module.bias)
        elif isinstance(module, GradePrompts):
            nn.init.zeros_(module.input_ids)
            nn.init.zeros_(module.embeds)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Loads a CLIP-KOA checkpoint, or plain CLIP weights, whose heads are then new. See `PreTrainedModel`.

        With another `num_labels` (or `id2label`) and `prompts` for them, both heads are new and for these labels.

        Raises:
            ValueError: weights of the towers that are missing or not those the configuration describes; one of
                `num_labels` and `prompts` that does not fit the other; or prompts without a tokenizer for them.
        """
        with_info = kwargs.pop("output_loading_info", False)
        may_differ = kwargs.pop("ignore_mismatched_sizes", False)
        heads_may_differ = may_differ or "num_labels" in kwargs or "id2label" in kwargs
        # Auto classes put the labels that they are given into a config; its class may be of another copy of the code.
        if pretrained_model_name_or_path is not None and (prompts := getattr(kwargs.get("config"), "prompts", None)):
            stored, _ = CLIPKOAConfig.get_config_dict(pretrained_model_name_or_path, **_hub_arguments(kwargs))
            heads_may_differ |= len(stored.get("prompts") or prompts) != len(prompts)
        # Sizes are compared here: transformers' own report takes a line for each weight.
        kwargs |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        model, info = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        _check_weights(pretrained_model_name_or_path, info, may_differ, heads_may_differ)
        hub_arguments = _hub_arguments(kwargs)
        if pretrained_model_name_or_path is not None:
            model.beside = Beside.read(str(pretrained_model_name_or_path), model.config, **hub_arguments)
        edited = model.config.tokenized_prompts != prompts_digest(model.config.prompts)
        # Without tokens: the weights come from a stock CLIPModel, whatever its config still says.
        if edited or model.lacks_prompts():
            try:
                tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **hub_arguments)
            except Exception as error:  # transformers raises what a missing or damaged file happens to lead to
                raise ValueError(
                    f"The prompts must be tokenised, and the tokenizer of {pretrained_model_name_or_path} cannot be "
                    f"loaded: {error}"
                ) from error
            model.set_prompts(model.config.prompts, tokenizer)
        return (model, info) if with_info else model

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves the checkpoint with what lies beside it and the code that reads it: complete wherever it goes."""
        if self.config.tokenized_prompts != prompts_digest(self.config.prompts):
            raise ValueError("config.prompts was edited: call model.set_prompts(prompts, tokenizer) before saving.")
        if self.lacks_prompts():
            raise ValueError(_NO_PROMPTS)
        with torch.no_grad():
            self.logit_scale.clamp_(
                max=MAX_LOGIT_SCALE
            )  # as forward reads it; stock CLIPModel has no bound of its own
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)
        self.beside.save(Path(save_directory))
        for source in Path(__file__).parent.glob("*_clip_koa.py"):
            target = Path(save_directory) / source.name
            if not (target.exists() and target.samefile(source)):
                shutil.copyfile(source, target)

    @torch.no_grad()
    def set_prompts(self, prompts: list[list[str]], tokenizer) -> None:
        """Tokenises the descriptions of the grades, keeps their tokens, and refreshes the grade embeddings.

        Args:
            prompts: for each grade, a list of descriptions.
            tokenizer: the tokenizer of the text tower; it must end each text with `text_config.eos_token_id`.

        Raises:
            ValueError: a number of lists that is not the number of labels, a prompt longer than the text tower reads,
                or a tokenizer that adds no end token or knows no words, as transformers makes one of no files.
        """
        check_prompts(prompts, self.num_labels)
        texts = [text for grade_texts in prompts for text in grade_texts]
        token_ids = tokenizer(texts)["input_ids"]
        longest, text = max((len(ids), text) for ids, text in zip(token_ids, texts, strict=True))
        limit = self.config.text_config.max_position_embeddings
        if longest > limit:
            raise ValueError(f"The prompt {text!r} has {longest} tokens, the text tower reads {limit}: shorten it.")
        end = tokenizer.eos_token_id
        # 2 is how old CLIP configs say "the highest token id", see CLIPTextModel.
        if any(ids[-1] != end for ids in token_ids) or self.config.text_config.eos_token_id not in (2, end):
            raise ValueError(
                f"The tokenizer must end each prompt with token {self.config.text_config.eos_token_id}: "
                "use the tokenizer that belongs to the text tower."
            )
        if any(set(ids[1:-1]) <= {tokenizer.unk_token_id} for ids in token_ids):
            raise ValueError("The tokenizer knows no word of a prompt: use the one that belongs to the text tower.")
        # Padded with the end token: the first one is pooled and, under the causal mask, sees nothing after it.
        padded = [ids + [end] * (longest - len(ids)) for ids in token_ids]
        self.grade_prompts.input_ids = torch.tensor(padded, device=self.grade_prompts.input_ids.device)  # (P, L)
        self.config.prompts = [list(grade_texts) for grade_texts in prompts]
        self.config.prompt_shape = [len(padded), longest]
        self.config.tokenized_prompts = prompts_digest(self.config.prompts)
        self.grade_prompts.embeds = self._compute_grade_embeds()
        self.forget_calibration()

    def lacks_prompts(self) -> bool:
        """Whether prompts must be set: a model built from a config has no tokens, whatever the config says."""
        return self.config.tokenized_prompts is None or truth(self.grade_prompts.input_ids == 0) is True

    def get_grade_embeds(self) -> torch.Tensor:
        """Runs the text tower on the prompts: for each grade the renormalised mean of its prompts' embeddings.

        Returns:
            (K, D), unit length, differentiable.

        Raises:
            ValueError: prompts were never set, or were edited in the config.
        """
        if self.lacks_prompts():
            raise ValueError(_NO_PROMPTS)
        counts = [len(texts) for texts in self.config.prompts]
        if sum(counts) != len(self.grade_prompts.input_ids):
            raise ValueError("config.prompts was edited: call model.set_prompts(prompts, tokenizer).")
        pooled = self.text_model(input_ids=self.grade_prompts.input_ids).pooler_output  # (P, hidden)
        prompt_embeds = _normalize(self.text_projection(pooled))  # (P, D)
        return _normalize(torch.stack([embeds.mean(0) for embeds in prompt_embeds.split(counts)]))

    def forget_grade_embeds(self) -> None:
        """Has the next inference run the text tower anew: for edits in place that `Snapshot` cannot tell."""
        self._kept_grade_embeds.forget()

    def forget_calibration(self) -> None:
        """Grades then come without confidence sets and typicality: for edits of the weights these were fitted on."""
        self.beside = self.beside.without_calibration()

    def forget_locator(self) -> None:
        """The model then finds no knees: for edits of the vision tower that its locator was fitted to."""
        self.beside = self.beside.without_locator()

    def train(self, mode: bool = True):
        """As in `nn.Module`; between training and inference weights may change in ways that nobody counts."""
        if mode != self.training:
            self.forget_grade_embeds()
        if mode:
            self.forget_calibration()
            if self.beside.has_locator and self._trains_what_locator_reads():
                self.forget_locator()
        return super().train(mode)

    def _trains_what_locator_reads(self) -> bool:
        """Whether anything of the lower blocks that the locator was fitted to may change; True where it is damaged."""
        try:
            blocks = self.beside.locator.blocks
        except ValueError:
            return True
        tower = self.vision_model
        read = (tower.embeddings, tower.pre_layrnorm, *tower.encoder.layers[:blocks])
        return any(parameter.requires_grad for part in read for parameter in part.parameters())

    @torch.inference_mode(False)
    @torch.no_grad()
    def _compute_grade_embeds(self) -> torch.Tensor:
        """The grade embeddings as inference reads them, (K, D): without dropout and autocast."""
        with _evaluating(self.text_model), torch.autocast(self.grade_prompts.input_ids.device.type, enabled=False):
            embeds = self.get_grade_embeds()
        stored = self.grade_prompts.embeds
        # A checkpoint's own where they are the text tower's to rounding: grades then are the same on every machine.
        apart = (embeds - stored.float()).norm(dim=-1)
        return stored if truth(apart < 16 * torch.finfo(stored.dtype).eps) else embeds.to(stored.dtype)

    def kept_grade_embeds(self) -> torch.Tensor:
        """The grade embeddings of inference, (K, D): kept while the text tower is the same; in doubt, it runs."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return self.get_grade_embeds()
        read = (self.text_model, self.text_projection), (self.grade_prompts.input_ids,)
        kept = self._kept_grade_embeds.kept
        if kept and kept[0].holds(*read):
            return kept[1]
        snapshot = take_snapshot(*read)
        embeds = self._compute_grade_embeds()
        if snapshot:
            self.grade_prompts.embeds = embeds
            with torch.inference_mode(False):  # what is kept may become part of a graph
                embeds = embeds.clone()  # whoever writes into the buffer does not change the text tower
            self._kept_grade_embeds.kept = snapshot, embeds
        return embeds

    def _heads(self, vision: BaseModelOutputWithPooling, grade_embeds: torch.Tensor):
        """Both heads: text logits (V, K), linear logits (V, K), unit image embeddings (V, D)."""
        image_embeds = self._embed(vision.pooler_output)
        # The head of stock CLIPForImageClassification: mean of the patch tokens, before the post-layernorm.
        classifier_logits = self.classifier(vision.last_hidden_state[:, 1:].mean(dim=1)).float()
        return self._text_logits(image_embeds, grade_embeds), classifier_logits, image_embeds

    def _embed(self, class_token: torch.Tensor) -> torch.Tensor:
        """Unit image embeddings (V, D) from normalised class tokens."""
        return _normalize(self.visual_projection(class_token))

    def _text_logits(self, image_embeds: torch.Tensor, grade_embeds: torch.Tensor) -> torch.Tensor:
        # Cosines are multiplied by up to 100, which bf16 products would blur.
        with torch.autocast(image_embeds.device.type, enabled=False):
            scale = self._logit_factor()
            return scale * image_embeds @ grade_embeds.float().t()

    def _tower_of(self, blocks: list[nn.Module]) -> nn.Module:
        """The vision tower with these blocks in place of its own; all that it computes with is shared."""
        tower, encoder = copy.copy(self.vision_model), copy.copy(self.vision_model.encoder)
        encoder._modules = {**encoder._modules, "layers": nn.ModuleList(blocks)}
        tower._modules = {**tower._modules, "encoder": encoder}
        return tower

    @torch.no_grad()
    def tokens_after(self, pixel_values: torch.FloatTensor, count: int, any_size: bool = False) -> torch.Tensor:
        """Tokens (V, T, D) after the lowest `count` blocks of the vision tower, for (V, 3, H, W).

        They are computed on the model's device and in its precision. With `any_size` the images may be of another size
        than the configuration's.
        """
        weight = self.visual_projection.weight
        pixel_values = pixel_values.to(weight.device, weight.dtype)
        blocks = list(self.vision_model.encoder.layers[:count])
        options = self._vision_options(False, False, any_size)
        return self._tower_of(blocks)(pixel_values=pixel_values, **options).last_hidden_state

    def _see_class_token(self, pixel_values: torch.Tensor, block: int | None = None):
        """The vision tower's class token (V, D), normalised, and the mean patch token (V, D) after a block, or None.

        The last block computes the class token alone, which is all that the text head reads.
        """
        self._check_pixels(pixel_values)
        blocks, watched = list(self.vision_model.encoder.layers), None
        if block != len(blocks) - 1:
            blocks[-1] = _ClassTokenBlock(blocks[-1])
        if block is not None:
            watched = blocks[block] = _WatchedBlock(blocks[block])
        options = self._vision_options(False, False, False)
        class_token = self._tower_of(blocks)(pixel_values=pixel_values, **options).pooler_output
        return class_token, watched and watched.mean_patch

    @torch.no_grad()
    def grade_views(self, pixel_values: torch.FloatTensor) -> torch.Tensor:
        """The text head's logits and nothing else: what grading needs, for less work than `forward`.

        Nothing is mirrored here: give X-rays and mirror images as they are to be graded.

        Args:
            pixel_values: (V, 3, H, W).

        Returns:
            (V, K), as `forward` gives them without flip averaging.
        """
        class_token, _ = self._see_class_token(pixel_values)
        return self._text_logits(self._embed(class_token), self.kept_grade_embeds())

    @torch.no_grad()
    def grade_both_views(
        self, pixel_values: torch.FloatTensor, block: int, grade_embeds: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What grading reads of X-rays and mirror images; this is what an export computes.

        Args:
            pixel_values: (N, 3, H, W).
            block: of the vision tower, whose patches `Typicality` looks at.
            grade_embeds: (K, D), as `kept_grade_embeds` gives them.

        Returns:
            Text logits (N, K), those of the mirror images (N, K), and the block's mean patch of both views, (N, D).
        """
        count = pixel_values.shape[0]
        class_token, patches = self._see_class_token(torch.cat([pixel_values, pixel_values.flip(-1)]), block)
        logits = self._text_logits(self._embed(class_token), grade_embeds)
        return logits[:count], logits[count:], (patches[:count] + patches[count:]) / 2

    @property
    def features_block(self) -> int:
        """The block of the vision tower whose patches its typicality looks at; the first where it has none."""
        typicality = self.beside.typicality
        return typicality.block if typicality else 0

    @torch.inference_mode()
    def grade_pixels(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """See `GradesXrays`; on the model's device, in its precision and as in evaluation."""
        weight = self.visual_projection.weight
        pixel_values = pixel_values.to(weight.device, weight.dtype)
        if self.training:
            self.forget_grade_embeds()
        with _evaluating(self):
            found = self.grade_both_views(pixel_values, self.features_block, self.kept_grade_embeds())
        return tuple(part.cpu() for part in found)

    def forward(
        self,
        pixel_values: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        flip_average: bool | None = None,
        return_dict: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        interpolate_pos_encoding: bool = False,
        both_views: bool = True,
    ) -> CLIPKOAOutput | tuple:
        """Grades X-rays; with labels, also the losses of the paper.

        X-ray and mirror image are read in one call. The text tower runs while training, and where it has changed.

        Args:
            pixel_values: (N, 3, H, W), as the checkpoint's image processor gives them.
            labels: grades, (N,), each in 0..K-1; or distributions over the grades, (N, K), as `soft_labels` gives.
            flip_average: overrides `config.flip_average` for this call (it has no effect while training).
            return_dict: `False` gives a tuple; default: `config.return_dict`.
            output_attentions, output_hidden_states: what the vision tower computed on the way; default: as configured.
            interpolate_pos_encoding: take images of other sizes than the configuration's.
            both_views: `False` leaves mirror images out of the losses of this call, whatever the configuration says.

        Raises:
            ValueError: images of the wrong size or kind, none, or of no finite numbers; labels that are no grades.
        """
        self._check_pixels(pixel_values, interpolate_pos_encoding)
        config, count = self.config, pixel_values.shape[0]
        labels = None if labels is None else as_targets(labels, count, self.num_labels)
        training = self.training or (labels is not None and torch.is_grad_enabled())
        average = (config.flip_average if flip_average is None else flip_average) and not self.training
        compare = labels is not None and both_views and (config.symmetry or config.consistency_weight > 0)

        views = torch.cat([pixel_values, pixel_values.flip(-1)]) if average or compare else pixel_values
        options = self._vision_options(output_attentions, output_hidden_states, interpolate_pos_encoding)
        vision = self.vision_model(pixel_values=views, **options)
        grade_embeds = self.get_grade_embeds() if training else self.kept_grade_embeds()
        logits, classifier_logits, image_embeds = self._heads(vision, grade_embeds)
        flipped_logits = flipped_classifier_logits = None
        if average or compare:
            logits, flipped_logits = logits[:count], logits[count:]
            classifier_logits, flipped_classifier_logits = classifier_logits[:count], classifier_logits[count:]

        losses = {}
        if labels is not None:
            flipped = (flipped_logits, flipped_classifier_logits) if compare else (None, None)
            losses = self._losses(logits, flipped[0], classifier_logits, flipped[1], labels)
        if average:
            logits = (logits + flipped_logits) / 2
            classifier_logits = (classifier_logits + flipped_classifier_logits) / 2
        output = CLIPKOAOutput(
            **losses,
            logits=logits,
            flipped_logits=flipped_logits,
            classifier_logits=classifier_logits,
            flipped_classifier_logits=flipped_classifier_logits,
            image_embeds=image_embeds[:count],
            grade_embeds=grade_embeds,
            hidden_states=vision.hidden_states,
            attentions=vision.attentions,
        )
        return output if (config.return_dict if return_dict is None else return_dict) else output.to_tuple()

    def _vision_options(self, attentions: bool | None, hidden_states: bool | None, interpolate: bool) -> dict:
        """What the vision tower is asked for beside its usual output."""
        options = {"interpolate_pos_encoding": True} if interpolate else {}
        for name, wanted in (("output_attentions", attentions), ("output_hidden_states", hidden_states)):
            own, towers = (getattr(config, name, False) for config in (self.config, self.config.vision_config))
            wanted = (own or towers) if wanted is None else wanted
            if wanted or towers:
                options[name] = wanted
        return options

    def _check_pixels(self, pixel_values: torch.Tensor, any_size: bool = False) -> None:
        vision = self.config.vision_config
        size, channels = vision.image_size, vision.num_channels
        if not isinstance(pixel_values, torch.Tensor) or not pixel_values.is_floating_point():
            kind = getattr(pixel_values, "dtype", type(pixel_values).__name__)
            raise ValueError(f"pixel_values are {kind}: prepare X-rays with the model's image processor.")
        shape = tuple(pixel_values.shape)
        fits = len(shape) == 4 and shape[1] == channels
        if not fits or (min(shape[2:]) < vision.patch_size if any_size else shape[2:] != (size, size)):
            raise ValueError(
                f"pixel_values have shape {shape}, this model reads (N, {channels}, {size}, {size}): "
                "prepare X-rays with its image processor."
            )
        if shape[0] == 0:
            raise ValueError("pixel_values hold no X-ray: give at least one.")
        if all_finite(pixel_values) is False:
            raise ValueError("pixel_values hold values that are no finite numbers (NaN or infinity).")

    def _logit_factor(self) -> torch.Tensor:
        """What similarities are multiplied with, a scalar of at most 100."""
        return self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()

    def _losses(self, logits, flipped_logits, classifier_logits, flipped_classifier_logits, labels) -> dict:
        """The loss and its named parts (scalars); logits are (N, K), and None of mirror images that are left out."""
        config, labels = self.config, labels.to(logits.device)
        # The linear head has no similarities: its logits, over the same scale, stand for them.
        scale = self._logit_factor() if config.consistency == "similarity" else 1.0

        def parts(original, flipped):
            consistency = original.new_zeros(())
            if flipped is not None and config.consistency_weight > 0:
                consistency = consistency_loss(original / scale, flipped / scale, config.consistency)
            return symmetry_loss(original, flipped if config.symmetry else None, labels), consistency

        symmetry, consistency = parts(logits, flipped_logits)
        classifier_symmetry, classifier_consistency = parts(classifier_logits, flipped_classifier_logits)
        classifier = classifier_symmetry + config.consistency_weight * classifier_consistency
        return {
            "loss": symmetry + config.consistency_weight * consistency + config.classifier_weight * classifier,
            "symmetry_loss": symmetry,
            "consistency_loss": consistency,
            "classifier_loss": classifier,
        }


class _WatchedBlock(nn.Module):
    """A block of the vision tower that keeps the mean, (V, D), of the patch tokens which it gives."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block, self.mean_patch = block, None

    def forward(self, *inputs, **options):
        output = self.block(*inputs, **options)
        self.mean_patch = mean_patch(tokens_of(output))
        return output


class _ClassTokenBlock(nn.Module):
    """A block of the vision tower that reads all tokens, (V, T, D), and gives the class token alone, (V, 1, D)."""

    def __init__(self, block: nn.Module):
        super().__init__()
        self.block = block

    def forward(self, hidden_states: torch.Tensor, *masks, **options):
        block, attention = self.block, self.block.self_attn

        def split(tokens):  # (V, tokens, D) -> (V, heads, tokens, D / heads)
            return tokens.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

        normed, token = block.layer_norm1(hidden_states), hidden_states[:, :1]
        queries, keys, values = attention.q_proj(normed[:, :1]), attention.k_proj(normed), attention.v_proj(normed)
        attended = F.scaled_dot_product_attention(split(queries), split(keys), split(values), scale=attention.scale)
        token = token + attention.out_proj(attended.transpose(1, 2).flatten(2))
        return block_output(token + block.mlp(block.layer_norm2(token)))


def _normalize(embeds: torch.Tensor) -> torch.Tensor:
    """Unit length along the last dimension, in fp32."""
    return F.normalize(embeds.float(), dim=-1)


@contextmanager
def _evaluating(tower: nn.Module):
    """The tower without dropout while it is open."""
    training = [module for module in tower.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _refresh_before_saving(model: CLIPKOAForImageClassification, prefix: str, keep_vars: bool) -> None:
    """What is saved is always what the text tower gives; it has no values while transformers builds a model."""
    if not (model.grade_prompts.input_ids.is_meta or model.lacks_prompts()):
        model.grade_prompts.embeds = model._compute_grade_embeds()


def _hub_arguments(options: dict) -> dict:
    return {name: options[name] for name in _HUB_ARGUMENTS if name in options}


def _check_weights(name, info: dict, may_differ: bool, heads_may_differ: bool) -> None:
    """Refuses weights that are not those the configuration describes; transformers would make up what is missing."""

    def told(keys, what: str) -> None:
        if keys:
            more = f" (and {len(keys) - 1} more)" if len(keys) > 1 else ""
            raise ValueError(f"The weights of {name} are not what its config.json describes: {keys[0]}{more} {what}.")

    told([key for key in sorted(info["missing_keys"]) if not key.startswith(_HEADS)], "is missing")
    told([key for key in sorted(info["unexpected_keys"]) if _BLOCK.match(key)], "has no place in it")
    if not may_differ:
        names = mismatched_names(info)
        told([key for key in names if not (heads_may_differ and key.startswith(_HEADS))], "has another size")


# The name of the class that graded images before the model did.
CLIPKOAGrader = CLIPKOAForImageClassification
