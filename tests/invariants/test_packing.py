"""Packed rows and the hand-written backward passes behind them, against the plain formula under autograd in float64."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import LoraConfig, TaskType, get_peft_model
from torch import Tensor, nn, tensor
from torch.testing import assert_close
from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

from align.attention import packed_attention
from align.forward import Batch, Scorer, completion_hidden, micro_batches
from align.fused import RMSNorm, SwiGLU
from align.head import TokenLogprobs, is_plain
from align.lora import FusedLinear, use_fused
from align.maths.logprobs import token_logprobs
from align.packing import Packed, pack
from tests.invariants import families

CPU = torch.device("cpu")
EXACT = dict(rtol=1e-9, atol=1e-11)
# Prompt and completion lengths; a completion of n tokens has n - 1 in the row, the last one predicts nothing.
GROUPS = {
    "ragged": [(5, (4, 1, 7)), (3, (2, 2))],
    "alike": [(4, (5, 5, 5))],
    "one completion": [(6, (4,)), (2, (9,))],
    "one token each": [(1, (1, 1)), (1, (3, 2))],
    "one of two is short": [(4, (1, 6)), (7, (6, 1, 1))],
}


def layout(groups: list[tuple[int, tuple[int, ...]]]) -> tuple[Packed, Tensor]:
    """Packed rows of a group each, and what token i may see of token j by the definition: its own prompt, and what
    stands before it in its own completion. [L, L] distance in tokens, -1 where it is hidden"""
    prompts, completions, owner, position = [], [], [], []
    for g, (prompt, lengths) in enumerate(groups):
        owner += [(g, None)] * prompt
        position += range(prompt)
        for k, n in enumerate(lengths):
            prompts.append((100 + g,) * prompt)
            completions.append([1] * n)
            owner += [(g, k)] * (n - 1)
            position += range(prompt, prompt + n - 1)
    distance = torch.full((len(owner), len(owner)), -1)
    for i, (g, k) in enumerate(owner):
        for j, (h, other) in enumerate(owner):
            if g == h and other in (None, k) and position[j] <= position[i]:
                distance[i, j] = position[i] - position[j]
    packed = pack(prompts, completions, CPU)
    assert packed.positions[0].tolist() == position
    return packed, distance


def dense(q: Tensor, k: Tensor, v: Tensor, seen: Tensor, scale: float) -> Tensor:
    """q [H, L, D], k and v [G, L, D], seen [L, L] -> [H, L, D]"""
    k, v = (x.repeat_interleave(len(q) // len(x), 0) for x in (k, v))
    return (q @ k.mT * scale).masked_fill(~seen, -torch.inf).softmax(-1) @ v


def attend(q: Tensor, k: Tensor, v: Tensor, packed: Packed, scale: float, window: int | None) -> Tensor:
    found, _ = packed_attention(
        SimpleNamespace(), q[None], k[None], v[None], None, scaling=scale, blocks=packed.blocks, sliding_window=window
    )
    return found[0].transpose(0, 1)


def qkv(heads: int, shared: int, length: int, D: int = 4) -> list[Tensor]:
    torch.manual_seed(length)
    return [torch.randn(n, length, D, dtype=torch.float64, requires_grad=True) for n in (heads, shared, shared)]


@pytest.mark.parametrize("window", [None, 1, 3, 6])
@pytest.mark.parametrize("heads", [(4, 4), (4, 2), (3, 1)], ids=str)
@pytest.mark.parametrize("groups", GROUPS.values(), ids=GROUPS)
def test_packed_attention_and_its_gradients_are_those_of_a_dense_mask(groups, heads, window):
    packed, distance = layout(groups)
    seen = (distance >= 0) & (distance < (window or len(distance)))
    inputs = qkv(*heads, len(distance))
    ours, theirs = attend(*inputs, packed, 0.3, window), dense(*inputs, seen, 0.3)
    assert_close(ours, theirs, **EXACT)
    weights = torch.randn_like(ours)
    for got, expected in zip(
        *(torch.autograd.grad((weights * out).sum(), inputs) for out in (ours, theirs)), strict=True
    ):
        assert_close(got, expected, **EXACT)


def test_a_backward_pass_can_be_repeated():
    """Nothing that was saved is written over."""
    packed, distance = layout(GROUPS["ragged"])
    inputs = qkv(4, 2, len(distance))
    values = [x.detach().clone() for x in inputs]
    out = attend(*inputs, packed, 0.3, 3)
    first, again = (torch.autograd.grad(out.square().sum(), inputs, retain_graph=True) for _ in range(2))
    for a, b, x, value in zip(first, again, inputs, values, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(x, value)


@pytest.mark.parametrize("window", [None, 2])
def test_packed_attention_passes_gradcheck(window):
    packed, distance = layout([(2, (3, 1, 2)), (1, (2,))])
    inputs = qkv(2, 1, len(distance), D=2)
    assert torch.autograd.gradcheck(lambda q, k, v: attend(q, k, v, packed, 0.7, window), inputs)


def test_a_second_derivative_is_refused_instead_of_wrong():
    packed, distance = layout(GROUPS["alike"])
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, 4, dtype=torch.float64)
    outs = [
        attend(*qkv(2, 1, len(distance)), packed, 1.0, None),
        RMSNorm(nn.Parameter(torch.ones(4, dtype=torch.float64)), 1e-6)(x),
        TokenLogprobs.apply(x, weight, tensor([0, 1, 2]), 1.0, None, 2)[0],
        adapted()(x.float() @ torch.ones(4, 6)),
    ]
    for out in outs:
        leaves = [node.variable for node in _accumulators(out.grad_fn)]
        first = torch.autograd.grad(out.square().sum(), leaves[:1], create_graph=True)[0]
        with pytest.raises(RuntimeError, match="once_differentiable"):
            first.square().sum().backward()


def _accumulators(node: Any) -> list[Any]:
    """The leaves that a graph ends in."""
    if node is None:
        return []
    if hasattr(node, "variable"):
        return [node]
    return [leaf for child, _ in node.next_functions for leaf in _accumulators(child)]


@pytest.mark.parametrize("name", ["softcap", "s_aux"])
def test_attention_of_another_kind_is_refused(name):
    """Gemma 2 caps its scores, GPT-OSS has sinks: what is not computed must not be passed over."""
    packed, distance = layout(GROUPS["alike"])
    q, k, v = (x[None] for x in qkv(2, 1, len(distance)))
    with pytest.raises(Exception, match=name):
        packed_attention(SimpleNamespace(), q, k, v, None, scaling=1.0, blocks=packed.blocks, **{name: 30.0})


# The LM head


@pytest.mark.parametrize("chunk", [1, 2, 100])  # four chunks are multiplied at once
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("cap", [None, 2.0])
def test_token_logprobs_through_the_head_are_those_of_all_logits(cap, temperature, chunk):
    torch.manual_seed(0)
    hidden = torch.randn(7, 6, dtype=torch.float64, requires_grad=True)
    weight, y = torch.randn(11, 6, dtype=torch.float64), torch.randint(11, (7,))
    kept = hidden.detach().clone(), weight.clone()
    logits = hidden @ weight.T
    expected = token_logprobs(logits if cap is None else cap * torch.tanh(logits / cap), y, temperature)
    got = TokenLogprobs.apply(hidden, weight, y, temperature, cap, chunk)
    upstream = torch.randn(7, dtype=torch.float64)
    for ours, theirs in zip(got, expected, strict=True):
        assert_close(ours, theirs, **EXACT)
    assert not got[1].requires_grad
    gradients = [torch.autograd.grad((upstream * out[0]).sum(), hidden)[0] for out in (got, expected)]
    assert_close(*gradients, **EXACT)
    assert torch.equal(hidden, kept[0]) and torch.equal(weight, kept[1])


def test_a_head_that_is_trained_or_has_a_bias_takes_autograds_path():
    frozen = nn.Linear(3, 5, bias=False).requires_grad_(False)
    assert is_plain(frozen)
    assert not is_plain(nn.Linear(3, 5, bias=False))
    assert not is_plain(nn.Linear(3, 5).requires_grad_(False))


# LoRA's layers


def adapted(bias: bool = True, fused: bool = True, **options: Any) -> Any:
    """A layer of 6 -> 5 with an adapter whose B is not 0; the same weights whenever called."""
    torch.manual_seed(1)
    config = LoraConfig(r=3, lora_alpha=7, target_modules=["0"], init_lora_weights=False, **options)
    model = get_peft_model(nn.Sequential(nn.Linear(6, 5, bias=bias)), use_fused(config) if fused else config)
    return model.base_model.model[0]


@pytest.mark.parametrize("shape", [(4, 6), (2, 3, 6)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=str)
def test_the_fused_layer_and_its_gradients_are_pefts(shape, bias, options):
    ours, theirs = (adapted(bias, fused, **options).double() for fused in (True, False))
    assert type(ours) is FusedLinear and ours.is_plain and type(theirs) is not FusedLinear
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(*shape[:-1], 5, dtype=torch.float64)
    found = []
    for layer in (ours, theirs):
        y = layer(x)
        leaves = [x, layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        found.append((y, *torch.autograd.grad((weights * y).sum(), leaves)))
    for got, expected in zip(*found, strict=True):
        assert_close(got, expected, **EXACT)


@pytest.mark.parametrize("options", [{"use_dora": True}, {"lora_dropout": 0.5}, {"lora_bias": True}], ids=str)
def test_what_is_not_plain_lora_takes_pefts_path(options):
    ours, theirs = adapted(True, True, **options), adapted(True, False, **options)
    assert type(ours) is FusedLinear and not ours.is_plain
    x = torch.randn(64, 6)
    found = []
    for layer in (ours, theirs):
        torch.manual_seed(3)
        found.append(layer.train()(x))
    assert torch.equal(*found)


def test_a_layer_whose_base_or_bias_is_trained_gives_them_gradients():
    for part in ("weight", "bias"):
        layer = adapted()
        getattr(layer.base_layer, part).requires_grad_(True)
        layer(torch.randn(4, 6)).sum().backward()
        assert getattr(layer.base_layer, part).grad.abs().sum() > 0


def test_an_adapter_switched_off_is_the_base():
    layer = adapted()
    x = torch.randn(4, 6)
    layer.enable_adapters(False)
    assert torch.equal(layer(x), layer.base_layer(x))


# Norms


@pytest.mark.parametrize("trainable", [True, False])
@pytest.mark.parametrize("shape", [(5, 8), (2, 3, 4, 8)], ids=str)
def test_the_norm_and_its_gradients_are_llamas(shape, trainable):
    torch.manual_seed(0)
    theirs = LlamaRMSNorm(8, eps=1e-3)
    theirs.weight = nn.Parameter(torch.randn(8), requires_grad=trainable)
    ours = RMSNorm(theirs.weight, 1e-3)
    x, upstream = torch.randn(shape, requires_grad=True), torch.randn(shape)
    leaves = [x, theirs.weight] if trainable else [x]
    found = [(y, *torch.autograd.grad((upstream * y).sum(), leaves)) for y in (ours(x), theirs(x))]
    for got, expected in zip(*found, strict=True):
        assert_close(got, expected, rtol=1e-5, atol=1e-6)


def test_the_norm_passes_gradcheck():
    weight = nn.Parameter(torch.randn(4, dtype=torch.float64))
    x = torch.randn(3, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x, w: RMSNorm(w, 0.1)(x) if w is weight else x, (x, weight))


def test_a_frozen_norm_on_inputs_without_a_gradient_still_trains_its_weight():
    norm = RMSNorm(nn.Parameter(torch.ones(4)), 1e-6)
    norm(torch.randn(3, 4)).square().sum().backward()
    assert norm.weight.grad.abs().sum() > 0


# Batches


def batch_of_rows(prompts: list[list[int]], completions: list[list[int]]) -> Batch:
    rows = [p + c for p, c in zip(prompts, completions, strict=True)]
    longest, width = max(map(len, rows)), max(max(map(len, completions)), 1)
    ids = tensor([row + [0] * (longest - len(row)) for row in rows])
    mask = tensor([[True] * len(row) + [False] * (longest - len(row)) for row in rows])
    counted = tensor([[True] * len(c) + [False] * (width - len(c)) for c in completions])
    return Batch(ids, mask, tensor([len(p) for p in prompts]), counted)


def mixed_batch() -> Batch:
    """12 rows of 4 prompts, one of a single token, in no order; completions of 1 to 9 tokens."""
    generator = torch.Generator().manual_seed(0)
    lengths = [1, 9, 4, 1, 1, 6, 2, 8, 3, 5, 1, 7]
    prompts = [[7], [20, 21, 22, 23], [30] * 11, [40, 41, 42]]
    rows = [prompts[i % 4] for i in range(12)]
    return batch_of_rows(rows, [torch.randint(20, 200, (n,), generator=generator).tolist() for n in lengths])


def gradient(model: Any, total: Tensor) -> Tensor:
    leaves = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(total, leaves, allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten()
                      for p, g in zip(leaves, found, strict=True)])  # fmt: skip


@pytest.mark.parametrize("lora", [True, False], ids=["lora", "full"])
@pytest.mark.parametrize("family", families.CONFIGS)
def test_sharing_a_prompt_changes_no_gradient_of_the_policy(family, lora):
    """All rows in one pass, where prompts are shared, against one row after the other, where nothing is."""
    model = families.model(family).double()
    if lora:
        model.requires_grad_(False)
        torch.manual_seed(0)
        config = LoraConfig(task_type=TaskType.CAUSAL_LM, r=4, target_modules="all-linear", init_lora_weights=False)
        model = get_peft_model(model, use_fused(config)).double()
    batch, scorer = mixed_batch(), Scorer(model, 0.8)
    weights = torch.randn(batch.completion_mask.shape, dtype=torch.float64)
    whole = scorer(batch)[0]
    parts = torch.zeros_like(whole)
    for row in range(12):
        alone = batch.rows(tensor([row]))
        parts[row, : alone.completion_mask.shape[1]] = scorer(alone)[0][0]
    tight = dict(rtol=1e-4, atol=1e-5)  # norms of these models and soft caps compute in float32 whatever comes in
    assert_close(whole, parts, **tight)
    ours, theirs = (gradient(model, (weights * values).sum()) for values in (whole, parts))
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-5


def test_a_row_without_a_completion_predicts_nothing():
    """Beside others, and shares its prompt with one of them."""
    model = families.model("llama")
    full = batch_of_rows([[5, 6], [5, 6], [7, 8, 9]], [[10, 11, 12], [13], [14, 15]])
    some = batch_of_rows([[5, 6], [5, 6], [5, 6], [3], [7, 8, 9]], [[10, 11, 12], [], [13], [], [14, 15]])
    hidden, targets = completion_hidden(model, some)
    expected, same = completion_hidden(model, full)
    assert targets.tolist() == same.tolist() == [10, 11, 12, 13, 14, 15]
    assert_close(hidden, expected)


def test_no_completion_at_all_has_no_logprob_and_no_gradient():
    model = families.model("llama")
    logprobs, entropies = Scorer(model, 1.0)(batch_of_rows([[5, 6], [7]], [[], []]))
    assert logprobs.shape == entropies.shape == (2, 1)
    assert logprobs.abs().sum() == entropies.abs().sum() == 0


def cost(batch: Batch, rows: Tensor) -> int:
    """Tokens of a pass: each prompt once."""
    prompts = {batch.prompts[i] for i in rows.tolist()}
    completions = sum(int(batch.mask[i].sum() - batch.starts[i]) for i in rows.tolist())
    return sum(map(len, prompts)) + completions


@pytest.mark.parametrize("tokens", [None, 5, 12, 25, 60, 1000])
@pytest.mark.parametrize("rows", [None, 1, 2, 3, 5])
def test_micro_batches_keep_their_limits_and_hold_every_row_once(rows, tokens):
    batch = mixed_batch()
    parts = micro_batches(batch, rows, tokens)
    assert sorted(torch.cat(parts).tolist()) == list(range(12))
    for part in parts:
        assert rows is None or len(part) <= rows
        assert tokens is None or len(part) == 1 or cost(batch, part) <= tokens
        assert part.dtype == torch.long
    assert [part.tolist() for part in micro_batches(batch, rows, tokens)] == [part.tolist() for part in parts]
    if rows is None and tokens is None:
        assert len(parts) == 1


@pytest.mark.parametrize("tokens", [28, 40, 60])
def test_answers_to_a_prompt_that_fit_a_pass_together_stay_together(tokens):
    batch = mixed_batch()
    parts = [part.tolist() for part in micro_batches(batch, None, tokens)]
    assert len(parts) > 1
    for prompt in set(batch.prompts):
        group = [i for i in range(12) if batch.prompts[i] == prompt]
        if cost(batch, tensor(group)) <= tokens:
            assert sum(any(i in part for i in group) for part in parts) == 1


def test_a_budget_of_tokens_fills_its_passes():
    """Six groups of a prompt of 4 and two completions of 3, 10 tokens each: two to a pass of 20, one to 19."""
    prompts = [[g] * 4 for g in range(10, 16) for _ in range(2)]
    batch = batch_of_rows(prompts, [[1, 2, 3]] * 12)
    assert [len(part) for part in micro_batches(batch, None, 20)] == [4, 4, 4]
    assert [len(part) for part in micro_batches(batch, None, 19)] == [2] * 6


def test_prompts_equal_under_different_names_are_one_group():
    """Rows are grouped by the tokens of their prompts."""
    packed = pack([(1, 2), (3,), (1, 2)], [[4, 5], [6], [7, 8]], CPU)
    assert packed.ids.tolist() == [[1, 2, 4, 7, 3]]
    assert packed.positions.tolist() == [[0, 1, 2, 2, 0]]
    assert packed.predicting.tolist() == [1, 2, 4, 1, 3]


def test_packing_leaves_the_batch_as_it_was():
    batch = mixed_batch()
    before = copy.deepcopy((batch.ids, batch.mask, batch.starts, batch.completion_mask))
    Scorer(families.model("gemma3"), 0.7)(batch)[0].sum().backward()
    for a, b in zip(before, (batch.ids, batch.mask, batch.starts, batch.completion_mask), strict=True):
        assert torch.equal(a, b)


def test_the_mlp_is_llamas_and_keeps_a_tensor_less():
    torch.manual_seed(0)
    theirs = LlamaMLP(families.CONFIGS["llama"]).double()
    ours, x = SwiGLU(theirs), torch.randn(1, 7, 32, dtype=torch.float64)
    found, kept = [], []
    for mlp in (theirs, ours):
        inputs, count = x.clone().requires_grad_(), 0

        def pack(tensor: Tensor) -> Tensor:
            nonlocal count
            count += tensor.numel() == 7 * 48
            return tensor

        theirs.zero_grad()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = mlp(inputs)
        out.square().sum().backward()
        found.append([out, inputs.grad, *(p.grad.clone() for p in theirs.parameters())])
        kept.append(count)
    for a, b in zip(*found, strict=True):
        assert_close(b, a, rtol=1e-12, atol=1e-12)
    assert kept == [4, 2]  # gate, silu(gate), up and their product; gate and up
