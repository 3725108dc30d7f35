"""Whole runs of a few steps, with everything kept that must not depend on how the batch was cut up.

`python -m tests.distributed.worker FOLDER` is what two processes run; the test calls `carry_out` itself for one.
"""

from __future__ import annotations

import json
import os
import sys
from contextlib import suppress
from pathlib import Path
from unittest.mock import patch

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from align import strategy
from align.checkpoints import Keeper
from align.refusals import ConfigError
from align.rollouts import taken
from align.stopping import Terminated
from align.trainers import on_policy
from tests.config.test_conf import composed
from tests.end_to_end.helpers import execute, no_warmup

STEPS = 5
GROUP = ("algo.prompts_per_step=2", "algo.group_size=4")
ALGORITHMS = {  # eight sequences or pairs to a step
    "sft": (*no_warmup("sft"), "algo.examples_per_step=8"),
    "reward": (*no_warmup("reward"), "algo.pairs_per_step=8"),
    "dpo": (*no_warmup("dpo"), "algo.pairs_per_step=8"),
    "ppo": ("algo=ppo", "algo.prompts_per_step=8", "algo.minibatches=1", "algo.epochs=2"),
    "ppo head": ("algo=ppo", "algo.prompts_per_step=8", "algo.minibatches=1", "algo.epochs=2", "algo.critic.kind=head"),
    "grpo": ("algo=grpo", *GROUP),
    "rloo": ("algo=rloo", *GROUP),
    "dapo": ("algo=dapo", *GROUP, "algo.minibatches=2", "algo.max_draws=2"),
}
# Further points on the same axes: what cuts a batch up is the same code, so one process and two are enough.
FURTHER = {name: (*no_warmup(name), "algo.pairs_per_step=8")
           for name in ("ipo", "cdpo", "rdpo", "ldpo", "simpo", "orpo", "kto")}  # fmt: skip
FURTHER |= {
    "dr_grpo": ("algo=dr_grpo", *GROUP),
    "gspo": ("algo=gspo", *GROUP),
    "reinforce_pp": ("algo=reinforce_pp", "algo.prompts_per_step=8", "algo.group_size=1"),
    "best_of_n": ("algo=best_of_n",),
    "temperature": ("algo=temperature",),
}
UNTRAINED = ("best_of_n", "temperature")
# Stopped on one number of processes, gone on with on another; ALIGN_WHOLE=1 for every algorithm.
RECUT = ("dpo", "ppo")
if "ALIGN_WHOLE" in os.environ:
    FURTHER["rloo scaled"] = (*ALGORITHMS["rloo"], "algo.scale.normalise=running")  # moments of all rollouts so far
    RECUT = tuple(name for name in ALGORITHMS | FURTHER if name not in UNTRAINED)
STOP = 3  # a step at which no checkpoint is due
# Adam's eps as PPO has it (docs/algorithms.md, P26): with 1e-8 an element whose gradient is rounding takes whole steps
COMMON = (f"steps={STEPS}", f"probe.every={STEPS}", "algo.optimizer.eps=1e-5", "checkpoint.every=2")


class Recorded:
    """Stands where sampling stood: plays back what the first run sampled, so that all train on the same completions."""

    def __init__(self, file: Path):
        self.file = file
        self.real = on_policy.sample
        self.known = torch.load(file, weights_only=False) if file.is_file() else None
        self.new: dict[int, object] = {}

    def __call__(self, policy, prompts, samples, cfg, seed):
        if self.known is None:
            self.new[seed] = self.real(policy, prompts, samples, cfg, seed)
            return self.new[seed]
        whole = self.known[seed]
        asked = {prompt.id for prompt in prompts}
        return taken(whole, [i for i, prompt in enumerate(whole.prompts) if prompt.id in asked])

    def keep(self) -> None:
        if self.known is None:
            torch.save(self.new, self.file)


def carry_out(folder: Path, name: str, micro_batch: int, label: str, *further: str) -> Path:
    """One run. Beside its run directory it leaves the gradients of every optimizer step, as each process saw them."""
    gradients: list[torch.Tensor] = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        gradients.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).clone())
        return step(self, *args, **kwargs)

    recorded = Recorded(folder / f"{name}.rollouts")
    rank = os.environ.get("RANK", "0")
    run = folder / f"{name}-{label}"
    trained = () if name in UNTRAINED else (*COMMON, f"algo.micro_batch={micro_batch}")
    with patch("torch.optim.AdamW.step", watched), patch("align.trainers.on_policy.sample", recorded):
        execute(folder, *(ALGORITHMS | FURTHER)[name], *trained, f"run_dir={run}", *further)
    recorded.keep()
    if gradients:
        torch.save(torch.stack(gradients), folder / f"{name}-{label}.gradients.{rank}")
    return run


def stopped(folder: Path, name: str, micro_batch: int, label: str) -> None:
    """A run that is told to end at step STOP, as SIGTERM tells it."""
    save = Keeper.save

    def told(self, step, *args):
        self.stop.asked = step == STOP
        save(self, step, *args)

    with patch("align.checkpoints.Keeper.save", told), suppress(Terminated):
        carry_out(folder, name, micro_batch, label)


def refused(folder: Path, environment: dict[str, str]) -> str:
    """What a run says that was launched with this environment."""
    with patch.dict(os.environ, environment):
        AcceleratorState._reset_state(reset_partial_state=True)
        try:
            execute(folder, *no_warmup("sft"), "steps=1", f"run_dir={folder}/refused")
        except ConfigError as error:
            return str(error)
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)
    return ""


def two(folder: Path) -> None:
    """What two processes do."""
    for name in ALGORITHMS | FURTHER:
        carry_out(folder, name, 4, "two")
    for name in RECUT:
        stopped(folder, name, 4, "two then one")
        carry_out(folder, name, 4, "one then two", "resume=true")
    said = {name: refused(folder, environment) for name, environment in json.loads(sys.argv[2]).items()}
    strategy.verify(composed("device=cpu"), Accelerator(cpu=True))  # as it was launched: with ddp.yaml
    (folder / f"refused.{os.environ['RANK']}").write_text(json.dumps(said))


if __name__ == "__main__":
    torch.set_num_threads(1)
    two(Path(sys.argv[1]))
