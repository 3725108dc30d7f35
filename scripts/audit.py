"""Known vulnerabilities of the versions in constraints.txt: `make audit`. Exit codes: 0 none, 1 some, 2 not run.

pip-audit says "no known vulnerabilities" of a package that its source does not know. So a version with a known one is
asked about beside: where that is not found, nothing was looked at.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).resolve().parent.parent / "constraints.txt"
KNOWN = "jinja2==2.4.1"  # CVE-2014-1402 and later ones
TOOL = [sys.executable, "-m", "pip_audit", "--disable-pip", "--no-deps", "--progress-spinner=off", "--format=json"]


def vulnerable(requirements: str) -> list[str] | None:
    """`name version: advisories` of each that has any; None when the source of advisories did not answer."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "requirements.txt"
        file.write_text(requirements)
        done = subprocess.run([*TOOL, "-r", file], capture_output=True, text=True)
    if not done.stdout.startswith("{"):
        return None
    found = [one for one in json.loads(done.stdout)["dependencies"] if one.get("vulns")]
    return [f"{one['name']} {one['version']}: {', '.join(v['id'] for v in one['vulns'])}" for one in found]


def main() -> int:
    if not vulnerable(KNOWN):
        print(f"not run: no source of advisories was reached ({KNOWN}, which has some, was not reported)")
        return 2
    found = vulnerable(CONSTRAINTS.read_text())
    if found is None:
        print("not run: the source of advisories did not answer")
        return 2
    print("\n".join(found or ["no known vulnerabilities"]))
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
