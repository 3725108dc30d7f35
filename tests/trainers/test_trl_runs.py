"""Runs that TRL trains, end to end on a tiny model: what changes, what does not, what is reported and when."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy
import pytest
import torch
from accelerate import Accelerator
from torch.testing import assert_close

from align.checkpoints import Keeper, Snapshot, snapshots
from align.refusals import ConfigError
from align.schema import Checkpoint
from align.trainers import trl_losses, trl_runs
from align.trainers.trl_watch import start_loss
from tests.trainers import tiny


class Record:
    """What a run reported, in order: ("probe", n) and ("train", n) with the rows of "train"."""

    def __init__(self, probe: Callable[[int], None] = lambda step: None, keeper: Keeper | None = None):
        self.keeper = keeper
        self.events: list[tuple[str, int]] = []
        self.rows: list[dict[str, float]] = []
        self.told: list[tuple[str, int, dict[str, Any]]] = []
        self._probe = probe

    def log(self, step: int, row: dict[str, float]) -> None:
        self.events.append(("train", step))
        self.rows.append(row)

    def event(self, kind: str, step: int, sentence: str, **details: Any) -> None:
        self.told.append((kind, step, details))

    def probe(self, step: int) -> None:
        self.events.append(("probe", step))
        self._probe(step)


def run(name: str, experiment: Any = None, model: Any = None, record: Record | None = None) -> Record:
    """A run of two steps with a preference loss, "sft" or "reward"."""
    record = record or Record()
    experiment = experiment or settings(name)
    model = model or trained_by(name)
    opened = SimpleNamespace(experiment=experiment, log=record.log, event=record.event, keeper=record.keeper)
    train = {"sft": trl_runs.train_sft, "reward": trl_runs.train_reward}.get(name, trl_runs.train_preference)
    train(opened, model, tiny.DATA, record.probe)
    return record


def settings(name: str, **changes: Any) -> SimpleNamespace:
    return {"sft": tiny.sft, "reward": tiny.reward}.get(name, partial(tiny.preference, name))(**changes)


def trained_by(name: str) -> Any:
    return tiny.reward_model() if name == "reward" else tiny.lora_policy()


def snapshot(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


RUNS = (*tiny.KNOBS, "sft", "reward")


@pytest.mark.parametrize("name", RUNS)
def test_two_steps_change_every_adapter_and_nothing_else(name):
    model = trained_by(name)
    before = snapshot(model.model)
    record = run(name, model=model)
    after = snapshot(model.model)
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    trained = {key for key in before if "lora_" in key or "modules_to_save" in key}
    assert changed == trained
    assert all(math.isfinite(value) for row in record.rows for value in row.values())


@pytest.mark.parametrize("name", ["dpo", "simpo", "kto", "orpo", "sft"])
def test_full_fine_tuning_moves_the_model_and_not_its_reference(name):
    policy = tiny.full_policy()
    before = snapshot(policy.reference)
    run(name, model=policy)
    assert all(torch.equal(value, before[key]) for key, value in policy.reference.state_dict().items())
    assert not any(torch.equal(p, before[key]) for key, p in policy.model.named_parameters())


@pytest.mark.parametrize("name", ["dpo", "ipo", "cdpo", "ldpo", "kto"])
def test_an_adapter_that_rewrites_its_base_starts_at_its_reference(name):
    record = run(name, model=tiny.lora_policy(init="pissa"))
    expected = start_loss(tiny.preference(name).algo)
    assert record.rows[0]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("name", ["dpo", "ipo", "cdpo", "ldpo"])
def test_a_reference_that_is_not_the_start_stops_the_run(name):
    record = Record()
    with pytest.raises(RuntimeError, match="the reference is not the model that training starts from"):
        run(name, model=tiny.lora_policy(moved=True), record=record)
    assert record.rows == []


def test_a_loss_that_is_not_finite_stops_the_run_before_its_update():
    policy = tiny.lora_policy()
    first, *_, last = (p for p in policy.model.parameters() if p.requires_grad)
    first.data.fill_(math.nan)
    before = last.detach().clone()
    with pytest.raises(FloatingPointError, match="step 1: the loss is nan; nothing was updated with it"):
        run("sft", model=policy)
    assert torch.equal(last, before)


def test_a_gradient_that_is_not_finite_stops_the_run_before_its_update():
    policy = tiny.lora_policy()
    last = [p for p in policy.model.parameters() if p.requires_grad][-1]
    last.register_hook(lambda gradient: gradient * math.inf)
    before = last.detach().clone()
    with pytest.raises(FloatingPointError, match="step 1: the gradient norm is (nan|inf); nothing was updated"):
        run("dpo", model=policy)
    assert torch.equal(last, before)


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo", "sft", "reward"])
def test_a_skipped_update_is_counted_and_leaves_every_weight_as_it_was(name):
    model, experiment, seen = trained_by(name), settings(name), []
    experiment.guard.nonfinite = "skip"
    last = [p for p in model.model.parameters() if p.requires_grad][-1]
    last.register_hook(lambda gradient: gradient * (math.inf if len(seen) == 1 else 1.0))  # up to the first update
    record = Record(lambda step: seen.append(snapshot(model.model)))
    run(name, experiment, model, record)
    assert [row["guard/skipped_updates"] for row in record.rows] == [1, 0]
    before, skipped, after = seen
    assert all(torch.equal(before[key], skipped[key]) for key in before)
    assert any(not torch.equal(skipped[key], after[key]) for key in before)
    assert all(value.isfinite().all() for value in after.values())


@pytest.mark.parametrize("name", ["dpo", "kto", "orpo", "sft", "reward"])
def test_a_run_that_goes_on_from_a_checkpoint_ends_as_if_it_had_never_stopped(name, tmp_path):
    def weights(folder: str, start: Snapshot | None = None) -> tuple[Record, dict[str, torch.Tensor]]:
        changes = {"optimizer": tiny.optimizer(schedule="linear", warmup_steps=2)}
        experiment, model = settings(name, **changes), trained_by(name)
        experiment.steps = 5
        keeper = Keeper(tmp_path / folder, Checkpoint(every=1, keep=9), 5, Accelerator(cpu=True), dict, start)
        record = run(name, experiment, model, Record(keeper=keeper))
        return record, snapshot(model.model)

    whole, ended = weights("whole")
    kept = list(snapshots(tmp_path / "whole"))
    assert [snapshot.step for snapshot in kept] == [4, 3, 2, 1]
    for number, start in enumerate(kept[::2]):
        rest, same = weights(f"rest-{number}", start)
        # the probe of its first step is asked for again: `Opened.prober` knows whether that one had been done
        assert rest.events == whole.events[whole.events.index(("probe", start.step)) :]
        assert [told(row) for row in rest.rows] == [told(row) for row in whole.rows[start.step :]]
        assert all(torch.equal(ended[key], same[key]) for key in ended)


def told(row: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in row.items() if not key.startswith("time/")}


def test_step_0_is_probed_before_the_first_update_and_step_n_after_the_nth():
    policy = tiny.lora_policy()
    adapter = [p for name, p in policy.model.named_parameters() if "lora_B" in name][-1]
    zero: list[bool] = []
    record = run("dpo", model=policy, record=Record(lambda step: zero.append(not adapter.any())))
    assert record.events == [("probe", 0), ("train", 1), ("probe", 1), ("train", 2), ("probe", 2)]
    assert zero == [True, False, False]


def test_the_learning_rate_warms_up_and_falls_linearly():
    experiment = tiny.preference("dpo", optimizer=tiny.optimizer(lr=0.06, schedule="linear", warmup_steps=2))
    experiment.steps = 5
    rates = [row["optim/lr"] for row in run("dpo", experiment).rows]
    assert rates == pytest.approx([0, 0.03, 0.06, 0.04, 0.02])


@pytest.mark.parametrize("name", ["dpo", "kto", "sft", "reward"])
def test_probing_never_changes_training(name):
    def weights(probe: Callable[[Any], None]) -> dict[str, torch.Tensor]:
        model = trained_by(name)
        run(name, model=model, record=Record(lambda step: probe(model.model)))
        return snapshot(model.model)

    def draw(model: torch.nn.Module) -> None:
        model.eval()
        random.random(), numpy.random.rand(), torch.manual_seed(random.randrange(100)), torch.rand(3)
        with torch.no_grad():
            model(torch.tensor([[7, 8, 9]]))

    quiet, drawn = weights(lambda model: None), weights(draw)
    assert all(torch.equal(quiet[key], drawn[key]) for key in quiet)


@pytest.mark.parametrize("name", ["dpo", "rdpo", "ldpo", "simpo", "ipo", "sft", "reward"])
def test_the_micro_batch_is_a_matter_of_memory_only(name):
    def weights(micro_batch: int) -> dict[str, torch.Tensor]:
        model = trained_by(name)
        # Adam divides a gradient by its own size: with its usual eps it would turn rounding near 0 into whole steps
        changes = {"micro_batch": micro_batch, "optimizer": tiny.optimizer(eps=1e-3)}
        run(name, settings(name, **changes), model)
        return snapshot(model.model)

    one, four = weights(1), weights(4)
    for key in one:
        assert_close(one[key], four[key], rtol=1e-4, atol=1e-6)


def test_the_same_seed_gives_the_same_weights_and_another_seed_another_order():
    def weights(seed: int) -> dict[str, torch.Tensor]:
        experiment, policy = tiny.preference("dpo"), tiny.lora_policy()
        experiment.seed = seed
        run("dpo", experiment, policy)
        return snapshot(policy.model)

    first, again, other = weights(0), weights(0), weights(3)
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_dpo_learns_its_pairs():
    experiment = tiny.preference("dpo", pairs_per_step=5, micro_batch=5)
    experiment.steps = 8
    rows = run("dpo", experiment).rows
    assert rows[-1]["loss"] < 0.1 < rows[0]["loss"]
    assert rows[-1]["pref/accuracy"] == 1.0
    assert rows[-1]["pref/chosen_logprob"] > 0 > rows[-1]["pref/rejected_logprob"]


@pytest.mark.parametrize("name", RUNS)
def test_a_run_leaves_the_model_as_it_found_it_but_for_the_weights(name):
    model = trained_by(name)
    run(name, model=model)
    assert list(model.model.peft_config) == ["default"]
    assert "forward" not in trl_losses.base_of(model.model).__dict__
    assert model.model.config.use_cache is True
    if name != "reward":
        assert "forward" not in model.reference.__dict__


@pytest.mark.parametrize("name", ["dpo", "orpo", "sft", "reward"])
def test_a_run_prints_nothing_and_reports_to_nobody(name, capfd, monkeypatch):
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **_: pytest.fail("telemetry was sent"))
    model = trained_by(name)
    capfd.readouterr()
    run(name, model=model)
    assert capfd.readouterr() == ("", "")


def test_autocast_asked_of_accelerate_is_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="mixed_precision=bf16: set it to no"):
        run("sft")


@pytest.mark.parametrize("name", ["dpo", "cdpo"])
def test_before_the_first_update_accuracy_is_one_half(name):
    assert run(name).rows[0]["pref/accuracy"] == 0.5


def test_a_run_writes_no_file(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    run("dpo")
    assert list(tmp_path.iterdir()) == []


def test_a_reward_models_accuracy_counts_ties_half():
    # chosen 3 2 1 2, rejected 1 1 2 2: right, right, wrong, tie
    assert trl_runs.reward_accuracy([3, 2, 1, 2, 1, 1, 2, 2], gold=None) == {"rm/accuracy": 0.625}


def test_gold_is_asked_where_it_has_a_preference():
    # gold of chosen 0 2 0 1, of rejected 1 0 2 1: the first and third labels are wrong, the fourth pair is undecided
    row = trl_runs.reward_accuracy([3, 2, 1, 2, 1, 1, 2, 2], gold=[0, 2, 0, 1, 1, 0, 2, 1])
    assert row["rm/gold_accuracy"] == pytest.approx(2 / 3)


def test_without_pairs_there_is_no_accuracy():
    assert trl_runs.reward_accuracy([], gold=[]) == {}


def test_a_trained_reward_model_is_measured_on_the_held_out_pairs():
    experiment, scorer = tiny.reward(pairs_per_step=5, micro_batch=5), tiny.reward_model()
    experiment.steps = 8
    run("reward", experiment, scorer)
    assert trl_runs.reward_metrics(scorer, tiny.DATA, 99) == {"rm/accuracy": 1.0, "rm/gold_accuracy": 0.0}
