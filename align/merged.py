"""The copy of a model that completions are sampled from: the same modules, its linear layers laid out for few rows.

Adapters are merged into copies of the weights, in the compute dtype, never into the weights that are trained. Layers
that read the same input become one product, and on a CPU weights are kept in the layout of its kernels, which would
otherwise convert them at every token (docs/performance.md).
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.nn.functional import linear, rms_norm

from align.attention import refuse
from align.fused import RMSNorm

GIVEN = ("position_embeddings", "attention_mask", "past_key_values")  # to a layer's attention; the last two are None
BITS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # of a number of so many bytes
ROTARY = ("LlamaAttention", "Qwen2Attention")  # queries and keys are rotated, and nothing else happens to them
SIDE_BY_SIDE = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # called in this order, on one input


class Merged:
    """`lm`, a causal LM whose layers follow those of the model it was made from; `refresh` before use."""

    def __init__(self, source: Any, merge: bool):
        tensors = (*source.parameters(), *source.buffers())
        self.lm = copy.deepcopy(source, memo={id(t): t for t in tensors}).eval()
        self.products: list[Product] = []
        self.stamp: list[int] | None = None
        self.read = tensors
        self._replace(self.lm, merge)

    def refresh(self) -> None:
        """Take over what has been written since. A tensor's version counts the writes to it, but not those of torch's
        fused optimizers and of `.data`; so what is trained is summed up too, bit by bit."""
        sums = [p.detach().view(BITS[p.element_size()]).sum() for p in self.read if p.requires_grad]
        stamp = [t._version for t in self.read] + (torch.stack(sums).tolist() if sums else [])
        if stamp != self.stamp:
            for product in self.products:
                product.refresh()
            self.stamp = stamp

    def _replace(self, module: nn.Module, merge: bool) -> None:
        if isinstance(module, LoraLayer):
            return
        for child in module.children():
            self._replace(child, merge)
        self._lay_out(module, merge)
        for name, child in module.named_children():
            if isinstance(child, RMSNorm):
                setattr(module, name, _Norm(child.weight, child.eps))
            elif type(child).__name__ in ROTARY and isinstance(child.v_proj, Part):
                setattr(module, name, _Attention(child))

    def _lay_out(self, module: nn.Module, merge: bool) -> None:
        """Its linear layers as products."""
        children = {name: child for name, child in module.named_children() if _is_linear(child, merge)}
        for names in SIDE_BY_SIDE:
            if all(name in children for name in names):
                product = self._product([children.pop(name) for name in names])
                setattr(module, names[0], product)
                for i, name in enumerate(names[1:], start=1):
                    setattr(module, name, Part(product, i))
        for name, child in children.items():
            setattr(module, name, self._product([child]))

    def _product(self, layers: list[Any]) -> Product:
        self.products.append(Product(layers))
        return self.products[-1]


class Product(nn.Module):
    """Linear layers on one input as one; its own output is that of the first, `Part`s give those of the others."""

    def __init__(self, layers: list[Any]):
        super().__init__()
        self.layers = tuple(layers)  # a tuple, so that they are no submodules
        self.widths = [base_layer(layer).weight.shape[0] for layer in layers]
        self.tensors: tuple[Tensor, Tensor | None] | None = None  # weight and bias; in a tuple they are not registered
        self.whole: Tensor | None = None  # the output of all, until it was taken

    @torch.no_grad()
    def refresh(self) -> None:
        weights = [merged_weight(layer) for layer in self.layers]
        biases = [base_layer(layer).bias for layer in self.layers]
        weight = weights[0] if len(weights) == 1 else torch.cat(weights)
        if _can_lay_out(weight):
            weight = torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        self.tensors = weight, None if biases[0] is None else torch.cat(biases)

    def forward(self, x: Tensor) -> Tensor:
        assert self.tensors is not None, "refresh() first"
        weight, bias = self.tensors
        if weight.is_mkldnn:
            y = torch.ops.mkldnn._linear_pointwise.default(x, weight, bias, "none", [], "")
        else:
            y = linear(x, weight, bias)
        if len(self.widths) == 1:
            return y
        self.whole = y
        return y[..., : self.widths[0]]

    def take(self) -> Tensor:
        """The output of all, and no longer here: of 64 prompts those of every layer would be 0.7 GB."""
        y, self.whole = self.whole, None
        assert y is not None, "a product gives its output once"
        return y

    def part(self, index: int) -> Tensor:
        first, last = sum(self.widths[:index]), index + 1 == len(self.widths)
        y = self.take() if last else self.whole
        assert y is not None, "the parts of a product are asked for in their order"
        return y[..., first : first + self.widths[index]]


class Part(nn.Module):
    """What the product that was computed last has for one of its further layers."""

    def __init__(self, product: Product, index: int):
        super().__init__()
        self.product, self.index = (product,), index

    def forward(self, _: Tensor) -> Tensor:
        return self.product[0].part(self.index)


class _Attention(nn.Module):
    """Of one new token of each row: queries and keys rotated together, in the cache's dtype; the rest as the layer."""

    def __init__(self, layer: Any):
        super().__init__()
        self.layer = layer
        self.heads, self.shared = (w // layer.head_dim for w in layer.q_proj.widths[:2])
        self.window = getattr(layer, "sliding_window", None)

    def forward(self, hidden_states: Tensor, *, cache: Any = None, **others: Any) -> tuple[Tensor, None]:
        if cache is None:
            return self.layer(hidden_states, **others)
        refuse(self.layer, {name: value for name, value in others.items() if name not in GIVEN})
        rotated = self.heads + self.shared
        self.layer.q_proj(hidden_states)
        x = self.layer.q_proj.take().to(cache.dtype).view(len(hidden_states), rotated + self.shared, 2, -1)
        cos, sin = cache.rotary(others["position_embeddings"])
        qk = (x[:, :rotated] * cos).addcmul_(x[:, :rotated].flip(2), sin).flatten(2)
        q, k, v = qk[:, : self.heads], qk[:, self.heads :], x[:, rotated:].flatten(2)
        found = cache.attend(self.layer.layer_idx, q, k, v, self.layer.scaling, self.window)
        return self.layer.o_proj(found.to(hidden_states.dtype).flatten(1).unsqueeze(1)), None


class _Norm(RMSNorm):
    """Without a step of autograd, which costs as much as the norm itself for few rows."""

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight.shape, self.weight, self.eps)


def base_layer(layer: Any) -> nn.Linear:
    return layer.get_base_layer() if isinstance(layer, LoraLayer) else layer


def merged_weight(layer: Any) -> Tensor:
    """W + s B A, rounded once to the dtype of W; A and B are rounded as in training (align/lora.py). [out, in]"""
    weight = base_layer(layer).weight
    if not isinstance(layer, LoraLayer):
        return weight
    (name,) = layer.active_adapters
    A, B = layer.lora_A[name].weight, layer.lora_B[name].weight
    return torch.addmm(weight, B.to(weight.dtype), A.to(weight.dtype), alpha=layer.scaling[name])


def _is_linear(module: nn.Module, merge: bool) -> bool:
    """A linear layer, or one with a plain adapter that is to be merged; DoRA's and other variants stay as they are."""
    if isinstance(module, LoraLinear):
        plain = type(base_layer(module)) is nn.Linear  # not in 4 bits
        return merge and plain and not module.lora_variant and len(module.active_adapters) == 1 and not module.merged
    return type(module) is nn.Linear


def _can_lay_out(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and torch.backends.mkldnn.is_available()
