"""Whole runs of a few steps, with everything kept that must not depend on how the batch was cut up.

`python -m tests.distributed.worker FOLDER` is what two processes run; the test calls `carry_out` itself for one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest.mock import patch

import torch

from align.rollouts import taken
from align.trainers import on_policy
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
# Adam's eps as PPO has it (docs/algorithms.md, P26): with 1e-8 an element whose gradient is rounding takes whole steps
COMMON = (f"steps={STEPS}", f"probe.every={STEPS}", "algo.optimizer.eps=1e-5",
          "checkpoint.every=2")  # fmt: skip


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


def carry_out(folder: Path, name: str, micro_batch: int, label: str) -> Path:
    """One run. Beside its run directory it leaves the gradients of every optimizer step, as each process saw them."""
    gradients: list[torch.Tensor] = []
    step = torch.optim.AdamW.step

    def watched(self, *args, **kwargs):
        gradients.append(torch.cat([p.grad.flatten() for g in self.param_groups for p in g["params"]]).clone())
        return step(self, *args, **kwargs)

    recorded = Recorded(folder / f"{name}.rollouts")
    rank = os.environ.get("RANK", "0")
    run = folder / f"{name}-{label}"
    with patch("torch.optim.AdamW.step", watched), patch("align.trainers.on_policy.sample", recorded):
        execute(folder, *ALGORITHMS[name], *COMMON, f"algo.micro_batch={micro_batch}", f"run_dir={run}")
    recorded.keep()
    torch.save(torch.stack(gradients), folder / f"{name}-{label}.gradients.{rank}")
    return run


if __name__ == "__main__":
    torch.set_num_threads(1)
    for algorithm in ALGORITHMS:
        carry_out(Path(sys.argv[1]), algorithm, 4, "two")
