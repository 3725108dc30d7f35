"""The reward model is not very accurate. When does optimising it make things worse?

The answer stands in docs/studies.md; writes studies/goodhart_tails: verdict, page, tables, figure. Takes seconds.
`python scripts/studies/goodhart_tails.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=goodhart_tails", *sys.argv[1:]]))
