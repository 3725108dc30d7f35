"""What can still be improved in the reinforcement learning stage, and what does each of DAPO's changes do?

The answer stands in docs/studies.md; writes studies/dapo_tricks: verdict, page, tables, figure. Takes seconds.
`python scripts/studies/dapo_tricks.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=dapo_tricks", *sys.argv[1:]]))
