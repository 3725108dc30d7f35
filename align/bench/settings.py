"""What is measured: `conf/bench/default.yaml` under the command line, checked before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from align.compose import CONF, composed
from align.config import check
from align.refusals import ConfigError, one_of, positive, refuse_unknown
from align.schema import Experiment

FILE = CONF / "bench" / "default.yaml"
KINDS = ("rollout", "pairs", "examples", "reward")
TRAINERS = ("grpo", "rloo", "dpo", "sft", "reward")


@dataclass(frozen=True)
class Stock:
    """How TRL is set for one row."""

    trainer: str
    dtype: str  # of the base that TRL trains adapters on
    args: Mapping[str, Any]  # of TRL's config object, over those that align/bench/stock.py gives to all
    environment: Mapping[str, str]  # variables of its process


@dataclass(frozen=True)
class Work:
    """One row: the same work for both sides."""

    name: str
    says: str
    kind: str
    prompts: tuple[str, ...]  # ids of the annotator's prompts
    prompt_tokens: int | None  # prompts are padded with text to this length
    lengths: tuple[tuple[int, ...], ...] | None  # rollouts: tokens of each completion of each prompt
    beside: str | None  # the row that our time is compared with
    ours: tuple[str, ...]  # overrides of align.run
    trl: Stock | None
    candidates: tuple[Stock, ...]  # what search=true tries


@dataclass(frozen=True)
class Bench:
    works: tuple[Work, ...]
    repeats: int
    steps: int
    warmup: int
    model: str
    dtype: str
    device: str
    out: Path
    search: bool

    @property
    def all_steps(self) -> int:
        return self.warmup + self.steps


def settings(arguments: Sequence[str]) -> Bench:
    """The config file under `key=value` arguments. Raises ConfigError naming key, value and fix."""
    raw = yaml.safe_load(FILE.read_text(encoding="utf-8"))
    rows = {name: _work(name, row) for name, row in raw.pop("rows").items()}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or argument.startswith("-"):
            raise ConfigError(f"{argument}: not understood; arguments are key=value (see --help)")
        refuse_unknown({key: value}, list(raw), "")
        raw[key] = value.split(",") if key == "works" else value if key == "out" else yaml.safe_load(value)
    for key in ("repeats", "steps", "warmup"):
        if type(raw[key]) is not int:
            raise ConfigError(f"{key}={raw[key]}: must be a whole number >= 1")
        positive(raw[key], key)
    if type(raw["search"]) is not bool:
        raise ConfigError(f"search={raw['search']}: must be true or false")
    for name in raw["works"]:
        one_of(name, list(rows), "works")
    chosen = tuple(rows[name] for name in dict.fromkeys(raw.pop("works")))
    bench = Bench(works=chosen, **{**raw, "out": Path(raw["out"])})
    for work in bench.works:
        experiment(bench, work)
    return bench


def experiment(bench: Bench, work: Work) -> Experiment:
    """The run that this project's side of a row is a part of. Raises ConfigError."""
    overrides = [f"model={bench.model}", f"dtype={bench.dtype}", f"device={bench.device}", "tracker=none",
                 f"steps={bench.all_steps}", *work.ours]  # fmt: skip
    return check(composed(overrides))


def _work(name: str, row: Mapping[str, Any]) -> Work:
    known = [field.name for field in fields(Work) if field.name != "name"]
    refuse_unknown(row, known, f"rows.{name}")
    missing = [key for key in known if key not in row]
    if missing:
        raise ConfigError(f"rows.{name}.{missing[0]}: missing; every row has {', '.join(known)}")
    one_of(row["kind"], KINDS, f"rows.{name}.kind")
    lengths = row["lengths"]
    if (lengths is None) != (row["kind"] != "rollout") or (lengths and len(lengths) != len(row["prompts"])):
        raise ConfigError(f"rows.{name}.lengths={lengths}: a list for each prompt of a rollout, else null")
    trl = row["trl"] and _stock(name, row["trl"])
    return Work(
        name=name, says=row["says"], kind=row["kind"], prompts=tuple(row["prompts"]),
        prompt_tokens=row["prompt_tokens"], lengths=lengths and tuple(map(tuple, lengths)), beside=row["beside"],
        ours=tuple(row["ours"]), trl=trl,
        candidates=tuple(_stock(name, {**row["trl"], **c}) for c in row["candidates"]),
    )  # fmt: skip


def _stock(name: str, raw: Mapping[str, Any]) -> Stock:
    refuse_unknown(raw, [field.name for field in fields(Stock)], f"rows.{name}.trl")
    one_of(raw["trainer"], TRAINERS, f"rows.{name}.trl.trainer")
    environment = {key: str(value) for key, value in raw["environment"].items()}
    return Stock(raw["trainer"], raw["dtype"], dict(raw["args"]), environment)


def at_candidate(work: Work, number: int | None) -> Work:
    """The row with one of its candidates in place of TRL's settings."""
    return work if number is None else replace(work, trl=work.candidates[number])
