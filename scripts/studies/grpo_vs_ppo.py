"""What does GRPO improve on PPO, at as many generated completions, in reward, KL, time and memory?

The answer stands in docs/studies.md; writes studies/grpo_vs_ppo: verdict, page, tables, figures.
18 runs of three to seven minutes on two cores, in float32; a screen there, `tier=gpu` decides.
`python scripts/studies/grpo_vs_ppo.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=grpo_vs_ppo", *sys.argv[1:]]))
