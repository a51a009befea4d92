"""Models as the trainer takes them: loaded in float32, on its device, without dropout."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlopt.device import usable_device


def load_model(path: str, options: Mapping[str, Any]) -> Any:
    """The causal language model of a path or name, from safetensors alone.

    In float32 unless `options` have a "dtype": transformers' default is the file's, and in bfloat16 a step smaller than a
    256th of a weight is rounded away.
    """
    return AutoModelForCausalLM.from_pretrained(path, **{"dtype": torch.float32, "use_safetensors": True} | dict(options))


def load_tokenizer(path: str) -> Any:
    """The tokenizer beside a model."""
    return AutoTokenizer.from_pretrained(path)


def with_adapter(model: Any, config: Any) -> Any:
    """The model with a new PEFT adapter.

    Raises:
        ValueError: it has one already.
    """
    from peft import PeftModel, get_peft_model

    if isinstance(model, PeftModel):
        raise ValueError("peft_config: expected None where model is a PeftModel, which has an adapter already")
    return get_peft_model(model, config)


def prepared(model: Any, device: str, gradient_checkpointing: bool) -> tuple[Any, torch.device]:
    """The model, changed in place to what a regression needs, and its device.

    A model that was loaded with a `device_map`, quantised ones for instance, stays where it is.

    Raises:
        UserWarning: trained parameters of half precision.
    """
    _drop_nothing(model)
    if getattr(model, "hf_device_map", None) is None:
        model.to(usable_device(device))
    if gradient_checkpointing:
        _checkpoint_activations(model)
    half = [name for name, parameter in trained(model).items() if parameter.dtype in (torch.bfloat16, torch.float16)]
    if half:
        warnings.warn(
            f"model: {len(half)} of its trained parameters are in half precision ({half[0]} first): small steps are rounded"
            " away. Load it with dtype=torch.float32 and set bf16=True, or train an adapter",
            stacklevel=3,
        )
    return model.eval(), next(model.parameters()).device


def trained(model: Any) -> dict[str, Tensor]:
    """The parameters that receive gradients, by name; tied ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def frozen(model: Any) -> dict[str, Tensor]:
    """The other parameters, by name."""
    return {name: parameter for name, parameter in model.named_parameters() if not parameter.requires_grad}


def _drop_nothing(model: Any) -> None:
    """π_θ/π_t has to be 1 at the start: no unit is dropped, also where gradient checkpointing needs training mode."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        # Models that call the function have the rate as a number: attention_dropout, hidden_dropout, layerdrop …
        for name, value in vars(module).items():
            if "drop" in name and isinstance(value, float):
                setattr(module, name, 0.0)


def _checkpoint_activations(model: Any) -> None:
    # transformers 5.23 renamed it
    if hasattr(model, "activation_checkpointing_enable"):
        model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model.enable_input_require_grads()  # else nothing before an adapter would be recomputed
