"""DPO and GRPO from the same start, on the same data, by the same ruler; ends with the page that compares them.

What `make demo` runs: the embedded SmolLM2-135M, the synthetic annotator's preferences, a reward model trained on them.
About eight minutes on two CPU cores, less than 4 GB. Any override is passed on: `python scripts/demo.py steps=60`.
"""

from __future__ import annotations

import subprocess
import sys

DEMO = [
    "-m",
    "algo=dpo,grpo",
    "steps=16",
    "probe.every=8",
    "runs_root=runs/demo",
    "reward.learned.steps=40",
]

if __name__ == "__main__":
    sys.exit(subprocess.run([sys.executable, "-m", "align.run", *DEMO, *sys.argv[1:]]).returncode)
