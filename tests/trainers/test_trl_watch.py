"""TRL's log entries in our terms."""

from __future__ import annotations

import math
import random

import numpy
import pytest
import torch

from align.checkpoints import kept_rng
from align.trainers.trl_watch import start_loss, translate
from tests.trainers import tiny


@pytest.mark.parametrize(
    ("loss", "expected"),
    [("dpo", math.log(2)), ("cdpo", math.log(2)), ("ldpo", math.log(2)), ("ipo", 6.25), ("kto", 0.625),
     ("rdpo", None), ("simpo", None), ("orpo", None)],
)  # fmt: skip
def test_the_loss_at_the_reference_by_hand(loss, expected):  # ipo: 1 / (4 x 0.04); kto: (1 + 1.5) / 4
    assert start_loss(tiny.preference(loss).algo) == (expected and pytest.approx(expected, rel=1e-6))


def test_trls_rewards_become_log_ratios_in_nats_and_unknown_keys_are_dropped():
    logs = {"loss": 0.5, "grad_norm": 2.0, "learning_rate": 1e-4, "rewards/margins": 0.3, "rewards/chosen": 0.1,
            "rewards/rejected": -0.2, "rewards/accuracies": 0.75, "num_tokens": 7, "epoch": 1.0}  # fmt: skip
    assert translate(logs, beta=0.1) == pytest.approx(
        {"loss": 0.5, "optim/grad_norm": 2.0, "optim/lr": 1e-4, "pref/margin": 3.0, "pref/chosen_logprob": 1.0,
         "pref/rejected_logprob": -2.0, "pref/accuracy": 0.75}
    )  # fmt: skip


def test_a_loss_without_a_reference_has_no_log_ratios():
    assert translate({"loss": 0.5, "rewards/margins": 0.3, "rewards/accuracies": 0.75}, beta=None) == {
        "loss": 0.5, "pref/accuracy": 0.75}  # fmt: skip


@pytest.mark.parametrize(("accuracy", "margin", "expected"), [(0.0, 0.0, 0.5), (0.0, -1.0, 0.0), (0.25, 0.0, 0.25)])
def test_pairs_that_all_tie_are_half_right(accuracy, margin, expected):
    assert translate({"rewards/accuracies": accuracy, "rewards/margins": margin}, 0.1)["pref/accuracy"] == expected
    assert translate({"accuracy": accuracy, "margin": margin}, None)["rm/accuracy"] == expected


def test_what_a_probe_draws_is_not_missing_outside_even_when_it_fails():
    def drawn():
        return random.random(), numpy.random.rand(), float(torch.rand(())), random.gauss(0, 1), numpy.random.randn()

    for seed in (random.seed, numpy.random.seed, torch.manual_seed):
        seed(1)
    random.gauss(0, 1), numpy.random.randn()  # each keeps the second of a pair for the next call
    with pytest.raises(ZeroDivisionError), kept_rng():
        inside = drawn()
        raise ZeroDivisionError
    assert drawn() == inside
