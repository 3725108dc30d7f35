"""Watching a TRL trainer: its logs become our rows, our probe runs at its steps, and its start is checked.

Steps count as in the on-policy loop: row n is about the n-th update, the probe of step n sees the weights after it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import TrainerCallback

from align.checkpoints import Keeper, restore_rng, rng_state
from align.device import lay_out_gradients
from align.maths import preference

# TRL's key -> ours. What is not here is dropped (its times and token counts: we have our own).
NAMES = {
    "loss": "loss",
    "grad_norm": "optim/grad_norm",
    "learning_rate": "optim/lr",
    "entropy": "policy/entropy",
    "rewards/accuracies": "pref/accuracy",
    "accuracy": "rm/accuracy",
    "margin": "rm/margin",
}
# TRL logs these times beta; ours are log-ratios to the reference in nats. Losses without a reference have none.
REWARDS = {
    "rewards/margins": "pref/margin",
    "rewards/chosen": "pref/chosen_logprob",
    "rewards/rejected": "pref/rejected_logprob",
}
MARGINS = {"rewards/accuracies": "rewards/margins", "accuracy": "margin"}
START_TOLERANCE = 1e-4


def translate(logs: Mapping[str, float], beta: float | None) -> dict[str, float]:
    """One of TRL's log entries in our terms. `beta` is None for a loss without a reference.

    TRL counts a tied pair as wrong, so that a policy that still equals its reference would read 0 % accurate. When no
    pair is right and the mean margin is 0, then no margin is positive, all are 0, and the accuracy is one half.
    """
    row = {name: float(logs[key]) for key, name in NAMES.items() if key in logs}
    if beta is not None:
        row |= {name: float(logs[key]) / beta for key, name in REWARDS.items() if key in logs}
    for key, margin in MARGINS.items():
        if logs.get(key) == 0 and logs.get(margin) == 0:
            row[NAMES[key]] = 0.5
    return row


def start_loss(algo: Any) -> float | None:
    """The loss of a policy that equals its reference, None where it depends on the data (rdpo: on the lengths).

    dpo, cdpo and ldpo: ln 2.  ipo: 1 / (4 beta^2).  kto: (w_D + w_U) / 4, as half of the examples are good.
    """
    zero, one = torch.zeros(1), torch.ones(1)
    table: dict[str, Callable[[], torch.Tensor]] = {
        "dpo": lambda: preference.dpo(zero, zero, algo.beta),
        "ldpo": lambda: preference.dpo(zero, zero, algo.beta),
        "cdpo": lambda: preference.cdpo(zero, zero, algo.beta, algo.label_smoothing),
        "ipo": lambda: preference.ipo(zero, zero, one, one, algo.beta),
        "kto": lambda: (algo.desirable_weight + algo.undesirable_weight) / 4 * one,
    }
    return table[algo.loss]().item() if algo.loss in table else None


@dataclass(frozen=True)
class Watch:
    """What to do with a trainer's steps."""

    log: Callable[[int, dict[str, float]], None]  # number of the update, metrics
    probe: Callable[[int], None]  # called at step 0 and after each update; it knows whether it is due
    beta: float | None = None  # of the loss's reference; see `translate`
    start_loss: float | None = None  # what the first row's loss must be
    keeper: Keeper | None = None  # of checkpoints; None keeps none
    event: Callable[..., None] = lambda *args, **details: None  # something that a reader should see


@dataclass(frozen=True)
class Begin:
    """Where a trainer begins: after `step` updates."""

    step: int = 0
    state: Mapping[str, Any] | None = None  # of optimizer and schedule; None: new ones
    restore_rng: Callable[[], None] = lambda: None
    looked: bool = False  # whether the probe of that step and its checkpoint are done


class Watcher(TrainerCallback):
    """The one callback. Raises RuntimeError when the first loss is not that of a policy at its reference."""

    def __init__(self, watch: Watch, trained: Any, begin: Begin):
        self.watch, self.begin = watch, begin
        self.trained = trained  # the module whose weights are kept
        self.skipped = 0  # updates that guard.nonfinite left out since the last row
        self._began = 0.0
        self._streams: Mapping[str, Any] = {}
        self._parts: dict[str, Any] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, **parts: Any) -> None:
        self._parts = parts
        if self.begin.state is not None:
            parts["optimizer"].load_state_dict(self.begin.state["optimizer"])
            parts["lr_scheduler"].load_state_dict(self.begin.state["schedule"])
        if not self.begin.looked:
            self._look(self.begin.step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._began = time.perf_counter()
        if state.global_step == self.begin.step:
            self.begin.restore_rng()  # here: a data loader draws from the global stream when it starts
        self._streams = rng_state()
        lay_out_gradients(self.trained.parameters())

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **_: Any) -> None:
        """Called once after each optimizer step, and once more with a summary that has no "loss"."""
        if not logs or "loss" not in logs:
            return
        step, row = state.global_step, translate(logs, self.watch.beta)
        if step == 1:
            self._check_start(row["loss"])
        row["guard/skipped_updates"] = self.skipped
        self.skipped = 0
        row["time/update"] = time.perf_counter() - self._began
        if state.is_world_process_zero:
            self.watch.log(step, row)
        self._look(step)

    def _look(self, step: int) -> None:
        self.watch.probe(step)
        if self.watch.keeper is not None:
            self.watch.keeper.save(step, self.trained, self._state)

    def again(self, step: int) -> Begin:
        """From the updates that are done, with the random numbers of the one that was not."""
        return Begin(step, self._state(), partial(restore_rng, self._streams), looked=True)

    def _state(self) -> dict[str, Any]:
        return {
            "optimizer": self._parts["optimizer"].state_dict(),
            "schedule": self._parts["lr_scheduler"].state_dict(),
        }

    def _check_start(self, loss: float) -> None:
        expected = self.watch.start_loss
        if expected is not None and abs(loss - expected) > START_TOLERANCE * max(1.0, expected):
            raise RuntimeError(
                f"the first loss is {loss:.6f}, but with the policy equal to its reference it must be {expected:.6f}: "
                "the reference is not the model that training starts from"
            )
