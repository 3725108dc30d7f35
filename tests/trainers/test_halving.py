"""A pass that runs out of memory is made in halves: the same numbers, and it is said."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from accelerate import Accelerator
from torch.testing import assert_close

from align.forward import Scorer, batch_of, score
from align.halving import Halving, TooLarge, out_of_memory
from tests.trainers import fixed_rollout as fixed
from tests.trainers import tiny
from tests.trainers.test_trl_runs import Record, run, settings, trained_by


@pytest.fixture(autouse=True)
def steps_count():
    """What fails between two micro-batches leaves Accelerate's one state such that no later step would do anything."""
    yield
    Accelerator(cpu=True).gradient_state._set_sync_gradients(True)


CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB."


@pytest.mark.parametrize(
    ("error", "is_it"),
    [(torch.OutOfMemoryError(CUDA), True), (MemoryError(), True), (RuntimeError("std::bad_alloc"), True),
     (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes."), True),
     (RuntimeError("could not create a memory object"), True), (RuntimeError("shape '[2]' is invalid"), False),
     (RuntimeError(), False), (RuntimeError(ValueError("the cause")), False)],
)  # fmt: skip
def test_what_is_out_of_memory(error, is_it):
    assert out_of_memory(error) == is_it


def test_only_a_pass_that_can_be_smaller_is_tried_again():
    def attempt(halving: Halving, rows: int, error: Exception) -> None:
        with halving.trying(rows):
            raise error

    with pytest.raises(TooLarge, match="a pass of 2 rows"):
        attempt(Halving(), 2, torch.OutOfMemoryError(CUDA))
    for halving, rows, error in ((Halving(), 1, torch.OutOfMemoryError(CUDA)), (Halving(), 2, RuntimeError("other")),
                                 (Halving(alone=False), 2, torch.OutOfMemoryError(CUDA))):  # fmt: skip
        with pytest.raises(RuntimeError, match=str(error)):
            attempt(halving, rows, error)


@pytest.mark.parametrize(
    ("rows", "whole", "fewer"), [(8, 0, 4), (3, 0, 1), (9, 9, 3), (6, 12, 3), (5, 10, 2), (4, 9, 1)]
)
def test_half_of_the_rows_or_what_divides_the_step(rows, whole, fewer):
    halving = Halving(rows, whole=whole)
    halving.halve(rows)
    told: list[Any] = []
    halving.report(7, lambda kind, step, sentence, **details: told.append((kind, step, details)))
    halving.report(8, lambda *news, **details: told.append(news))
    assert halving.rows == fewer and told == [("memory", 7, {"rows": rows, "rows_now": fewer})]


def test_passes_do_not_grow_back_when_a_larger_one_of_short_rows_is_halved():
    halving = Halving()
    for rows in (4, 2, 8):
        halving.halve(rows)
    assert halving.rows == 1 and halving.news == [(4, 2), (2, 1)]


def test_scores_of_halves_are_the_scores():
    policy = fixed.policy()
    batch = batch_of(fixed.completions(), policy.tokenizer.pad_token_id, policy.device)
    scorer, sizes = Scorer(policy.model, 1.0), list[int]()

    def small(part: Any) -> Any:
        sizes.append(len(part.ids))
        if len(part.ids) > 2:
            raise torch.OutOfMemoryError(CUDA)
        return scorer(part)

    halving = Halving()
    for got, expected in zip(score(small, batch, halving), score(scorer, batch), strict=True):
        assert_close(got, expected, rtol=1e-5, atol=1e-6)
    assert sizes == [8, 4, 2, 2, 4, 2, 2] and halving.rows == 2
    score(small, batch, halving)
    assert sizes[7:] == [2] * 4  # from then on


@pytest.mark.parametrize("algo", ["grpo", "ppo", "reinforce_pp"])
@pytest.mark.parametrize("fails_at", [1, 2])  # with nothing, and with another micro-batch's gradient behind it
def test_an_update_in_halves_is_the_update(monkeypatch, algo, fails_at):
    loop = fixed.Fixed(
        fixed.experiment(f"algo={algo}", "algo.epochs=2", "algo.minibatches=1", "algo.micro_batch=4"),
        fixed.policy(),
        monkeypatch,
    )
    stats, expected = loop.gradients()
    backward, calls = loop.trainer.accelerator.backward, list[int]()

    def full(loss: Any) -> None:
        backward(loss)  # its gradient is there when it is found that memory does not last
        calls.append(1)
        if len(calls) == fails_at:
            raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(loop.trainer.accelerator, "backward", full)
    again, found = loop.gradients()
    assert len(calls) >= 4 and loop.learner.halving.news[0] == (4, 2)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert again == pytest.approx(stats, rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("name", ["dpo", "simpo", "sft", "reward"])
def test_a_trainer_of_trl_goes_on_with_smaller_micro_batches(name, monkeypatch):
    """The third micro-batch of four fails, in the second step: behind a gradient of the same step."""

    def weights() -> tuple[Record, dict[str, torch.Tensor]]:
        experiment = settings(name)
        experiment.steps, experiment.algo.optimizer = 3, tiny.optimizer(eps=1e-3, schedule="linear")
        model = trained_by(name)
        record = run(name, experiment, model)
        return record, {key: value.clone() for key, value in model.model.state_dict().items()}

    whole, expected = weights()
    step, calls = transformers.Trainer.training_step, list[int]()

    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        loss = step(self, *args, **kwargs)
        calls.append(self.args.per_device_train_batch_size)
        if len(calls) == 4:
            raise torch.OutOfMemoryError(CUDA)
        return loss

    monkeypatch.setattr(transformers.Trainer, "training_step", full)
    record, found = weights()
    assert calls == [2, 2, 2, 2] + [1] * 8
    assert record.told == [("memory", 2, {"rows": 2, "rows_now": 1})]
    assert record.events == whole.events
    for one, other in zip(record.rows, whole.rows, strict=True):
        # TRL's entropy is a mean of the micro-batches' means
        timeless = {key for key in other if not key.startswith(("time/", "policy/entropy"))}
        assert {key: one[key] for key in timeless} == pytest.approx(
            {key: other[key] for key in timeless}, rel=1e-3, abs=1e-5
        )
    for key, value in expected.items():
        assert_close(found[key], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", ["kto", "orpo"])
def test_losses_that_depend_on_the_micro_batch_end_as_before(name, monkeypatch):
    def full(self: Any, *args: Any, **kwargs: Any) -> Any:
        raise torch.OutOfMemoryError(CUDA)

    monkeypatch.setattr(transformers.Trainer, "training_step", full)
    with pytest.raises(torch.OutOfMemoryError, match="out of memory"):
        run(name)
