"""Why does LoRA start with one of its two matrices at zero, and what other inits are there?

The answer stands in docs/studies.md; writes studies/lora_init: verdict, page, tables, figure. Takes seconds.
`python scripts/studies/lora_init.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=lora_init", *sys.argv[1:]]))
