"""What TRL's trainers get from our packed forward against the plain one: padded rows, the model's own forward, all
logits kept.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from trl.trainer.utils import add_fused_lm_head

from align.packing import right_pad, shared_prompts
from align.reward_model import build_reward_model
from align.trainers.trl_data import IGNORED
from align.trainers.trl_forward import rate_packed, score_packed
from tests.invariants import families
from tests.trainers import tiny

FAMILIES = list(families.CONFIGS)
COSINE = 0.99999
LONG, SHORT = list(range(40, 62)), [33, 34, 35]  # longer than a sliding window of 8, and shorter
# As TRL's collator stacks pairs: all chosen, then all rejected. (prompt, answer)
PAIRS = [
    (LONG, [100, 101, 102]),
    (SHORT, [7]),  # one token: nothing of it is read by the model
    (SHORT, [9, 8, 7, 6]),  # the same prompt in another pair
    (LONG, list(range(150, 170))),
    (SHORT, [7, 7, 1]),  # begins with the other answer
    (SHORT, [9, 9, 9, 9, 9, 1]),
]
EXAMPLES = [(LONG, [100, 1]), (SHORT, list(range(70, 90))), ([5], [6, 7, 8, 1])]


def batch(rows: list[tuple[list[int], list[int]]]) -> dict[str, Tensor]:
    ids, mask = right_pad([prompt + answer for prompt, answer in rows], 0, torch.device("cpu"))
    labels = ids.masked_fill(~mask, IGNORED)
    for label, (prompt, _) in zip(labels, rows, strict=True):
        label[: len(prompt)] = IGNORED
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def plain(model: Any, inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """Logprobs and entropies [B, L - 1], 0 where the label is ignored."""
    log_p = families.full_logits(model, inputs["input_ids"], inputs["attention_mask"])[:, :-1].log_softmax(-1)
    labels = inputs["labels"][:, 1:]
    logprobs = log_p.gather(-1, labels.clamp(min=0).unsqueeze(-1)).squeeze(-1)
    entropies = -(log_p.exp() * log_p).sum(-1)
    return logprobs * (labels != IGNORED), entropies * (labels != IGNORED)


def trained(family: str, **changes: Any) -> Any:
    """A model as it is while TRL trains it."""
    model = families.model(family, **changes).train()
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    score_packed(model)
    return model


def gradient(model: Any, values: Tensor) -> Tensor:
    """Of a sum in which every value has its own weight."""
    model.zero_grad()
    (values * torch.randn(values.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.requires_grad]).double()


def assert_same_gradient(ours: Tensor, theirs: Tensor) -> None:
    assert torch.cosine_similarity(ours, theirs, dim=0) > COSINE
    assert (ours - theirs).norm() < 1e-4 * theirs.norm()


def tokens_read(module: Any, call: Any) -> int:
    """How many tokens one call sends through the layers."""
    seen: list[int] = []
    hook = module.get_input_embeddings().register_forward_hook(lambda _, args, __: seen.append(args[0].numel()))
    call()
    hook.remove()
    return sum(seen)


@pytest.mark.parametrize("head", ["trained", "frozen"])
@pytest.mark.parametrize("rows", [PAIRS, EXAMPLES], ids=["pairs", "examples"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logprobs_entropies_and_gradients_are_the_plain_forwards(family, rows, head):
    model, inputs = trained(family), batch(rows)
    model.get_output_embeddings().requires_grad_(head == "trained")
    found = model(**inputs, use_cache=False, fused_lm_head=True)
    logprobs, entropies = plain(model, inputs)
    assert_close(found.log_probs, logprobs, rtol=1e-5, atol=1e-5)
    assert_close(found.entropy, entropies, rtol=1e-5, atol=1e-5)
    assert torch.equal(found.label_mask, inputs["labels"][:, 1:] != IGNORED)
    assert_same_gradient(gradient(model, found.log_probs), gradient(model, logprobs))


def test_a_prompt_is_read_once_and_no_padding_and_no_last_token():
    model, inputs = trained("llama"), batch(PAIRS)
    read = tokens_read(model, lambda: model(**inputs, fused_lm_head=True))
    assert read == len(LONG) + len(SHORT) + 2 + 0 + 3 + 19 + 2 + 5
    assert inputs["input_ids"].numel() == 6 * 42


@pytest.mark.parametrize("ignored", [(0, 22), (0, 23), (0, 24), (1, 3)], ids=["first", "middle", "last", "whole row"])
def test_labels_that_are_not_one_run_up_to_the_end_are_still_scored_rightly(ignored):
    model, inputs = trained("llama"), batch(PAIRS)
    inputs["labels"][ignored] = IGNORED
    found = model(**inputs, use_cache=False, fused_lm_head=True)
    assert_close(found.log_probs, plain(model, inputs)[0], rtol=1e-5, atol=1e-5)


def test_padding_on_the_left_is_still_scored_rightly():
    model, inputs = trained("llama"), batch(EXAMPLES[:1])
    expected = plain(model, inputs)[0].sum()
    shifted = {key: torch.nn.functional.pad(value, (3, 0), value=IGNORED if key == "labels" else 0)
               for key, value in inputs.items()}  # fmt: skip
    assert_close(model(**shifted, fused_lm_head=True).log_probs.sum(), expected, rtol=1e-5, atol=1e-5)


def test_dropout_on_attention_still_drops():
    model, inputs = trained("llama", attention_dropout=0.5), batch(EXAMPLES)
    first, second = (model(**inputs, fused_lm_head=True).log_probs for _ in range(2))
    assert not torch.allclose(first, second)
    assert_close(model.eval()(**inputs, fused_lm_head=True).log_probs, plain(model, inputs)[0], rtol=1e-5, atol=1e-5)


def test_a_model_that_trl_gave_no_head_keeps_its_forward():
    model = families.model("llama")
    score_packed(model)
    assert "forward" not in model.__dict__


# --- reward models ---


def reward_model(family: str) -> Any:
    lora = SimpleNamespace(**(vars(tiny.LORA) | {"targets": "all-linear"}))
    base = families.model(family).requires_grad_(False)
    made = build_reward_model(SimpleNamespace(lora=lora), base, families.TOKENIZER, seed=1)
    tiny.perturb(made.model)
    return made


def rewards(model: Any, rows: list[list[int]]) -> Tensor:
    """One unpadded row at a time. [B]"""
    return torch.cat([model(input_ids=torch.tensor([row]), use_cache=False).logits[:, 0] for row in rows])


WHOLE = [prompt + answer for prompt, answer in PAIRS]


@pytest.mark.parametrize("family", FAMILIES)
def test_rewards_and_their_gradients_are_the_plain_forwards(family):
    model = reward_model(family).model.train()
    expected = rewards(model, WHOLE)
    rate_packed(model.get_base_model())
    ids, mask = right_pad(WHOLE, 0, torch.device("cpu"))
    found = model(input_ids=ids, attention_mask=mask.long(), use_cache=False).logits
    assert found.shape == (6, 1)
    assert_close(found[:, 0], expected, rtol=1e-5, atol=1e-5)
    assert_same_gradient(gradient(model, found[:, 0]), gradient(model, expected))


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_are_the_plain_forwards_in_the_order_asked(family):
    made = reward_model(family)
    rows = [*map(tuple, WHOLE), (44,), tuple(WHOLE[0])]  # one of a single token, one asked twice
    with torch.no_grad():
        expected = rewards(made.model, [list(row) for row in rows])
    for size in (3, 16):
        assert_close(torch.tensor(made.score(rows, rows=size)), expected, rtol=1e-5, atol=1e-5)


def test_the_beginning_that_answers_have_in_common_is_read_once():
    made = reward_model("llama")
    read = tokens_read(made.model, lambda: made.score([tuple(row) for row in WHOLE]))
    assert read == len(LONG) + 3 + 20 + len(SHORT) + 1 + 3 + 4 + 6


def test_rows_share_what_saves_most():
    rows = [(1, 2, 3, 9), (1, 2, 3, 8, 8), (1, 4, 4, 4), (1, 4, 4, 4, 5), (6,)]
    assert shared_prompts(rows) == [(1, 2, 3), (1, 2, 3), (1, 4, 4, 4), (1, 4, 4, 4), (6,)]  # 3 + 4; the 1 alone: 3
    assert shared_prompts([(1, 2, 3), (1, 2, 4), (1, 2, 5), (1, 2, 5)]) == [(1, 2)] * 4  # 3 x 2; apart: 2 + 3
