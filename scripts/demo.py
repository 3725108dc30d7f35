"""PPO, DPO and GRPO from the same start, on the same task, by the same ruler; ends with the page that compares them.

What `make demo` runs: the embedded SmolLM2-135M learns one-digit sums, once from pairs of a right and a wrong answer,
twice from its own samples and a verifier. Less than ten minutes on two CPU cores with AMX, less than 4 GB.
Overrides are passed on to all: `python scripts/demo.py steps=40 seed=1`.
"""

from __future__ import annotations

import subprocess
import sys

COMMON = ["data=arithmetic", "steps=8", "probe.every=4", "probe.prompts=40", "probe.samples=1", "probe.pairs=16"]


def run(*overrides: str) -> str:
    """One experiment; its last line of output is its run directory."""
    command = [sys.executable, "-m", "align.run", *COMMON, "runs_root=runs/demo", *overrides, *sys.argv[1:]]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(done.returncode)
    return done.stdout.strip().splitlines()[-1]


if __name__ == "__main__":
    arms = [run("algo=dpo"), run("algo=grpo"), run("algo=ppo")]
    sys.exit(subprocess.run([sys.executable, "-m", "align.compare", *arms, "out=compare/demo"]).returncode)
