"""How far can a reward model be optimised before the true reward falls, and how does that scale?

The answer stands in docs/studies.md; writes studies/rm_overopt: verdict, page, tables, figures.
Half a minute after rm_noise, whose answers it shares; without them they are sampled first.
`python scripts/studies/rm_overopt.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=rm_overopt", *sys.argv[1:]]))
