"""Low-rank adaptation of the vision tower (Hu et al. 2021, arXiv 2106.09685), with the package peft."""

import copy

import torch

from clip_koa.training.run_config import RunConfigError

LORA_PREFIX = "lora_"  # of the names that peft gives the weights it adds
_TARGETS = r"vision_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])"


def add_lora(model: torch.nn.Module, rank: int) -> None:
    """Adds low-rank weights to all linear layers of the vision tower, which is else kept as it is.

    Raises:
        RunConfigError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise RunConfigError("model.lora_rank needs peft: pip install 'clip-koa[lora]'.") from error
    trained = [name for name, _ in model.named_parameters() if not name.startswith("vision_model.")]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=_TARGETS), model)
    for name, parameter in model.named_parameters():  # peft freezes all but what it adds
        parameter.requires_grad_(LORA_PREFIX in name or name in trained)


@torch.no_grad()
def merged(model: torch.nn.Module) -> torch.nn.Module:
    """The model with LoRA's weights added into those they adapt, as a plain copy; itself where it has none."""
    if not any(LORA_PREFIX in name for name, _ in model.named_parameters()):
        return model
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, module.get_base_layer())
    return plain
