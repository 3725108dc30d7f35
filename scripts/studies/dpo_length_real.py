"""Do a model's answers get longer after DPO on real preferences, and what can be done about it?

The answer stands in docs/studies.md; writes studies/dpo_length_real: verdict, page, tables, figures.
Fifteen runs; on one H100 three to four minutes each, many side by side (`jobs=8`). The pairs are yours.
`python scripts/studies/dpo_length_real.py data.path=PAIRS.jsonl`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=dpo_length_real", *sys.argv[1:]]))
