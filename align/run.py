"""`python -m align.run`: compose the config, check it, carry the experiment out.

Exit codes: 0 done, 1 the input is wrong (one message, no traceback), 2 the run failed (traceback in its error.log),
130 interrupted. With `-m` it carries out a sweep: each job in a process of its own (align/jobs.py, align/sweep.py).
"""

from __future__ import annotations

import os
import re
import sys
import time
import traceback
from contextlib import suppress
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from align.compose import CONF, MISTAKES, composed, sentence
from align.config import ConfigError, check
from align.jobs import BASIC_LAUNCHER, INTERRUPTED, LAST_WORDS, PARENT, run_job
from align.private import scrubbed
from align.refusals import need, refuse_unknown
from align.report.text import complain, visible
from align.stopping import end_with
from align.sweep import ending, missing_plugin

MAIN_PROCESS = os.environ.get("RANK", "0") == "0"
# Raised alike on every process as a rule: said once.
EVERYWHERE = ("ConfigError", "ModelError", "DataError", "RunError")
USER_ERRORS = (*EVERYWHERE, "RewardError")


@hydra.main(config_path=str(CONF), config_name="run", version_base="1.3")
def entry(cfg: DictConfig) -> str | float:
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return run_job(cfg)
    try:
        launcher = HydraConfig.get().launcher._target_
        need(launcher == BASIC_LAUNCHER, "hydra/launcher", launcher, "only a sweep has one; add -m, or leave it out")
        experiment = check(cfg)
        from align.experiment import execute  # after the check: torch, transformers and TRL take seconds to load

        path = execute(experiment)
    except Exception as error:  # an exit of our own, before Hydra prints one
        kinds = {kind.__name__ for kind in type(error).__mro__}
        if kinds & set(USER_ERRORS):
            if kinds & set(EVERYWHERE) and not MAIN_PROCESS:
                time.sleep(30)  # torchrun kills the others when one has ended, also the one that was about to say why
            stop(str(error), 1)  # who is still there after that is the only one that knows
        notes = getattr(error, "__notes__", [])  # align/runs.py notes where the run directory has the traceback
        if not notes:
            print(scrubbed(visible(traceback.format_exc())), file=sys.stderr)
        stop("\n".join([f"the run failed: {type(error).__name__}: {error}", *notes]), 2)
    if MAIN_PROCESS:
        print(path)
    return str(path)


def main() -> None:
    if PARENT in os.environ:
        end_with(int(os.environ[PARENT]))
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")  # Hydra's own errors reach us instead of being printed with a stack
    for flag in {"-m", "--multirun"} & set(sys.argv[1:]):  # argparse takes it before or after all overrides only
        sys.argv.insert(1, sys.argv.pop(sys.argv.index(flag, 1)))
    flags = get_args_parser()
    flags.error = lambda message: stop(f"{message} (see --help)", 1)  # type: ignore[method-assign]
    flags.parse_args()  # Hydra would exit with 2, which is for a run that failed
    try:
        with ending():
            entry()
    except MISTAKES as error:
        known = isinstance(error, ConfigCompositionException | OmegaConfBaseException)
        stop((known and _unknown_key(error)) or missing_plugin(str(error)) or sentence(error), 1)
    except KeyboardInterrupt as interrupt:
        notes = getattr(interrupt, "__notes__", [])  # align/opened.py notes the folder
        stop("\n".join(["interrupted", *notes]), INTERRUPTED)
    if "RANK" in os.environ:  # several processes
        from accelerate import PartialState

        PartialState().destroy_process_group()


def stop(message: str, code: int) -> NoReturn:
    if message:
        message = scrubbed(message)
        if code == INTERRUPTED:
            print(visible(message), file=sys.stderr)
        else:
            complain(message)
        if LAST_WORDS in os.environ:
            with suppress(OSError):  # a full disk must not make it another exit code
                Path(os.environ[LAST_WORDS]).write_text(message, encoding="utf-8", errors="replace")
    sys.exit(code)


def _unknown_key(error: Exception) -> str | None:
    """Hydra advises `+key=value` for a key that does not exist; what the user wants is the key that does."""
    match = re.search(r"Could not override '([\w.@/-]+)'", str(error))
    if match is None:
        return None
    key = match[1]
    others = [o for o in sys.argv[1:] if "=" in o and not o.startswith("-") and o.lstrip("+~").split("=")[0] != key]
    try:
        node = OmegaConf.to_container(composed(_first_job(others)), resolve=False)
    except MISTAKES:  # the other overrides are wrong too: Hydra's message must do
        return None
    *path, last = key.split(".")
    for part in path:
        node = node.get(part, {}) if isinstance(node, dict) else {}
    value = next((o.split("=", 1)[1] for o in sys.argv[1:] if o.startswith(f"{key}=")), "")
    try:
        refuse_unknown({last: value}, list(node) if isinstance(node, dict) else [], ".".join(path))
    except ConfigError as better:
        return str(better)
    return f"{key}: the first job of the sweep has this key, another has not; give it to those that have it"


def _first_job(overrides: list[str]) -> list[str]:
    """Of what a sweep varies, the first value."""
    parsed = OverridesParser.create().parse_overrides(overrides)
    return [
        f"{o.input_line.split('=')[0]}={next(o.sweep_string_iterator())}" if o.is_discrete_sweep() else o.input_line
        for o in parsed
    ]


if __name__ == "__main__":
    main()
