"""What does GAE give PPO, and what do gamma and lambda do?

The answer stands in docs/studies.md; writes studies/gae_lambda: verdict, page, tables, figure. Takes seconds.
`python scripts/studies/gae_lambda.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=gae_lambda", *sys.argv[1:]]))
