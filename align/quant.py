"""A frozen base in 4 bits (QLoRA, arXiv:2305.14314): bitsandbytes' NormalFloat, unpacked whenever a layer multiplies.

The layers are ours. On a CPU with AVX512-BF16 bitsandbytes' own repack their weights in place at the first pass without
a gradient, and hand no gradient on after that (seen with 0.50.2); policy and reference share these weights.
"""

from __future__ import annotations

import importlib.util
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from align.embedded import ModelError

BLOCK = 64  # weights that share a scale. On a CPU rows of 32 come back 20 to 40 % off instead of 9 % (0.50.2)


def _require(quant: str, device: torch.device) -> None:
    """Raises ModelError when this installation or device cannot do it."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"model.quant={quant} needs a package: pip install bitsandbytes; or model.quant=null")
    import bitsandbytes

    known = bitsandbytes.supported_torch_devices
    if device.type not in known:
        raise ModelError(f"model.quant={quant}: bitsandbytes {bitsandbytes.__version__} does not know "
                         f"device={device.type}, only {', '.join(sorted(known))}; use model.quant=null")  # fmt: skip


def options(quant: str, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    """For from_pretrained: which weights become what, where. The LM head and the embeddings stay as they are. Raises
    ModelError where it cannot be; nothing was fetched yet."""
    _require(quant, device)
    from transformers import BitsAndBytesConfig

    config = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    return {"quantization_config": config, "device_map": {"": device}}


def use_ours(model: Any) -> None:
    """Put our layers in the place of bitsandbytes', and take the marks off by which trainers look for those."""
    from bitsandbytes.nn import Linear4bit

    for name, layer in model.named_modules():
        if isinstance(layer, Linear4bit) and layer.in_features % BLOCK and layer.weight.device.type == "cpu":
            raise ModelError(f"model.quant=nf4: {name} has {layer.in_features} inputs, no multiple of {BLOCK}, which "
                             "bitsandbytes unpacks wrongly on a CPU; use model.quant=null")  # fmt: skip
    for parent in list(model.modules()):
        for name, child in parent.named_children():
            if isinstance(child, Linear4bit):
                setattr(parent, name, FourBitLinear(child, model.dtype))
    del model.hf_quantizer, model.config.quantization_config
    model.is_quantized = model.is_loaded_in_4bit = False


class FourBitLinear(nn.Linear):
    """y = x W' + b with W unpacked for the product, and again for the backward pass; W has no gradient."""

    def __init__(self, layer: Any, dtype: torch.dtype):
        nn.Module.__init__(self)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.weight, self.bias, self.dtype = layer.weight, layer.bias, dtype  # [out x in / 2, 1] bytes

    def unpacked(self) -> Tensor:
        """[out, in]"""
        from bitsandbytes.functional import dequantize_4bit

        return dequantize_4bit(self.weight.data, self.weight.quant_state).to(self.dtype)

    def forward(self, x: Tensor) -> Tensor:
        return _Product.apply(x, self)


class _Product(torch.autograd.Function):
    """dx = g W"""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: FourBitLinear) -> Tensor:
        ctx.layer = layer
        return linear(x, layer.unpacked(), layer.bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.unpacked(), None
