"""What must not be written down: keys, tokens and passwords of the environment."""

from __future__ import annotations

import os
import re

SECRET = re.compile(r"key|token|secret|passw|credential", re.IGNORECASE)  # in the name of a variable
SHORTEST = 4  # of a value that is looked for in texts: shorter ones stand in every other word


def scrubbed(text: str) -> str:
    """A message of a library without passwords of addresses and values of such variables."""
    text = re.sub(r"://[^/@\s]+@", "://***@", text)
    for name, value in os.environ.items():
        if SECRET.search(name) and len(value) >= SHORTEST:
            text = text.replace(value, "***")
    return text
