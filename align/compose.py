"""conf/ composed under overrides, and what Hydra has against them said in one sentence."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException, OverrideParseException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from align.refusals import ConfigError, on_one_line

HERE = Path(__file__).resolve().parent
# A wheel carries conf/ inside the package, a checkout has it at the top.
CONF = HERE / "conf" if (HERE / "conf").is_dir() else HERE.parent / "conf"
# Hydra raises plain ValueErrors too for a bad command line, looks for a file of any name that it is given, and adds a
# list to a text where a group is given a list of lists; it asserts that a group has a name (@x=y).
MISTAKES = (HydraException, OmegaConfBaseException, ValueError, OSError, RecursionError, TypeError, AssertionError)
# Lines of their messages from which on nothing is of use to who typed the override.
REST = ("full_key:", "object_type=", "Config search path:", "See https:", "Set the environment variable")


def composed(overrides: Sequence[str]) -> DictConfig:
    """Raises ConfigError."""
    try:
        with initialize_config_dir(str(CONF), version_base="1.3"):
            return compose("run", overrides=list(overrides))
    except MISTAKES as error:
        raise ConfigError(sentence(error)) from None


def sentence(error: Exception) -> str:
    if isinstance(error, OverrideParseException):
        return (
            f"{on_one_line(error.override)}: cannot be read; an argument is KEY=VALUE, and a value with other than "
            "letters, digits and -_./:+* stands in two pairs of quotes: 'KEY=\"VALUE\"'"
        )
    if isinstance(error, RecursionError):
        return "a value refers to itself, or is nested too deeply"
    if isinstance(error, TypeError | AssertionError):
        return f"the arguments cannot be composed ({on_one_line(str(error))}); a group takes one name: GROUP=NAME"
    lines = takewhile(lambda line: not line.strip().startswith(REST), str(error).splitlines())
    return on_one_line("\n".join(lines).replace(":\n\t", ": ").replace("\n\t", ", ").replace("\n\n", "; "))
