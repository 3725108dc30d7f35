"""The runs that TRL trains: SFT, reward models and the DPO family. Data in, metrics and probes out.

A policy is `.model`, `.tokenizer` and `.reference`, a frozen model (align/models.py); a reward model is `.model` and
`.tokenizer` (align/reward_model.py).
"""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers import PrinterCallback, Trainer
from transformers.utils import logging as transformers_logging

from align.maths import preference
from align.trainers import trl_data
from align.trainers.trl_losses import PREFERENCE, REFERENCE_FREE, REWARD, SFT, Kind, base_of
from align.trainers.trl_watch import Watch, Watcher, start_loss

if TYPE_CHECKING:
    from align.records import Demonstration, PreferencePair, Prompt
    from align.schema import Experiment

Log = Callable[[int, dict[str, float]], None]
ProbeAt = Callable[[int], None]
Score = Callable[[Sequence[tuple["Prompt", str]]], Sequence[float]]


def train_preference(
    experiment: Experiment, policy: Any, pairs: Sequence[PreferencePair], folder: Path, log: Log, probe: ProbeAt
) -> None:
    """Train the policy on preference pairs with the loss that `experiment.algo.loss` names.

    `log` gets a row per update, counted from 1; `probe` is called with 0 before the first and with n after the n-th.
    Raises RuntimeError when the first loss shows that the reference is not where training starts, FloatingPointError
    when a loss or gradient is not finite.
    """
    algo = experiment.algo
    order = trl_data.training_order(len(pairs), experiment.steps * algo.pairs_per_step, experiment.seed)
    rows = _take(trl_data.pair_rows(policy.tokenizer, pairs), order)
    kind = PREFERENCE[algo.loss]
    beta = None if algo.loss in REFERENCE_FREE else algo.beta
    watch = Watch(log, probe, beta, start_loss(algo))
    _train(kind, experiment, policy, kind.layout(rows, algo.pairs_per_step), folder, watch)


def train_sft(
    experiment: Experiment, policy: Any, examples: Sequence[Demonstration], folder: Path, log: Log, probe: ProbeAt
) -> None:
    """Train the policy to imitate responses; `log` and `probe` as in `train_preference`."""
    draws = experiment.steps * experiment.algo.examples_per_step
    order = trl_data.training_order(len(examples), draws, experiment.seed)
    rows = _take(trl_data.demonstration_rows(policy.tokenizer, examples), order)
    _train(SFT, experiment, policy, rows, folder, Watch(log, probe))


def train_reward(
    experiment: Experiment, reward_model: Any, pairs: Sequence[PreferencePair], folder: Path, log: Log, probe: ProbeAt
) -> None:
    """Train a reward model on preference pairs; `log` and `probe` as in `train_preference`."""
    order = trl_data.training_order(len(pairs), experiment.steps * experiment.algo.pairs_per_step, experiment.seed)
    rows = _take(trl_data.reward_rows(reward_model.tokenizer, pairs), order)
    _train(REWARD, experiment, reward_model, rows, folder, Watch(log, probe))


def reward_accuracy(score: Score, pairs: Sequence[PreferencePair], gold: Score | None = None) -> dict[str, float]:
    """How often a reward model is right about pairs, ties half: against their labels, and against noiseless gold.

    `gold` judges the same answers; pairs on which it ties have no right answer and are left out of rm/gold_accuracy.
    No pairs, no keys.
    """
    if not pairs:
        return {}
    answers = [(pair.prompt, pair.chosen) for pair in pairs] + [(pair.prompt, pair.rejected) for pair in pairs]
    chosen, rejected = torch.tensor(list(score(answers)), dtype=torch.float64).chunk(2)
    row = {"rm/accuracy": preference.accuracy(chosen, rejected).item()}
    if gold is not None:
        gold_chosen, gold_rejected = torch.tensor(list(gold(answers)), dtype=torch.float64).chunk(2)
        sides = (gold_chosen - gold_rejected).sign()
        margins = ((chosen - rejected) * sides)[sides != 0]
        row["rm/gold_accuracy"] = preference.accuracy(margins, torch.zeros_like(margins)).item()
    return row


def build_trainer(kind: Kind, experiment: Experiment, policy: Any, rows: list[trl_data.Row], folder: Path) -> Trainer:
    """The trainer of a run, not yet started. Raises ValueError when Accelerate would autocast."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    trainer = kind.trainer(
        model=policy.model,
        args=kind.config(**kind.settings(experiment, folder, processes)),
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        **kind.extra(experiment, policy),
    )
    if trainer.accelerator.mixed_precision != "no":
        raise ValueError(
            f"accelerate's mixed_precision={trainer.accelerator.mixed_precision}: set it to no, models are loaded in "
            "`dtype` and autocast would make training and probe disagree"
        )
    trainer.remove_callback(PrinterCallback)  # prints every log entry
    return trainer


def _train(
    kind: Kind, experiment: Experiment, policy: Any, rows: list[trl_data.Row], folder: Path, watch: Watch
) -> None:
    with _quiet(), _own_forward(policy):
        trainer = build_trainer(kind, experiment, policy, rows, folder)
        trainer.add_callback(Watcher(watch))
        trainer.train()


def _take(rows: list[trl_data.Row], order: list[int]) -> list[trl_data.Row]:
    return [rows[i] for i in order]


@contextmanager
def _own_forward(policy: Any) -> Iterator[None]:
    """TRL patches the forward of policy and reference with one that can skip the logits; take that back afterwards."""
    try:
        yield
    finally:
        for role in ("model", "reference"):
            if hasattr(policy, role):
                base_of(getattr(policy, role)).__dict__.pop("forward", None)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars, banners or advice from the libraries: the terminal belongs to the run."""
    trl_logger = logging.getLogger("trl")
    levels = trl_logger.level, transformers_logging.get_verbosity()
    bars = datasets.are_progress_bars_disabled()
    trl_logger.setLevel(logging.ERROR)
    transformers_logging.set_verbosity_error()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        trl_logger.setLevel(levels[0])
        transformers_logging.set_verbosity(levels[1])
        if not bars:
            datasets.enable_progress_bars()
