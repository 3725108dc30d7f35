"""Which ways of fine-tuning are there, and what does LoRA lose against training all weights?

The answer stands in docs/studies.md; writes studies/lora_vs_full: verdict, page, tables, figures.
15 runs of four to nine minutes on two cores, in float32; all weights need 4.3 GB.
`python scripts/studies/lora_vs_full.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=lora_vs_full", *sys.argv[1:]]))
