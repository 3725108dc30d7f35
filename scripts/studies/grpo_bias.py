"""What does GRPO change against PPO, and which prompts and answers does it weigh more than it should?

The answer stands in docs/studies.md; writes studies/grpo_bias: verdict, page, tables, figure. Takes seconds.
`python scripts/studies/grpo_bias.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=grpo_bias", *sys.argv[1:]]))
