"""One process after the other: each measures one side of one row, and nothing else runs meanwhile."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from align.bench.settings import Bench, Work, at_candidate
from align.bench.summary import Round
from align.bench.worker import MACHINE, OURS, TRL

# No library may look for updates, report to anyone or draw bars while it is timed.
ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "TQDM_DISABLE": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}


class WorkerError(RuntimeError):
    """A process that measures has failed."""


def rounds(bench: Bench, arguments: Sequence[str], say: Callable[[str], None]) -> list[Round]:
    """Every round takes all rows; within a row the sides alternate, and from round to round so does which is first."""
    found = []
    for number in range(bench.repeats):
        machine = run(MACHINE, None, arguments)
        for work in bench.works:
            sides = [OURS, TRL] if work.trl else [OURS]
            measured = {}
            for side in sides if number % 2 == 0 else sides[::-1]:
                measured[side] = run(side, work, arguments)
                say(f"  round {number + 1}/{bench.repeats}  {work.name} {side}: {_steps(measured[side])}")
            found.append(Round(work.name, number, measured[OURS], measured.get(TRL), machine))
    return found


def search(bench: Bench, arguments: Sequence[str], say: Callable[[str], None]) -> dict[str, list[Any]]:
    """Row -> what each of TRL's candidates took, None where it does not work here."""
    found: dict[str, list[Any]] = {}
    for work in bench.works:
        for number, candidate in enumerate(work.candidates):
            try:
                measured = run(TRL, work, arguments, number)
                outcome = f"{_steps(measured)}, {measured['peak_gb']:.2f} GB"
            except WorkerError as error:
                measured, outcome = None, f"does not work: {str(error).strip().splitlines()[-1]}"
            found.setdefault(work.name, []).append(measured)
            tried = {"dtype": candidate.dtype, **candidate.args, **candidate.environment}
            say(f"  {work.name} {json.dumps(tried)}: {outcome}")
    return found


def run(side: str, work: Work | None, arguments: Sequence[str], candidate: int | None = None) -> dict[str, Any]:
    """What the process measured. Raises WorkerError with the end of what it wrote."""
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        name, number = work.name if work else "", "" if candidate is None else str(candidate)
        given = [argument for argument in arguments if not argument.startswith("works=")]
        command = [sys.executable, "-m", "align.bench.worker", side, name, number, str(result), *given]
        own = at_candidate(work, candidate).trl if work and side == TRL else None
        variables = os.environ | ENVIRONMENT | (own.environment if own else {})
        done = subprocess.run(command, capture_output=True, text=True, env=variables)
        if done.returncode != 0:
            raise WorkerError(f"{side} {name}: its process ended with {done.returncode}\n{done.stderr[-3000:]}")
        return json.loads(result.read_text())


def _steps(measured: dict[str, Any]) -> str:
    return ", ".join(f"{seconds:.2f}" for seconds in measured["seconds"]) + " s"
