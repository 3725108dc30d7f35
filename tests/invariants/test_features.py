"""Frozen features against transformers' own hidden states, answer by answer."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch
from torch.testing import assert_close

from align import features
from align.data.annotator import PoolRow, prompts
from align.data.tokens import encode_prompt
from align.features import answer_features, layer_at, obtain_features
from align.models import load_policy
from tests.config.test_conf import composed

ASKED = prompts("eval")[:2]
TEXTS = ("Bees make honey.", "No", "", "Honey is sweet and it keeps for years")
ROWS = [PoolRow(prompt.id, k, text, 0, k != 3) for prompt in ASKED for k, text in enumerate(TEXTS)]


@pytest.fixture(scope="module")
def policy():
    return load_policy(composed("model=tiny").model, torch.device("cpu"), torch.float32, 0)


def plainly(policy, row: PoolRow, layer: int) -> torch.Tensor:
    """One answer alone, without packing: the mean over its own tokens, EOS included where it is finished."""
    prompt = encode_prompt(policy.tokenizer, next(p for p in ASKED if p.id == row.prompt_id))
    answer = policy.tokenizer(row.text, add_special_tokens=False)["input_ids"]
    answer = answer + [policy.tokenizer.eos_token_id] * row.finished
    out = policy.reference(torch.tensor([prompt + answer]), output_hidden_states=True)
    return out.hidden_states[layer][0, len(prompt) :].mean(0)


@torch.no_grad()
@pytest.mark.parametrize("tokens", [2048, 40])
def test_an_answers_features_are_the_mean_of_its_own_hidden_states(policy, tokens):
    with patch.object(features, "TOKENS", tokens):  # several answers to a pass, or one
        found = answer_features(policy, ROWS, ASKED, (0.5,))
    assert found.shape == (8, 1, 32) and found.dtype == torch.float32
    for row, own in zip(ROWS, found[:, 0], strict=True):
        assert_close(own, plainly(policy, row, 1), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_depths_are_layers_before_the_final_norm(policy):
    first, last = answer_features(policy, ROWS, ASKED, (0.5, 1)).unbind(1)
    decoder = policy.reference.get_decoder()
    normed = plainly(policy, ROWS[0], 2)  # transformers' last hidden state is behind the norm
    assert not torch.allclose(first, last) and not torch.allclose(last[0], normed, atol=1e-3)
    alone = [row for row in ROWS if row.text == "No"][:1]
    prompt = encode_prompt(policy.tokenizer, ASKED[0])
    ids = torch.tensor([[*prompt, *policy.tokenizer("No")["input_ids"], policy.tokenizer.eos_token_id]])
    seen = []
    handle = decoder.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0][0, len(prompt) :].mean(0)))
    policy.reference(ids)
    handle.remove()
    assert_close(answer_features(policy, alone, ASKED, (1,))[0, 0], seen[0], rtol=1e-4, atol=1e-5)


def test_a_truncated_answer_without_a_token_has_zeros(policy):
    row = PoolRow(ASKED[0].id, 0, "", 3, False)
    assert not answer_features(policy, [row], ASKED, (1,)).any()


def test_a_share_of_the_layers_is_a_layer():
    assert [layer_at(depth, 30) for depth in (0.333, 0.667, 1)] == [10, 20, 30]
    assert [layer_at(depth, 24) for depth in (0.333, 0.667, 1)] == [8, 16, 24]
    assert layer_at(0.1, 2) == 1


def test_features_are_computed_once_for_the_same_answers(policy, tmp_path, capsys):
    first = obtain_features(policy, ROWS, ASKED, (1,), tmp_path)
    assert "computing features of 8 answers" in capsys.readouterr().out
    again = obtain_features(policy, ROWS, ASKED, (1,), tmp_path)
    assert capsys.readouterr().out == "" and torch.equal(first, again)
    other = [replace(ROWS[0], text="Other"), *ROWS[1:]]
    changed = obtain_features(policy, other, ASKED, (1,), tmp_path)
    assert torch.equal(changed[1:], first[1:]) and not torch.equal(changed[0], first[0])
    assert len(list(tmp_path.glob("features-*.safetensors"))) == 2
