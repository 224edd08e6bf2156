"""CLIP-KOA: CLIP that grades knee osteoarthritis on the Kellgren-Lawrence scale, consistently under mirroring.

After Jeong & Lee 2025, arXiv 2504.19443. The towers, projections and key names are `CLIPModel`'s; added are the tokens
and embeddings of the grade prompts, and a linear head in the place where stock `CLIPForImageClassification` has it.
"""

import math
import shutil
from dataclasses import dataclass
from inspect import signature
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoTokenizer, CLIPModel
from transformers.utils import ModelOutput

from .configuration_clip_koa import AUTO_MAP, CLIPKOAConfig, check_prompts, prompts_digest
from .losses_clip_koa import consistency_loss, symmetry_loss

# CLIP's own bound on the temperature (Radford et al. 2021): logits are scaled by at most 100.
MAX_LOGIT_SCALE = math.log(100.0)

_NO_PROMPTS = "This model has no prompts yet: call model.set_prompts(prompts, tokenizer)."

# What `from_pretrained` passes on to find the tokenizer beside the weights.
_HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "revision", "subfolder", "token")


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


class GradePrompts(nn.Module):
    """What the checkpoint keeps of the prompts: their tokens (P, L) and the grades' embeddings (K, D)."""

    def __init__(self, config: CLIPKOAConfig):
        super().__init__()
        # Persistent, for other buffers hold garbage after from_pretrained.
        self.register_buffer("input_ids", torch.zeros(*config.prompt_shape, dtype=torch.long))
        self.register_buffer("embeds", torch.zeros(config.num_labels, config.projection_dim))


class LinearHead(nn.Linear):
    """The linear head; a class of its own so that `_init_weights` can tell it from the towers' layers."""


class CLIPKOAForImageClassification(CLIPModel):
    """CLIP with a text head and a linear head for KL grades, trained and read on an X-ray and its mirror image.

    A new model needs its prompts once: `model.set_prompts(prompts, tokenizer)`. `from_pretrained` does it where the
    checkpoint has none (plain CLIP weights) or where `prompts` in the config was edited.
    """

    config_class = CLIPKOAConfig
    main_input_name = "pixel_values"
    input_modalities = ("image",)

    def __init__(self, config: CLIPKOAConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        self.grade_prompts = GradePrompts(config)
        self.classifier = LinearHead(config.vision_config.hidden_size, config.num_labels)
        # A block of transformers 4 takes two masks, one of transformers 5 takes one.
        block = self.vision_model.encoder.layers[0] if self.vision_model.encoder.layers else None
        self._no_masks = [None] * sum("mask" in name for name in signature(block.forward).parameters) if block else []
        # True where the text tower may have changed since grade_prompts.embeds was computed.
        self._grade_embeds_stale = False
        self.register_state_dict_pre_hook(_refresh_before_saving)
        self.register_load_state_dict_post_hook(_stale_after_loading)
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
        """Loads a CLIP-KOA checkpoint, or plain CLIP weights, whose heads are then new. See `PreTrainedModel`."""
        loaded = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        edited = model.config.tokenized_prompts != prompts_digest(model.config.prompts)
        # All zeros: the weights come from a stock CLIPModel, whatever its config still says.
        if edited or not model.grade_prompts.embeds.any():
            hub_arguments = {name: kwargs[name] for name in _HUB_ARGUMENTS if name in kwargs}
            tokenizer = AutoTokenizer.from_pretrained(pretrained_model_name_or_path, **hub_arguments)
            model.set_prompts(model.config.prompts, tokenizer)
        return loaded

    def save_pretrained(self, save_directory, *args, **kwargs):
        """Saves the checkpoint with the code that reads it, so that the folder is complete wherever it goes."""
        if self.config.tokenized_prompts != prompts_digest(self.config.prompts):
            raise ValueError("config.prompts was edited: call model.set_prompts(prompts, tokenizer) before saving.")
        with torch.no_grad():
            self.logit_scale.clamp_(
                max=MAX_LOGIT_SCALE
            )  # as forward reads it; stock CLIPModel has no bound of its own
        self.config.auto_map = dict(AUTO_MAP)
        super().save_pretrained(save_directory, *args, **kwargs)
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
                or a tokenizer that adds no end token.
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
        # Padded with the end token: the first one is pooled and, under the causal mask, sees nothing after it.
        padded = [ids + [end] * (longest - len(ids)) for ids in token_ids]
        self.grade_prompts.input_ids = torch.tensor(padded, device=self.grade_prompts.input_ids.device)  # (P, L)
        self.config.prompts = [list(grade_texts) for grade_texts in prompts]
        self.config.prompt_shape = [len(padded), longest]
        self.config.tokenized_prompts = prompts_digest(self.config.prompts)
        self._refresh_grade_embeds()

    def get_grade_embeds(self) -> torch.Tensor:
        """Runs the text tower on the prompts: for each grade the renormalised mean of its prompts' embeddings.

        Returns:
            (K, D), unit length, differentiable.
        """
        if self.config.tokenized_prompts is None:
            raise ValueError(_NO_PROMPTS)
        pooled = self.text_model(input_ids=self.grade_prompts.input_ids).pooler_output  # (P, hidden)
        prompt_embeds = _normalize(self.text_projection(pooled))  # (P, D)
        counts = [len(texts) for texts in self.config.prompts]
        return _normalize(torch.stack([embeds.mean(0) for embeds in prompt_embeds.split(counts)]))

    def forget_grade_embeds(self) -> None:
        """Has the next inference run the text tower anew; call it after changing weights in place."""
        self._grade_embeds_stale = self.config.tokenized_prompts is not None

    @torch.no_grad()
    def _refresh_grade_embeds(self) -> None:
        with torch.autocast(self.grade_prompts.embeds.device.type, enabled=False):
            self.grade_prompts.embeds.copy_(self.get_grade_embeds())
        self._grade_embeds_stale = False

    def _current_grade_embeds(self, training: bool) -> torch.Tensor:
        if training:
            self._grade_embeds_stale = True  # an optimizer step may follow
            return self.get_grade_embeds()
        if self._grade_embeds_stale:
            self._refresh_grade_embeds()
        if self.config.tokenized_prompts is None:
            raise ValueError(_NO_PROMPTS)
        return self.grade_prompts.embeds

    def _encode(self, views: torch.Tensor, both: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Tokens (V, T, D) after the vision tower's blocks, and the normalised class tokens (V, D)."""
        tower = self.vision_model
        if not (both and self.training and views.device.type == "cpu"):
            vision = tower(pixel_values=views)
            return vision.last_hidden_state, vision.pooler_output
        # The views apart, for what the backward pass keeps then fits a CPU's cache better: up to a fifth faster.
        embedded = tower.pre_layrnorm(tower.embeddings(views)).chunk(2)
        hidden = torch.cat([tower.encoder(inputs_embeds=view).last_hidden_state for view in embedded])
        return hidden, tower.post_layernorm(hidden[:, 0])

    def _heads(self, views: torch.Tensor, grade_embeds: torch.Tensor, both: bool):
        """Both heads for (V, 3, H, W): text logits (V, K), linear logits (V, K), unit image embeddings (V, D)."""
        hidden, pooled = self._encode(views, both)
        image_embeds = _normalize(self.visual_projection(pooled))
        # The head of stock CLIPForImageClassification: mean of the patch tokens, before the post-layernorm.
        classifier_logits = self.classifier(hidden[:, 1:].mean(dim=1)).float()
        return self._text_logits(image_embeds, grade_embeds), classifier_logits, image_embeds

    def _text_logits(self, image_embeds: torch.Tensor, grade_embeds: torch.Tensor) -> torch.Tensor:
        # Cosines are multiplied by up to 100, which bf16 products would blur.
        with torch.autocast(image_embeds.device.type, enabled=False):
            scale = self.logit_scale.float().clamp(max=MAX_LOGIT_SCALE).exp()
            return scale * image_embeds @ grade_embeds.float().t()

    @torch.no_grad()
    def tokens_after(self, pixel_values: torch.FloatTensor, count: int) -> torch.Tensor:
        """Tokens (V, T, D) after the lowest `count` blocks of the vision tower, for (V, 3, H, W)."""
        tower = self.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers[:count]:
            hidden = layer(hidden, *self._no_masks)
            hidden = hidden[0] if isinstance(hidden, tuple) else hidden  # transformers 4 gives a tuple
        return hidden

    @torch.no_grad()
    def grade_views(self, pixel_values: torch.FloatTensor) -> torch.Tensor:
        """The text head's logits and nothing else: what grading needs, for less work than `forward`.

        The text head reads the class token alone, so the last block computes only that one. Nothing is mirrored here:
        give X-rays and mirror images as they are to be graded.

        Args:
            pixel_values: (V, 3, H, W).

        Returns:
            (V, K), as `forward` gives them without flip averaging.
        """
        self._check_inputs(pixel_values, None)
        tower = self.vision_model
        hidden = self.tokens_after(pixel_values, len(tower.encoder.layers) - 1)
        pooled = tower.post_layernorm(_class_token_after(tower.encoder.layers[-1], hidden))  # (V, hidden)
        image_embeds = _normalize(self.visual_projection(pooled))
        return self._text_logits(image_embeds, self._current_grade_embeds(training=False))

    def forward(
        self,
        pixel_values: torch.FloatTensor,
        labels: torch.Tensor | None = None,
        flip_average: bool | None = None,
        return_dict: bool | None = None,
    ) -> CLIPKOAOutput | tuple:
        """Grades X-rays; with labels, also the losses of the paper.

        X-ray and mirror image are embedded and read in one call. The text tower runs once, on the prompts, while
        training, and not at all at inference.

        Args:
            pixel_values: (N, 3, H, W), as the checkpoint's image processor gives them.
            labels: grades, (N,), each in 0..K-1; or distributions over the grades, (N, K), as `soft_labels` gives.
            flip_average: overrides `config.flip_average` for this call (it has no effect while training).
            return_dict: `False` gives a tuple.

        Raises:
            ValueError: wrong image size, a grade outside 0..K-1, or labels of another shape.
        """
        self._check_inputs(pixel_values, labels)
        config = self.config
        training = self.training or (labels is not None and torch.is_grad_enabled())
        average = (config.flip_average if flip_average is None else flip_average) and not self.training
        compare = labels is not None and (config.symmetry or config.consistency_weight > 0)
        both_views = average or compare

        views = torch.cat([pixel_values, pixel_values.flip(-1)]) if both_views else pixel_values
        grade_embeds = self._current_grade_embeds(training)
        logits, classifier_logits, image_embeds = self._heads(views, grade_embeds, both_views)
        flipped_logits = flipped_classifier_logits = None
        if both_views:
            logits, flipped_logits = logits.chunk(2)
            classifier_logits, flipped_classifier_logits = classifier_logits.chunk(2)
            image_embeds = image_embeds.chunk(2)[0]

        losses = {}
        if labels is not None:
            losses = self._losses(logits, flipped_logits, classifier_logits, flipped_classifier_logits, labels)
        if average:
            logits = (logits + flipped_logits) / 2
            classifier_logits = (classifier_logits + flipped_classifier_logits) / 2
        output = CLIPKOAOutput(
            **losses,
            logits=logits,
            flipped_logits=flipped_logits,
            classifier_logits=classifier_logits,
            flipped_classifier_logits=flipped_classifier_logits,
            image_embeds=image_embeds,
            grade_embeds=grade_embeds,
        )
        return output.to_tuple() if return_dict is False else output

    def _check_inputs(self, pixel_values: torch.Tensor, labels: torch.Tensor | None) -> None:
        size, channels = self.config.vision_config.image_size, self.config.vision_config.num_channels
        shape = tuple(pixel_values.shape)
        if len(shape) != 4 or shape[1:] != (channels, size, size):
            raise ValueError(
                f"pixel_values have shape {shape}, this model reads (N, {channels}, {size}, {size}): "
                "prepare X-rays with its image processor."
            )
        if labels is None:
            return
        if labels.shape not in ((shape[0],), (shape[0], self.num_labels)):
            raise ValueError(
                f"labels have shape {tuple(labels.shape)}: grades ({shape[0]},) or distributions over them "
                f"({shape[0]}, {self.num_labels}) belong to these X-rays."
            )
        # Reading values would break a compiled graph; there, cross-entropy's own check remains.
        if labels.ndim > 1 or torch.compiler.is_compiling():
            return
        if labels.numel() and not 0 <= labels.min() <= labels.max() < self.num_labels:
            wrong = labels[(labels < 0) | (labels >= self.num_labels)][0].item()
            raise ValueError(f"labels hold the grade {wrong}: KL grades are 0 to {self.num_labels - 1}.")

    def _losses(self, logits, flipped_logits, classifier_logits, flipped_classifier_logits, labels) -> dict:
        """The loss and its named parts (scalars); every logits tensor is (N, K)."""
        config = self.config

        def parts(original, flipped):
            consistency = original.new_zeros(())
            if config.consistency_weight > 0:
                consistency = consistency_loss(original, flipped, config.consistency)
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


def _class_token_after(layer: nn.Module, hidden: torch.Tensor) -> torch.Tensor:
    """The class token (V, D) after a block of the vision tower that is given all tokens, (V, T, D)."""
    attention = layer.self_attn

    def split(tokens):  # (V, tokens, D) -> (V, heads, tokens, D / heads)
        return tokens.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)

    normed, token = layer.layer_norm1(hidden), hidden[:, :1]
    queries, keys, values = attention.q_proj(normed[:, :1]), attention.k_proj(normed), attention.v_proj(normed)
    attended = F.scaled_dot_product_attention(split(queries), split(keys), split(values), scale=attention.scale)
    token = token + attention.out_proj(attended.transpose(1, 2).flatten(2))
    return (token + layer.mlp(layer.layer_norm2(token)))[:, 0]


def _normalize(embeds: torch.Tensor) -> torch.Tensor:
    """Unit length along the last dimension, in fp32."""
    return F.normalize(embeds.float(), dim=-1)


def _refresh_before_saving(model: CLIPKOAForImageClassification, prefix: str, keep_vars: bool) -> None:
    if model._grade_embeds_stale:
        model._refresh_grade_embeds()


def _stale_after_loading(model: CLIPKOAForImageClassification, incompatible_keys) -> None:
    model.forget_grade_embeds()
