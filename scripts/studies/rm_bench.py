"""Which kinds of reward models are on RewardBench, how is each trained, and where do they fail?

The answer stands in docs/studies.md; writes studies/rm_bench: verdict, page, tables, figures.
Two and a half minutes on two cores, the answers of rm_noise at hand.
`python scripts/studies/rm_bench.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=rm_bench", *sys.argv[1:]]))
