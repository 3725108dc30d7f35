"""Is the reward model updated while the policy is trained, and should it be?

The answer stands in docs/studies.md; writes studies/rm_refresh: verdict, page, tables, figures.
35 minutes on two cores: 11,760 answers are sampled once.
`python scripts/studies/rm_refresh.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=rm_refresh", *sys.argv[1:]]))
