"""Which KL estimator should be logged, and which one trained on, in the reward or in the loss?

The answer stands in docs/studies.md; writes studies/kl_estimators: verdict, page, tables, figure. Takes seconds.
`python scripts/studies/kl_estimators.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=kl_estimators", *sys.argv[1:]]))
