"""What weights between sampler and trainer do to a step; without them, or where both agree, nothing changes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch.testing import assert_close

from align.schema import Importance
from align.trainers.estimators import weighted
from tests.end_to_end.helpers import no_warmup, run
from tests.trainers import fixed_rollout as fixed

TRUNCATED = Importance("token", "truncated", 2.0)
KNOWN = {"importance/mean", "importance/bounded", "sampler/gap"}


def disturbed(made, by: torch.Tensor):
    """The rollout as a sampler would have told it whose log-probabilities are lower by `by`."""
    rollout = made.rollout
    assert rollout.old_logprobs is not None
    there = (rollout.old_logprobs - by).masked_fill(~rollout.completions.mask, 0.0)
    return replace(rollout, completions=replace(rollout.completions, logprobs=there))


@pytest.fixture
def made(monkeypatch):
    return fixed.Fixed(fixed.experiment("algo=grpo", "algo.epochs=2"), fixed.policy(), monkeypatch)


def test_a_token_that_the_sampler_found_half_as_likely_counts_twice_and_no_token_more(made):
    mask = made.targets.mask
    double = weighted(made.targets, disturbed(made, torch.full(mask.shape, 0.6931472)), TRUNCATED)
    assert_close(double.advantages[mask], 2 * made.targets.advantages[mask])
    more = weighted(made.targets, disturbed(made, torch.full(mask.shape, 3.0)), TRUNCATED)
    assert_close(more.advantages[mask], 2 * made.targets.advantages[mask])
    assert more.stats["importance/bounded"] == 1 and more.stats["importance/mean"] == pytest.approx(2)
    masked = weighted(made.targets, disturbed(made, torch.full(mask.shape, 3.0)), replace(TRUNCATED, bound="masked"))
    assert not masked.advantages[mask].any() and masked.mask is made.targets.mask


def test_a_completion_is_weighed_as_one(made):
    mask = made.targets.mask
    first = torch.zeros(mask.shape)
    first[:, 0] = 0.6931472  # one token of each is twice as likely here
    whole = weighted(made.targets, disturbed(made, first), Importance("sequence_sum", "truncated", 5.0))
    assert_close(whole.advantages[mask], 2 * made.targets.advantages[mask])


def test_where_sampler_and_trainer_agree_or_nothing_is_asked_for_advantages_are_the_same_to_the_last_bit(made):
    assert weighted(made.targets, made.rollout, None) is made.targets
    same = weighted(made.targets, disturbed(made, torch.zeros(made.targets.mask.shape)), TRUNCATED)
    assert torch.equal(same.advantages, made.targets.advantages)
    assert same.stats["importance/mean"] == 1 and same.stats["importance/bounded"] == 0


def test_a_run_with_the_local_sampler_is_hardly_changed_by_weights_and_says_so(tmp_path):
    settings = (*no_warmup("grpo"), "steps=2")
    plain = run(tmp_path, *settings)
    weighed = run(tmp_path, *settings, "sampling.importance={level:token,bound:truncated,cap:2}")
    for row in weighed.phase("train"):
        assert row["importance/mean"] == pytest.approx(1, abs=1e-4) and row["importance/bounded"] == 0
        assert row["sampler/gap"] < 1e-4
    for one, other in zip(plain.phase("train"), weighed.phase("train"), strict=True):
        assert one.keys() == other.keys() - KNOWN
        assert one["reward/mean"] == other["reward/mean"]


def test_a_bound_that_leaves_nothing_trains_nothing(tmp_path, monkeypatch):
    """The sampler is made to lie about its logprobs: every ratio is far outside, every token is cut."""
    from align.trainers import on_policy

    real = on_policy.sample

    def lying(*asked):
        made = real(*asked)
        return replace(made, logprobs=(made.logprobs - 9).masked_fill(~made.mask, 0.0))

    monkeypatch.setattr(on_policy, "sample", lying)
    cut = "sampling.importance={level:token,bound:masked,cap:2}"
    record = run(tmp_path, *no_warmup("dr_grpo"), "steps=1", cut)
    (row,) = record.phase("train")
    assert row["importance/bounded"] == 1 and row["importance/mean"] == 0
    assert row["optim/grad_norm"] == 0
    assert row["sampler/gap"] == pytest.approx(9, abs=0.01)
