"""Why do language models repeat themselves, and what helps?

The answer stands in docs/studies.md; writes studies/repetition: verdict, page, tables, figures.
Five minutes on two cores.
`python scripts/studies/repetition.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=repetition", *sys.argv[1:]]))
