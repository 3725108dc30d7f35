"""How does a language model produce its output, and what do temperature and top-p buy?

The answer stands in docs/studies.md; writes studies/decode_tradeoff: verdict, page, tables, figures.
Forty minutes on two cores: forty probes.
`python scripts/studies/decode_tradeoff.py`
"""

import sys

from align.study.__main__ import main

sys.exit(main(["study=decode_tradeoff", *sys.argv[1:]]))
