"""This project against stock TRL: `python -m align.bench`. Imports neither torch nor TRL: its processes do."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console

from align.bench.processes import WorkerError, rounds, search
from align.bench.settings import Bench, settings
from align.bench.summary import summarise
from align.bench.table import note, table
from align.files import write_text
from align.refusals import ConfigError
from align.report.text import complain

HELP = """\
usage: python -m align.bench [key=value]...

Measures optimizer steps of this project and of stock TRL on this machine: same model, adapters, prompts and completion
lengths. One process measures one side of one row; they run one after the other, alternating, for several rounds.
Leave the machine alone meanwhile.

  works=ROW,ROW    which rows; default: all of grpo_4x4 grpo_8x8 rloo_4x4 ppo_4x4 dpo_8 sft_16 reward_8
  repeats=3        rounds
  steps=3          timed steps of a process
  warmup=1         steps before them that are not counted
  model=NAME       a file of conf/model; default: smollm2-135m
  dtype=bfloat16   of our base: bfloat16, float32 or auto
  device=auto      auto, cpu, cuda ...
  out=DIR          where bench.json is written, made if missing; default: .
  search=true      try the settings of TRL that conf/bench/default.yaml lists as candidates, print what each takes, stop

Prints a table; the last line is the path of bench.json, a list with an object for each row: work, ours_s, trl_s,
speedup, peak_ratio, limit_ratio, grpo_ratio (null where it does not apply), and what they were made of.
docs/performance.md says what is measured, how TRL is set and how the machine's limit is computed.

Exit codes: 0; 1 when an argument is wrong; 2 when a process failed; 130 when interrupted.

example: python -m align.bench works=grpo_4x4,dpo_8 repeats=5 out=bench
"""


def bench(wanted: Bench, arguments: Sequence[str]) -> None:
    progress, console = Console(stderr=True, highlight=False), Console(highlight=False, width=100)

    def say(text: str) -> None:
        progress.print(text, markup=False, soft_wrap=True)

    if wanted.search:
        search(wanted, arguments, say)
        return
    try:
        wanted.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"out={wanted.out}: cannot be written: {error.strerror or error}") from None
    rows = summarise(rounds(wanted, arguments, say), wanted.works)
    console.print(table(rows))
    console.print(note(rows), markup=False, soft_wrap=True)
    path = wanted.out / "bench.json"
    write_text(path, json.dumps([asdict(row) for row in rows], indent=1) + "\n")
    print(path)


def main(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(HELP, end="")
        return 0
    try:
        bench(settings(arguments), arguments)
    except ConfigError as error:
        complain(error)
        return 1
    except WorkerError as error:
        complain(error)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
