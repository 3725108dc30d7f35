"""Carry one checked experiment out: load, open the run directory, train, probe, save."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import DistributedDataParallelKwargs, gather_object, set_seed

from align import strategy
from align.best_of_n import BestOfN
from align.checkpoints import Snapshot, prune
from align.compare import report
from align.config import plain
from align.data import Data
from align.describe import describe, elsewhere
from align.device import keep_freed_memory, resolve_device, resolve_dtype
from align.models import Policy, load_policy
from align.opened import Measure, OpenRun
from align.places import Place, newest, place
from align.probe import Probe
from align.reward_model import RewardModel
from align.rewards import Rewards, build_rewards
from align.rollouts import from_main
from align.rows import RunError
from align.runs import Run
from align.schema import Experiment
from align.stages import load_data, obtain_reward_model
from align.tempered import Tempered
from align.terminal import Terminal
from align.trackers import Tracked, Tracking, require_installed
from align.vllm_served import served


def execute(experiment: Experiment) -> Path:
    """Run it; returns the run directory. Raises the user errors of the parts, RuntimeError when an invariant breaks."""
    keep_freed_memory()
    device = resolve_device(experiment.device)
    require_installed(experiment.tracker)
    strategy.prepare()
    # the others wait while the main process probes or samples a pool, on a slow machine for hours
    processes = PartialState(cpu=device.type == "cpu", timeout=timedelta(days=1))
    where = agreed(experiment, processes)
    if where.finished:
        if processes.is_main_process and not (where.path / "report.html").is_file():  # killed between the two
            report(where.path)
        return where.path
    accelerator = make_accelerator(experiment, device)
    strategy.verify(experiment, accelerator)
    device = accelerator.device if device.type != "cpu" and accelerator.num_processes > 1 else device
    dtype = resolve_dtype(experiment.dtype, device)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)  # Accelerate and Trainer place things on the current one
    set_seed(experiment.seed)
    with processes.main_process_first():  # what is fetched or converted is so once
        policy = load_policy(experiment.model, device, dtype, experiment.seed)
        data = load_data(experiment, policy)
    learned = obtain_reward_model(experiment, policy, data, execute)
    # a reward model's own training scores nothing
    formula = "none" if experiment.algo.kind == "reward" else experiment.reward.formula
    rewards = build_rewards(formula, data, learned, finite=experiment.guard.nonfinite == "stop",
                            seconds=experiment.reward_seconds)  # fmt: skip
    title = " ".join((experiment.algo.name, experiment.model.name, experiment.data.name))
    meta = describe(plain(experiment), title, device, dtype, policy, data, learned, accelerator.num_processes)
    with opening(experiment, where, meta, accelerator, f"{title}  seed {experiment.seed}, {experiment.steps} steps, "
                 f"{device}, {str(dtype)[6:]} -> {where.path}", data.notes) as opened:  # fmt: skip
        with opened.stop.listening():
            TRAINERS[experiment.algo.kind](opened, policy, data, rewards, learned)
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        report(where.path)
    gc.collect()  # trainers hold themselves in cycles; a sweep would keep every model it trained
    return where.path


def agreed(experiment: Experiment, processes: PartialState) -> Place:
    """The main process finds the run directory; the others hear of it."""
    where: Place = from_main(processes, lambda: place(experiment))
    return where


def _opened(experiment: Experiment, where: Place, meta: dict[str, Any], start: Snapshot | None) -> Run:
    if where.before is None:
        return Run.create(where.path, plain(experiment), meta)
    run = Run.reopen(where.path, start.run if start else None, where.before)
    try:
        prune(where.path / "checkpoints", experiment.checkpoint.keep, start.step if start else 0)
    except OSError as error:
        with run:
            raise RunError(f"run_dir={where.path}: {error.filename} is not gone on from and cannot be removed: "
                           f"{error.strerror or error}") from error  # fmt: skip
    return run


@contextmanager
def opening(
    experiment: Experiment, where: Place, meta: dict[str, Any], accelerator: Accelerator, line: str, notes: Any
) -> Iterator[OpenRun]:
    """The run directory, new or gone on with; left as finished, failed or interrupted."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        start = newest(where, meta)
    steps = gather_object([start.step if start else None])  # before the main process changes anything
    if len(set(steps)) > 1:
        raise RunError(f"run_dir={where.path}: not every process finds the same checkpoint (steps {steps}); see that "
                       "all read the same folder, and start again")  # fmt: skip
    run = _opened(experiment, where, meta, start) if accelerator.is_main_process else None
    terminal = Terminal(line, experiment.steps, silent=run is None)
    opened = OpenRun(experiment, where.path, run, terminal, accelerator, start)
    before = where.before.rows if where.before else ()
    tracked = Tracked(where.path, meta["name"], plain(experiment), start.step if start else 0, before)
    watched = run is not None and experiment.tracker != "none"
    tracking = Tracking(experiment.tracker, tracked, opened.event) if watched else nullcontext()
    with terminal, run or nullcontext(), tracking as opened.tracking:
        for warning in caught:
            terminal.note(f"  {warning.message}")
        if where.before is not None:
            terminal.note(f"  goes on from step {start.step if start else 0}")
            if moved := elsewhere(where.before.meta, meta):
                opened.event("elsewhere", start.step if start else 0, moved)
            if start is not None and opened.keeper.recut:
                opened.event("processes", start.step, opened.keeper.recut)
        elif experiment.resume:
            terminal.note("  resume=true: there is no earlier run of this config; this is its start")
        for note in notes:
            terminal.note(f"  {note}")
        started = time.perf_counter()
        yield opened
        opened.say_what_probing_took(time.perf_counter() - started)


def make_accelerator(experiment: Experiment, device: torch.device) -> Accelerator:
    critic = getattr(experiment.algo, "critic", None)
    # two passes through one module: DDP must expect either half to be unused (align/critic.py)
    ddp = DistributedDataParallelKwargs(
        find_unused_parameters=critic is not None and critic.kind == "adapter", broadcast_buffers=False
    )
    accelerator = Accelerator(cpu=device.type == "cpu", kwargs_handlers=[ddp], mixed_precision="no")
    # One state for the whole process: a run that was stopped between two micro-batches leaves it off, and every
    # optimizer step after that would do nothing.
    accelerator.gradient_state._set_sync_gradients(True)
    return accelerator


def train_on_policy(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards, learned: RewardModel | None) -> None:
    from align.trainers.on_policy import Hooks, OnPolicyTrainer

    e, first, starting = opened.experiment, data.train_prompts[0], opened.stop.breakable()
    with served(e, policy, opened.accelerator, opened.path, first, starting) as servers:
        trainer = OnPolicyTrainer(e, policy, rewards, opened.accelerator, learned, servers)
        probe = opened.policy_prober(policy, data, rewards)
        hooks = Hooks(opened.log, opened.count, probe, opened.event, opened.keeper)
        opened.saving(policy, lambda: trainer.train(data.train_prompts, hooks))


def train_preference(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards, _: RewardModel | None) -> None:
    from align.trainers import trl_runs

    probe = opened.policy_prober(policy, data, rewards)
    opened.saving(policy, lambda: trl_runs.train_preference(opened, policy, data, probe))


def train_sft(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards, _: RewardModel | None) -> None:
    from align.trainers import trl_runs

    probe = opened.policy_prober(policy, data, rewards)
    opened.saving(policy, lambda: trl_runs.train_sft(opened, policy, data, probe))


def train_reward(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards, _: RewardModel | None) -> None:
    from align.reward_model import build_reward_model
    from align.trainers import trl_runs

    e = opened.experiment
    reward_model = build_reward_model(e.model, policy.reference, policy.tokenizer, e.seed)
    probe = opened.prober(lambda step: (trl_runs.reward_metrics(reward_model, data, e.probe.pairs), []))
    opened.saving(reward_model, lambda: trl_runs.train_reward(opened, reward_model, data, probe))


def take_best_of_n(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards, _: RewardModel | None) -> None:
    e = opened.experiment
    ruler = Probe(e.probe, e.sampling, policy, data, rewards, e.seed)
    look_at(opened, ruler, BestOfN(ruler, e.steps).measure)


def sample_colder(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards, _: RewardModel | None) -> None:
    e = opened.experiment
    ruler = Probe(e.probe, e.sampling, policy, data, rewards, e.seed)
    look_at(opened, ruler, Tempered(ruler, e.algo.temperatures, e.algo.top_ps).measure)


def look_at(opened: OpenRun, ruler: Probe, measure: Measure) -> None:
    """A baseline: every step is a probe, nothing is trained."""
    probe = opened.prober(measure)
    for step in range(opened.experiment.steps + 1):
        probe(step)
        ruler.halving.report(step, opened.event)
        opened.stop.obey()


TRAINERS = {
    "on_policy": train_on_policy,
    "preference": train_preference,
    "sft": train_sft,
    "reward": train_reward,
    "best_of_n": take_best_of_n,
    "tempered": sample_colder,
}
