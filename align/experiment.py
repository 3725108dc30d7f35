"""Carry one checked experiment out: load, open the run directory, train, probe, save."""

from __future__ import annotations

import gc
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

import align
from align.compare import report
from align.config import config_hash, plain
from align.data import Data
from align.device import resolve_device, resolve_dtype
from align.models import Policy, load_policy
from align.probe import Probe
from align.refusals import ConfigError
from align.rewards import Rewards, build_rewards
from align.runs import Run, RunError, free_name
from align.schema import Experiment
from align.stages import load_data, obtain_reward_model
from align.terminal import Terminal

PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "hydra-core", "datasets")


@dataclass
class OpenRun:
    """An open run with its terminal: where metrics go."""

    experiment: Experiment
    run: Run
    terminal: Terminal
    accelerator: Accelerator

    def log(self, step: int, metrics: dict[str, float], phase: str = "train") -> None:
        metrics["memory/peak_gb"] = peak_memory_gb(self.accelerator.device)
        row = self.run.log(phase, step, metrics)
        self.accelerator.log({f"{phase}/{key}": value for key, value in row.items() if isinstance(value, float)}, step)
        self.terminal.row(phase, step, metrics)

    def prober(self, measure: Callable[[int], tuple[dict[str, float], list[dict[str, Any]]]]) -> Callable[[int], None]:
        """A function of the step that probes when it is due: at 0, every probe.every steps and at the end."""
        done: set[int] = set()

        def probe(step: int) -> None:
            due = step % self.experiment.probe.every == 0 or step == self.experiment.steps
            if due and step not in done:
                done.add(step)
                self.terminal.probing(step)
                metrics, samples = measure(step)
                self.log(step, metrics, phase="probe")
                self.run.log_samples(samples)

        return probe


def execute(experiment: Experiment) -> Path:
    """Run it; returns the run directory. Raises the user errors of the parts, RuntimeError when an invariant breaks."""
    path = destination(experiment)
    device = resolve_device(experiment.device)
    dtype = resolve_dtype(experiment.dtype, device)
    set_seed(experiment.seed)
    accelerator = make_accelerator(experiment, device, path)
    policy = load_policy(experiment.model, device, dtype, experiment.seed)
    data = load_data(experiment, policy)
    learned = obtain_reward_model(experiment, policy, data, execute)
    # a reward model's own training scores nothing
    formula = "none" if experiment.algo.kind == "reward" else experiment.reward.formula
    rewards = build_rewards(formula, data, learned)
    settings = plain(experiment)
    title = " ".join((experiment.algo.name, experiment.model.name, experiment.data.name))
    meta = describe(settings, title, device, dtype, policy, data)
    with Run.create(path, settings, meta) as run:
        accelerator.init_trackers("align", config={"config_hash": meta["config_hash"]})
        line = f"{title}  seed {experiment.seed}, {experiment.steps} steps, {device}, {str(dtype)[6:]} -> {path}"
        with Terminal(line, experiment.steps) as terminal:
            for note in data.notes:
                terminal.note(f"  {note}")
            opened = OpenRun(experiment, run, terminal, accelerator)
            TRAINERS[experiment.algo.kind](opened, policy, data, rewards)
        accelerator.end_training()
    report(path)
    gc.collect()  # trainers hold themselves in cycles; a sweep would keep every model it trained
    return path


def destination(experiment: Experiment) -> Path:
    """The run directory to be made. Raises RunError when run_dir is taken."""
    if experiment.run_dir is not None:
        path = Path(experiment.run_dir).expanduser()
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise RunError(f"run_dir={path} already exists and is not empty; name another folder or remove it")
        return path
    digest = config_hash(plain(experiment))[:6]
    names = (experiment.algo.name, experiment.model.name, experiment.data.name)
    return free_name(Path(experiment.runs_root).expanduser(), "-".join((*names, f"s{experiment.seed}", digest)))


def make_accelerator(experiment: Experiment, device: torch.device, path: Path) -> Accelerator:
    """Raises ConfigError for several processes and for a tracker that is not installed."""
    try:
        tracker = None if experiment.tracker == "none" else experiment.tracker
        accelerator = Accelerator(cpu=device.type == "cpu", log_with=tracker, project_dir=path)
    except (ImportError, ValueError) as error:
        raise ConfigError(f"tracker={experiment.tracker}: {error}; pip install 'align[trackers]'") from None
    if tracker is not None and not accelerator.log_with:  # Accelerate leaves out what is not installed, silently
        raise ConfigError(f"tracker={tracker}: it is not installed; pip install 'align[trackers]', or tracker=none")
    if accelerator.num_processes > 1:
        raise ConfigError(f"{accelerator.num_processes} processes: this version runs on one; start it without "
                          "`accelerate launch`")  # fmt: skip
    return accelerator


def train_on_policy(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards) -> None:
    from align.trainers.on_policy import OnPolicyTrainer

    e = opened.experiment
    trainer = OnPolicyTrainer(e, policy, rewards, opened.accelerator)
    probe = opened.prober(policy_probe(opened, policy, data, rewards))
    saving(opened, policy, lambda: trainer.train(data.train_prompts, opened.log, opened.run.count, probe))


def train_preference(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards) -> None:
    from align.trainers import trl_runs

    probe = opened.prober(policy_probe(opened, policy, data, rewards))
    saving(opened, policy, lambda: trl_runs.train_preference(opened.experiment, policy, data, opened.log, probe))


def train_sft(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards) -> None:
    from align.trainers import trl_runs

    probe = opened.prober(policy_probe(opened, policy, data, rewards))
    saving(opened, policy, lambda: trl_runs.train_sft(opened.experiment, policy, data, opened.log, probe))


def train_reward(opened: OpenRun, policy: Policy, data: Data, rewards: Rewards) -> None:
    from align.reward_model import build_reward_model
    from align.trainers import trl_runs

    e = opened.experiment
    reward_model = build_reward_model(e.model, policy.reference, policy.tokenizer, e.seed)
    probe = opened.prober(lambda step: (trl_runs.reward_metrics(reward_model, data, e.probe.pairs), []))
    saving(opened, reward_model, lambda: trl_runs.train_reward(e, reward_model, data, opened.log, probe))


TRAINERS = {"on_policy": train_on_policy, "preference": train_preference, "sft": train_sft, "reward": train_reward}


def saving(opened: OpenRun, trained: Any, train: Callable[[], None]) -> None:
    """Train, and save what was trained also when the user interrupts: what was learned so far is usable."""
    try:
        train()
    except KeyboardInterrupt:
        trained.save(opened.run.path)
        opened.terminal.note(f"interrupted; what was trained so far is in {opened.run.path}")
        raise
    trained.save(opened.run.path)


def policy_probe(
    opened: OpenRun, policy: Policy, data: Data, rewards: Rewards
) -> Callable[[int], tuple[dict[str, float], list[dict[str, Any]]]]:
    """The ruler, with the invariant that a policy that has not been trained has no KL to its reference."""
    e = opened.experiment
    probe = Probe(e.probe, e.sampling, policy, data, rewards, e.seed)

    def measure(step: int) -> tuple[dict[str, float], list[dict[str, Any]]]:
        metrics, samples = probe.measure(step)
        if step == 0 and any(metrics[key] != 0 for key in ("kl/k1", "kl/k3", "kl/exact")):
            raise RuntimeError(f"KL to the reference at step 0 is {metrics['kl/k1']:.3g} nats, not 0: policy and "
                               "reference do not start from the same weights")  # fmt: skip
        return metrics, samples

    return measure


def describe(
    settings: dict[str, Any], title: str, device: torch.device, dtype: torch.dtype, policy: Policy, data: Data
) -> dict[str, Any]:
    return {
        "name": title,
        "config_hash": config_hash(settings),
        "start_fingerprint": policy.fingerprint,
        "data_fingerprint": data.fingerprint,
        "data_notes": list(data.notes),
        "device": str(device) if device.type == "cpu" else torch.cuda.get_device_name(device),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "align": align.__version__,
        "commit": commit(),
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }


def commit() -> str | None:
    """The commit of the checkout that runs, with a plus when it has changes; None for an installed wheel."""
    here = Path(__file__).resolve().parent
    try:
        git = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
        done = subprocess.run(git, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory_gb(device: torch.device) -> float:
    """Peak of the accelerator's memory, or of the process's resident set on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
