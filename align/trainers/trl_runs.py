"""The runs that TRL trains: SFT, reward models and the DPO family. Data in, metrics and probes out.

A policy is `.model`, `.tokenizer` and `.reference`, a frozen model (align/models.py); a reward model is `.model` and
`.tokenizer` (align/reward_model.py).
"""

from __future__ import annotations

import logging
import os
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import torch
from transformers import PrinterCallback, Trainer
from transformers.utils import logging as transformers_logging

from align.checkpoints import load_trainable
from align.halving import Halving, TooLarge
from align.maths import preference
from align.refusals import ConfigError
from align.trainers import trl_data
from align.trainers.trl_losses import PREFERENCE, REFERENCE_FREE, REWARD, SFT, Kind, base_of
from align.trainers.trl_watch import Begin, Watch, Watcher, start_loss
from reward_models.base import evaluate

if TYPE_CHECKING:
    from align.data import Data
    from align.opened import OpenRun
    from align.schema import Experiment

ProbeAt = Callable[[int], None]


def train_preference(opened: OpenRun, policy: Any, data: Data, probe: ProbeAt) -> None:
    """Train the policy on preference pairs with the loss that `experiment.algo.loss` names.

    `opened.log` gets a row per update, counted from 1; `probe` is called with 0 before the first and with n after the
    n-th. Raises RuntimeError when the first loss shows that the reference is not where training starts,
    FloatingPointError when a loss or gradient is not finite, DataError when the pairs do not do for the loss.
    """
    algo, experiment = opened.experiment.algo, opened.experiment
    rows = _laid_out(partial(trl_data.pair_rows, policy.tokenizer), data.train_pairs, algo.pairs_per_step, experiment)
    kind = PREFERENCE[algo.loss]
    beta = None if algo.loss in REFERENCE_FREE else algo.beta
    watch = Watch(opened.log, probe, beta, start_loss(algo), opened.keeper, opened.event)
    _train(kind, experiment, policy, kind.layout(rows, algo.pairs_per_step), watch)


def train_sft(opened: OpenRun, policy: Any, data: Data, probe: ProbeAt) -> None:
    """Train the policy to imitate the data's demonstrations; `probe` as in `train_preference`."""
    experiment, lay_out = opened.experiment, partial(trl_data.demonstration_rows, policy.tokenizer)
    rows = _laid_out(lay_out, data.demonstrations, experiment.algo.examples_per_step, experiment)
    _train(SFT, experiment, policy, rows, Watch(opened.log, probe, keeper=opened.keeper, event=opened.event))


def train_reward(opened: OpenRun, reward_model: Any, data: Data, probe: ProbeAt) -> None:
    """Train a reward model on preference pairs; `probe` as in `train_preference`."""
    experiment, lay_out = opened.experiment, partial(trl_data.reward_rows, reward_model.tokenizer)
    rows = _laid_out(lay_out, data.train_pairs, experiment.algo.pairs_per_step, experiment)
    _train(REWARD, experiment, reward_model, rows, Watch(opened.log, probe, keeper=opened.keeper, event=opened.event))


def reward_metrics(reward_model: Any, data: Data, pairs: int) -> dict[str, float]:
    """How often a reward model is right about held-out pairs, by labels and by gold; see `reward_accuracy`."""
    samples = trl_data.pair_samples(reward_model.tokenizer, data.heldout_pairs[:pairs])
    scores = reward_model.score([sample.prompt_ids + sample.completion_ids for sample in samples]) if samples else []
    gold = evaluate("gold", data.gold, samples) if data.gold is not None else None
    return reward_accuracy(scores, gold)


def reward_accuracy(scores: Sequence[float], gold: Sequence[float] | None) -> dict[str, float]:
    """Fraction of pairs that the scores order rightly, ties half. Without pairs, or without gold, no key.

    rm/accuracy asks the labels. rm/gold_accuracy asks gold, on those pairs where gold has a preference.

    `scores` and `gold`: of all chosen answers, then of all rejected ones
    """
    if not scores:
        return {}
    chosen, rejected = torch.tensor(scores, dtype=torch.float64).chunk(2)
    row = {"rm/accuracy": float(preference.accuracy(chosen, rejected))}
    if gold is not None:
        gold_chosen, gold_rejected = torch.tensor(gold, dtype=torch.float64).chunk(2)
        sides = (gold_chosen - gold_rejected).sign()
        if sides.any():
            margins = ((chosen - rejected) * sides)[sides != 0]
            row["rm/gold_accuracy"] = float(preference.accuracy(margins, torch.zeros_like(margins)))
    return row


def build_trainer(kind: Kind, experiment: Experiment, policy: Any, rows: list[trl_data.Row], folder: Path) -> Trainer:
    """The trainer of a run, not yet started. Raises ConfigError when Accelerate would autocast."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    args = kind.config(**kind.settings(experiment, folder, processes))
    args._n_gpu = min(args.n_gpu, 1)  # Trainer would spread one process over all GPUs it sees, with larger steps
    trainer = kind.trainer(
        model=policy.model,
        args=args,
        train_dataset=datasets.Dataset.from_list(rows),
        processing_class=policy.tokenizer,
        **kind.extra(experiment, policy),
    )
    if trainer.accelerator.mixed_precision != "no":
        raise ConfigError(
            f"accelerate's mixed_precision={trainer.accelerator.mixed_precision}: set it to no, models are loaded in "
            "`dtype` and autocast would make training and probe disagree"
        )
    trainer.remove_callback(PrinterCallback)  # prints every log entry
    for base in _bases(policy):
        kind.faster(base)
    return trainer


def _train(kind: Kind, experiment: Experiment, policy: Any, rows: list[trl_data.Row], watch: Watch) -> None:
    """Rows are in the order of training, so going on from step n is leaving out those of the first n steps."""
    begin, per_step = Begin(), len(rows) // experiment.steps
    if watch.keeper and (start := watch.keeper.start):
        load_trainable(policy.model, start.weights)
        begin = Begin(start.step, start.state, watch.keeper.restore_rng)
    if begin.step == experiment.steps:  # stopped in its last probe
        watch.probe(begin.step)
        watch.keeper.save(begin.step, policy.model, dict)  # writes nothing: raises where it was told to end once more
        return
    algo = copy(experiment.algo)
    alone = kind.halves and int(os.environ.get("WORLD_SIZE", "1")) == 1
    halving = Halving(algo.micro_batch, alone, whole=per_step)
    experiment = copy(experiment)
    experiment.algo = algo
    while (
        again := _attempt(kind, experiment, policy, rows[begin.step * per_step :], watch, begin, halving)
    ) is not None:
        begin, algo.micro_batch = again, halving.rows
        halving.report(begin.step + 1, watch.event)


def _attempt(
    kind: Kind,
    experiment: Experiment,
    policy: Any,
    rows: list[trl_data.Row],
    watch: Watch,
    begin: Begin,
    halving: Halving,
) -> Begin | None:
    """To the end, or as far as memory lasts: then where to begin again, with smaller micro-batches."""
    with tempfile.TemporaryDirectory() as nowhere, _quiet(), _own_forward(policy):  # TRL needs a folder; it stays empty
        trainer = build_trainer(kind, experiment, policy, rows, Path(nowhere))
        watcher = Watcher(watch, policy.model, begin)

        def skipped() -> None:
            watcher.skipped += 1

        trainer.begin_at(begin.step, experiment.guard.nonfinite, skipped, halving)
        trainer.add_callback(watcher)
        try:
            trainer.train()
            return None
        except TooLarge as error:
            size, again = error.rows, watcher.again(trainer.state.global_step)
        policy.model.zero_grad(set_to_none=True)
        trainer.accelerator.gradient_state._set_sync_gradients(True)  # as in experiment.make_accelerator
        halving.halve(size)
        return again


def _laid_out(
    rows_of: Callable[[list[Any]], list[trl_data.Row]], examples: Sequence[Any], per_step: int, experiment: Experiment
) -> list[trl_data.Row]:
    """The rows that the run will see, in order. Examples that it will not are never read or tokenised."""
    order = trl_data.training_order(len(examples), experiment.steps * per_step, experiment.seed)
    seen = sorted(set(order))
    rows = dict(zip(seen, rows_of([examples[i] for i in seen]), strict=True))
    return [rows[i] for i in order]


@contextmanager
def _own_forward(policy: Any) -> Iterator[None]:
    """TRL and then we (trl_forward.py) patch the forward of policy and reference; take that back afterwards."""
    try:
        yield
    finally:
        for base in _bases(policy):
            base.__dict__.pop("forward", None)


def _bases(policy: Any) -> list[Any]:
    return [base_of(getattr(policy, role)) for role in ("model", "reference") if hasattr(policy, role)]


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
