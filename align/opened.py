"""A run that is open: where its rows, probes and checkpoints go. On several processes the main one writes."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from align.alarms import ALARM, Watcher
from align.algo_laws import UNTRAINED
from align.checkpoints import Keeper, Snapshot, kept_rng, need_finite
from align.data import Data
from align.device import return_freed_memory
from align.models import Policy
from align.probe import Measured, Probe
from align.rewards import Rewards
from align.rows import read_lines
from align.runs import Run
from align.schema import Experiment
from align.stopping import Stop, Terminated
from align.terminal import Terminal
from align.trackers import Tracking

Measure = Callable[[int], Measured]
Look = Callable[[int, list[dict[str, Any]]], None]  # at the samples of a probe


@dataclass
class OpenRun:
    """An open run with its terminal: where metrics go. `run` is None on every process but the main one."""

    experiment: Experiment
    path: Path
    run: Run | None
    terminal: Terminal
    accelerator: Accelerator
    start: Snapshot | None = None  # what it goes on from
    stop: Stop = field(default_factory=Stop)
    tracking: Tracking | None = None
    keeper: Keeper = field(init=False)
    watcher: Watcher = field(default_factory=Watcher)
    probing: float = 0.0  # seconds that probes have taken since this process opened the run

    def __post_init__(self) -> None:
        e = self.experiment
        where = self.run.position if self.run else dict
        self.keeper = Keeper(self.path / "checkpoints", e.checkpoint, e.steps, self.accelerator, where, self.start,
                             stop=self.stop)  # fmt: skip
        for row in read_lines(self.path / "metrics.jsonl") if self.run else ():  # of before it was resumed
            self.watcher.see(row)

    def log(self, step: int, metrics: dict[str, float], phase: str = "train") -> None:
        if self.run is None:
            return
        metrics["memory/peak_gb"] = peak_memory_gb(self.accelerator.device)
        row = self.run.log(phase, step, metrics)
        if self.tracking is not None:
            self.tracking.log(row)
        self.terminal.row(phase, step, metrics)
        trained = self.experiment.algo.kind not in UNTRAINED  # a model sampled ever colder is not collapsing
        for alarm in self.watcher.see(row) if trained else ():
            self.event(ALARM, alarm.step, f"alarm {alarm.kind}, step {step}: {alarm.what}", alarm=alarm.kind)

    def count(self, **consumed: int) -> None:
        if self.run is not None:
            self.run.count(**consumed)

    def event(self, kind: str, step: int, sentence: str, **details: Any) -> None:
        """Something that a reader should see: said on the terminal, kept in events.jsonl."""
        if self.run is not None:
            self.run.event(kind, step, sentence, **details)
            self.terminal.note(f"  {sentence}")

    def prober(self, measure: Measure, look: Look = lambda step, samples: None) -> Callable[[int], None]:
        """A function of the step that probes when it is due: at 0, every probe.every steps and at the end.

        The main process probes, the others wait. Told to end, it measures nothing: the trainer ends the run.
        """
        done = {self.start.step} if self.start and self.start.probed else set[int]()

        def probe(step: int) -> None:
            due = step % self.experiment.probe.every == 0 or step == self.experiment.steps
            if not due or step in done:
                return
            done.add(step)
            if self.run is not None:
                self.terminal.probing(step)
                started = time.perf_counter()
                return_freed_memory()
                try:
                    with kept_rng(), self.stop.breakable():  # a reward's random numbers must not change the training
                        metrics, samples = measure(step)
                except Terminated:
                    self.keeper.probed = False
                else:
                    self.log(step, metrics, phase="probe")
                    self.run.log_samples(samples)
                    look(step, samples)
                return_freed_memory()
                self.probing += time.perf_counter() - started
            self.accelerator.wait_for_everyone()

        return probe

    def policy_prober(self, policy: Policy, data: Data, rewards: Rewards) -> Callable[[int], None]:
        """The ruler, with the invariant that a policy that has not been trained has no KL to its reference."""
        e = self.experiment
        ruler = Probe(e.probe, e.sampling, policy, data, rewards, e.seed)
        if self.start is not None:
            ruler.restore(self.start.probe)
        self.keeper.probe_state = ruler.state

        def measure(step: int) -> Measured:
            metrics, samples = ruler.measure(step)
            ruler.halving.report(step, self.event)
            if step == 0 and any(metrics[key] != 0 for key in ("kl/k1", "kl/k3", "kl/exact")):
                raise RuntimeError(f"KL to the reference at step 0 is {metrics['kl/k1']:.3g} nats, not 0: policy and "
                                   "reference do not start from the same weights")  # fmt: skip
            return metrics, samples

        return self.prober(measure, self._report)

    def _report(self, step: int, samples: list[dict[str, Any]]) -> None:
        lost = [row for row in samples if "reward" in row and not math.isfinite(row["reward"])]
        if lost:  # guard.nonfinite=skip: else the reward has ended the run
            self.event("nonfinite", step, f"step {step}: {len(lost)} probed completions have a reward that is not "
                       "finite; they are left out of its mean", prompt_id=lost[0]["prompt_id"],
                       prompt=lost[0]["prompt"], completion=lost[0]["completion"])  # fmt: skip
        limit = self.experiment.guard.kl_nats_per_sequence
        far = [row for row in samples if not row["kl"] <= limit]
        if far:
            worst: Mapping[str, Any] = max(far, key=lambda row: row["kl"])
            self.event(
                "kl", step,
                f"step {step}: {len(far)} probed completions are more than {limit:g} nats from the reference, "
                f"at most {worst['kl']:.3g} (guard.kl_nats_per_sequence)",
                prompt_id=worst["prompt_id"], prompt=worst["prompt"], completion=worst["completion"], kl=worst["kl"],
            )  # fmt: skip

    def say_what_probing_took(self, seconds: float) -> None:
        """Of `seconds`, so that a user sees what probe=full or a small probe.every costs."""
        self.terminal.note(f"  probes took {self.probing:.0f} s, {100 * self.probing / max(seconds, 1e-9):.0f} % of "
                           "the run")  # fmt: skip

    def saving(self, trained: Any, train: Callable[[], None]) -> None:
        """Train, and save what was trained also when the user interrupts: what was learned so far is usable."""
        try:
            train()
        except KeyboardInterrupt as interrupt:
            if self.run is not None:
                self._save(trained)
                interrupt.add_note("resume=true goes on from the last checkpoint; what was trained so far is in")
                interrupt.add_note(str(self.path))
            raise
        if self.run is not None:
            self._save(trained)

    def _save(self, trained: Any) -> None:
        need_finite(trained.model)
        trained.save(self.path)


def peak_memory_gb(device: torch.device) -> float:
    """Peak of the accelerator's memory, or of the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    unit = 1 if sys.platform == "darwin" else 1e3  # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
