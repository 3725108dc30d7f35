"""Command lines: each ends with a checked experiment, or with exit code 1 and one message."""

from __future__ import annotations

import contextlib
import inspect
import io
import json
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from align import run as entry
from align.config import config_hash, plain
from align.memory import __main__ as memory
from align.memory.arguments import PLACE
from align.memory.calcs import CALCS
from align.places import place
from align.refusals import ConfigError
from align.report.arms import flatten
from align.rows import RunError
from tests.fuzz import bad
from tests.fuzz.trial import attempt, fuzzed

ALGOS = ("grpo", "ppo", "dpo", "sft", "reward", "best_of_n", "temperature", "kto", "dapo")
GROUPS = {"algo": ALGOS, "model": ("tiny", "smollm2-135m"), "data": ("annotator", "arithmetic", "jsonl"),
          "reward": ("gold", "learned", "none", "verifier"), "probe": ("small", "full"), "sampling": ("default",
          "short"),
          "model.lora": ("none", "null")}  # fmt: skip
VALUES = ("", "0", "1", "-1", "2", "3", "1.5", "1e-4", "0.5", "1e999", "-1e999", "nan", "inf", "-inf", "9" * 5000,
          "0x10", "1_000",
          "null", "none", "true", "yes", "''", '"', "'", "[", "]", "[]", "[1]", "[0.9,0.99]", "[a,b]", "[[[]]]",
          "{", "}", "{}", "{a:1}",
          "{a:{b:1}}", "a", "a b", "a=b", "a,b", "a:b", "${steps}", "${seed}", "${nothing}", "${", "${}",
          "${oc.env:HOME}",
          "${oc.env:NO_SUCH}", "${steps}${seed}", "${algo}", "${oc.decode:'['}", "${.x}", "${..x}", "${steps:1}",
          "${now:%Y}", "???",
          "\\", "\\,", "(", ")", "range(1,3)", "choice(1,2)", "sort(3,1)", "int(x)", "str(1)", "glob(*)", "#", "@",
          "%", "~", "+", "é",
          "\u4f60", "\U0001f600", "\x1b[2J", "\x01", "\t", "\n", "a\nb", "\r", "\udcff", "\u202e", " ", "a" * 300,
          "x/" * 3000, "../..",
          "~/x", "~nobody/x", "/dev/null", "/dev/null/x", "/no/such/folder", ".", "1" + "0" * 30)  # fmt: skip


NUMBERS = ("1", "2", "3", "8", "64", "0.5", "0.1,0.9", "1e9", "0.2", "4", "null", "none", "true", "false")
MODELS = ("tiny", "qwen7b", "opt-13b", "gemma3-270m", "no/such")


def keys() -> list[str]:
    """Every key of every group's files."""
    found = {}
    with initialize_config_dir(str(entry.CONF), version_base="1.3"):
        for algo in ALGOS:
            for data in GROUPS["data"]:
                settings = OmegaConf.to_container(compose("run", [f"algo={algo}", f"data={data}"]), resolve=False)
                found |= {part: None for key in flatten(settings) for part in (key, key.rpartition(".")[0]) if part}
    return list(found)


KEYS = keys()


def override(rng) -> str:
    """One argument: of a real key, of one nearly so, or of none."""
    if rng.random() < 0.2:
        group = rng.choice(list(GROUPS))
        return f"{group}={rng.choice((*GROUPS[group], rng.choice(VALUES)))}"
    key = rng.choice(KEYS)
    way = rng.randrange(12)
    at = rng.randrange(len(key))
    if way == 0:
        key = key[:at] + rng.choice(("", "x", ".", "_", "-", "/", "@", " ", "é", "\n", "'", "$")) + key[at + 1 :]
    if way == 1:
        key = rng.choice(VALUES) or key
    if way == 2:
        return rng.choice(
            (key, f"{key}:1", "=", "==", "=1", rng.choice(VALUES), "--", "-", "--x", "-x", "~", "+", "--cfg", "-c")
        )
    sign = rng.choice(("",) * 8 + ("+", "++", "~", "+++", "~+"))
    return f"{sign}{key}" if sign == "~" and way == 3 else f"{sign}{key}={value(rng)}"


def value(rng) -> str:
    return rng.choice((rng.choice(NUMBERS), rng.choice(VALUES), rng.choice(VALUES), bad.text(rng)))


def arguments(rng) -> list[str]:
    """What a command line can hold: no NUL, and bytes that are no UTF-8 as Python reads them."""
    given = [override(rng) for _ in range(rng.choice((1, 1, 1, 2, 3)))]
    texts = [argument.replace("\0", "").encode("utf-8", "replace") for argument in given]
    return [os.fsdecode(text + rng.choice((b"",) * 30 + (b"\xff",))) for text in texts]


@contextlib.contextmanager
def streams():
    """Standard output and error as a terminal in UTF-8 has them."""
    out = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="strict", write_through=True)
    err = io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace", write_through=True)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield out, err


def command(main) -> str:
    """What `main` prints. Raises ConfigError with the one message that exit code 1 comes with."""
    with streams() as (out, err):
        try:
            code = main()
        except SystemExit as stopped:
            code = stopped.code
    printed = err.buffer.getvalue().decode()
    if code in (0, None):
        return out.buffer.getvalue().decode()
    assert code == 1, f"exit code {code}: {printed}"
    assert printed.startswith("error: "), printed
    raise ConfigError(printed.removeprefix("error: "))


@pytest.fixture
def started(monkeypatch, tmp_path):
    """Experiments that align.run would carry out."""
    found: list = []

    def execute(experiment) -> Path:
        found.append(experiment)
        return Path("run")

    monkeypatch.setitem(sys.modules, "align.experiment", SimpleNamespace(execute=execute))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return found


@fuzzed(50)
def test_command_lines_of_align_run(started, monkeypatch, rng):
    given = arguments(rng)
    started.clear()
    monkeypatch.setattr(sys, "argv", ["run.py", *given])
    GlobalHydra.instance().clear()
    if attempt("align.run", lambda: command(entry.main), ConfigError, most_s=5) is None:
        return
    for experiment in started:  # none: --cfg and --info print
        settings = plain(experiment)
        assert config_hash(json.loads(json.dumps(settings))) == config_hash(settings)
        assert config_hash(yaml.safe_load(yaml.safe_dump(settings, sort_keys=False))) == config_hash(settings)
        attempt("run_dir and runs_root", lambda experiment=experiment: place(experiment), RunError)


@fuzzed(40)
def test_command_lines_of_align_memory(rng):
    name = rng.choice((None, None, *CALCS, "x"))
    known = inspect.signature(CALCS[name]).parameters if name in CALCS else PLACE
    given = [] if name is None else [f"calc={name}"]
    for _ in range(rng.randrange(4)):
        key = rng.choice((*known, "model", "algo", "dtype"))
        given.append(f"{key}={rng.choice((*NUMBERS, *NUMBERS, *ALGOS, *MODELS, *VALUES))}")
    given += arguments(rng) if rng.random() < 0.3 else []
    attempt("align.memory", lambda: command(lambda: memory.main(given)), ConfigError, most_s=5)
