"""What can be done when the reward model is not very accurate?

The answer stands in docs/studies.md; writes studies/rm_noise: verdict, page, tables, figures.
Twelve minutes on two cores and more: 4,032 answers are sampled once.
`python scripts/studies/rm_noise.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=rm_noise", *sys.argv[1:]]))
