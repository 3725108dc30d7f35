"""Do a model's answers get longer after DPO, and what can be done about it?

The answer stands in docs/studies.md; writes studies/dpo_length: verdict, page, tables, figures.
22 runs of four to five minutes on two cores; on one H100 of three to five minutes, many side by side (`jobs=8`).
`python scripts/studies/dpo_length.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=dpo_length", *sys.argv[1:]]))
