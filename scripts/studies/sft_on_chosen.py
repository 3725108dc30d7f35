"""Can one fine-tune directly on the data that a reward model is trained on, instead of reinforcement learning? Is SFT alone enough?

The answer stands in docs/studies.md; writes studies/sft_on_chosen: verdict, page, tables, figures.
19 runs, of which dpo_length has eight; on one H100 of two to eight minutes, many side by side (`jobs=8`).
`python scripts/studies/sft_on_chosen.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=sft_on_chosen", *sys.argv[1:]]))
