"""Why does LoRA start with one of its two matrices at zero, and what other inits are there?

The answer stands in docs/studies.md; writes studies/lora_init_trained: verdict, page, tables, figures.
39 runs of two to four minutes on one core of two.
`python scripts/studies/lora_init_trained.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=lora_init_trained", *sys.argv[1:]]))
