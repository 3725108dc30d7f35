"""What are DPO's loss and objective, why can the probability of the chosen answer fall, and what repairs it?

The answer stands in docs/studies.md; writes studies/dpo_displacement: verdict, page, tables, figures.
29 runs of about three minutes.
`python scripts/studies/dpo_displacement.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=dpo_displacement", *sys.argv[1:]]))
