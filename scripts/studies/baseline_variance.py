"""What does a baseline do to a policy gradient, and which one is unbiased?

The answer stands in docs/studies.md; writes studies/baseline_variance: verdict, page, tables, figure. Takes seconds.
`python scripts/studies/baseline_variance.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=baseline_variance", *sys.argv[1:]]))
