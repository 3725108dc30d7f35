"""What must not be written down: keys, tokens and passwords of the environment."""

from __future__ import annotations

import os
import re

SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)  # in the name of a variable
SHORTEST = 8  # of a value that is looked for in texts: `VLLM_API_KEY=test` stands in every other path
LONGEST = 1024  # of a password in an address: without an end, 100 kB of "://a:" took half a minute
# A password may have slashes
ADDRESS = re.compile(rf"://(?:[^/@\s]{{0,{LONGEST}}}:[^\s\"]{{0,{LONGEST}}}|[^/@\s]{{1,{LONGEST}}})@")
# Of TOKENIZERS_PARALLELISM, MAX_TOKENS: no secrets, and words of many a sentence
PLAIN = re.compile(r"true|false|none|null|auto|[0-9]{1,7}", re.IGNORECASE)


def scrubbed(text: str) -> str:
    """A message of a library without passwords of addresses and values of such variables."""
    text = ADDRESS.sub("://***@", text)
    values = {value.strip() for name, value in os.environ.items() if SECRET.search(name)}
    for value in sorted(values, key=len, reverse=True):  # one may be the beginning of another
        path = os.path.isabs(value) and os.path.exists(value)  # AWS_SHARED_CREDENTIALS_FILE says where, not what
        if len(value) >= SHORTEST and not path and not PLAIN.fullmatch(value):
            text = text.replace(value, "***")
    return text
