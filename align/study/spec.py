"""conf/study/NAME.yaml -> Study, checked: a key too many, a key too few or an arm that is not there is refused by name.

    name: dpo_length
    question: {en: "...", zh: "..."}     as interviewers ask it
    claim: one sentence that the verdict confirms or reverses
    literature: what others found, with its source
    not_shown: what the study does not show
    kind: trained | measured | exact
    module: align.exact.NAME             of an exact study: has `compute()`; nothing of the below
    module: NAME                         of a measured one: align/study/NAME.py, whose own settings are NAME.KEY=VALUE

    base: [KEY=VALUE, ...]               overrides of every run of align.run; one of a later list replaces the earlier
    tiers: {cpu: [...], gpu: [...]}      then these
    asks: [data.path]                    optional: keys that the command line must give; giving them changes nothing
    arms: {NAME: [...], ...}             then these
    seeds: [0, 1, 2]                     or {cpu: [...], gpu: [...]}
    primary: {metric, rule, margin, ...} what decides; keys below
    gates: {KEY: [low, high]}            of every arm's last probe, mean over seeds; outside: INVALID
                                         {KEY: {ARM: [low, high]}}: of these arms alone
    controls: {NAME: [...]}              optional: negative controls, each in the place of the arm that should differ
    mitigations: {NAME: [...]}           optional: shown beside the arm that they cure
    beside: {cpu: 3, gpu: 5}             optional: how many of the seeds, the first, these two kinds of arms have
    screen: [cpu]                        optional: tiers too small for the claim; with fewer than 5 seeds nothing they
                                         see is a verdict, it is INCONCLUSIVE until another tier decides it
    cure: {arm, removes, cost: {metric, margin, of}}   with mitigations: when one works; `well: ARM` is an arm without
                                         what is cured, by default the other side of the primary
    secondary: {NAME: {as primary}}      optional: further contrasts, corrected by Holm
A contrast has metric (a key of the probe), rule (align/study/rules.py), margin, and what the rule needs: effect: high,
low, direction; equivalence: high, low; dose: levels {arm: number}, direction; peak: levels, or high and along: the
steps of that arm, each at the root of its KL (the key `along`). `low: start` is step 0 of the arm `high`; `at` a step
instead of the last. `of` is the margin's unit: base_mean (a share of the step-0 mean), base_within_prompt_sd, or
absolute, the default.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from align.compose import CONF
from align.refusals import ConfigError, need, on_one_line, one_of, reachable
from align.study import values
from align.study.settings import MODULES

STUDIES = CONF / "study"
START = "start"
NEEDS = {
    "effect": ("high", "low", "direction"),
    "equivalence": ("high", "low"),
    "dose": ("levels", "direction"),
    "peak": ("levels",),
}
LEVELS = {"dose": 4, "peak": 3}
PROSE = ("name", "question", "claim", "literature", "not_shown", "kind")
DECIDES = ("base", "tiers", "arms", "seeds", "primary", "gates")
OPTIONAL = ("controls", "mitigations", "cure", "secondary", "beside", "screen", "asks")
KINDS = {"trained": DECIDES, "measured": ("module", *DECIDES), "exact": ("module",)}


@dataclass(frozen=True)
class Contrast:
    """What is compared, by which rule. What its rule does not need is None."""

    metric: str
    rule: str
    margin: float
    of: str
    direction: int | None
    high: str | None
    low: str | None
    levels: Mapping[str, float]  # arm -> its level
    at: int | None = None  # a step; None: the last
    along: str | None = None  # of a peak over the steps of `high`: the key of their KL

    @property
    def arms(self) -> list[str]:
        return [name for name in (self.high, self.low, *self.levels) if name not in (None, START)]  # type: ignore[misc]

    @property
    def treated(self) -> str:
        """The arm that should differ: of levels, the last."""
        return self.high or max(self.levels, key=lambda arm: self.levels[arm])

    @property
    def base(self) -> str:
        """What it is compared with; its step 0 gives margins their unit."""
        return self.low or min(self.levels, key=lambda arm: self.levels[arm])


@dataclass(frozen=True)
class Cost:
    metric: str
    margin: float
    of: str


@dataclass(frozen=True)
class Cure:
    """A mitigation works when it removes this share of the arm's effect and costs less than the margin."""

    arm: str
    removes: float
    cost: Cost
    well: str | None  # the arm that has not got it; None: the other side of the primary contrast


@dataclass(frozen=True)
class Study:
    """A declared study. Of an exact one `module` alone is set, of a trained one all else, of a measured one all."""

    name: str
    question: Mapping[str, str]  # language -> as it is asked
    claim: str
    literature: str
    not_shown: str
    kind: str
    declared: str  # sha256 of all that decides the verdict
    module: str | None = None
    base: tuple[str, ...] = ()
    tiers: Mapping[str, tuple[str, ...]] | None = None
    asks: tuple[str, ...] = ()  # keys that the command line gives
    roles: Mapping[str, str] | None = None  # arm -> arm | control | mitigation, in the order of the page
    overrides: Mapping[str, tuple[str, ...]] | None = None  # arm -> its own overrides
    seeds: Mapping[str, tuple[int, ...]] | None = None  # tier -> its seeds
    beside: Mapping[str, int] | None = None  # tier -> how many of them controls and mitigations have; None: all
    screen: tuple[str, ...] = ()  # tiers where the claim is only screened
    primary: Contrast | None = None
    secondary: Mapping[str, Contrast] | None = None
    gates: Mapping[str, Mapping[str, tuple[float, float]]] | None = None  # arm -> key -> lowest, highest
    cure: Cure | None = None

    def of_role(self, role: str) -> list[str]:
        return [name for name, its in (self.roles or {}).items() if its == role]


def files() -> list[Path]:
    return sorted(STUDIES.glob("*.yaml"))


def find(name: str) -> Path:
    """A study of conf/study, or a file of one's own. Raises ConfigError."""
    if name.endswith((".yaml", ".yml")):
        reachable("study", name)
        need(Path(name).expanduser().is_file(), "study", name, "there is no such file")
        return Path(name).expanduser()
    one_of(name, [file.stem for file in files()], "study")
    return STUDIES / f"{name}.yaml"


def load(path: Path) -> Study:
    """Raises ConfigError naming file, key and fix."""
    try:
        raw = yaml.safe_load(path.read_text("utf-8"))
        if not isinstance(raw, dict):
            raise ConfigError("it holds no mapping of keys")
        return parse(raw)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise ConfigError(f"study {path}, line {line}: no YAML ({error.problem})") from None
    except (ValueError, yaml.YAMLError, OSError, RecursionError) as error:
        raise ConfigError(f"study {path}: {on_one_line(str(error))}") from None


def parse(raw: Mapping[str, Any]) -> Study:
    one_of(raw.get("kind"), tuple(KINDS), "kind")
    exact, asked = raw["kind"] == "exact", KINDS[raw["kind"]]
    values.keys(raw, [*PROSE, *asked], () if exact else OPTIONAL, "")
    need(isinstance(raw["name"], str) and re.fullmatch(r"[a-z0-9_]+", raw["name"]) is not None, "name", raw["name"],
         "must be of small letters, digits and _: a folder is called so")  # fmt: skip
    values.keys(values.mapping(raw["question"], "question"), ["en", "zh"], (), "question")
    prose = {key: str(raw[key]).strip() for key in PROSE if key != "question"}
    question = {language: str(text).strip() for language, text in raw["question"].items()}
    head = prose | {"question": question, "declared": _digest(raw, (*asked, *OPTIONAL)), "module": raw.get("module")}
    if raw["kind"] == "measured":
        one_of(raw["module"], tuple(MODULES), "module")
    return Study(**head) if exact else _armed(raw, head)


def _armed(raw: Mapping[str, Any], head: Mapping[str, Any]) -> Study:
    roles, own_of = {}, {}
    for key, role in (("arms", "arm"), ("controls", "control"), ("mitigations", "mitigation")):
        for name, own in values.mapping(raw.get(key, {}), key).items():
            need(isinstance(name, str) and re.fullmatch(r"[a-z0-9_]+", name) is not None and name != START, key, name,
                 f"an arm's name is of small letters, digits and _, and not {START}")  # fmt: skip
            need(name not in roles, key, name, "two arms have this name; rename one")
            roles[name], own_of[name] = role, values.overrides(own, f"{key}.{name}")
    arms = [name for name, role in roles.items() if role == "arm"]
    need(("cure" in raw) == bool(raw.get("mitigations")), "cure", raw.get("cure"),
         "declares when a mitigation works: give it exactly where there are mitigations")  # fmt: skip
    tiers = {
        name: values.overrides(own, f"tiers.{name}") for name, own in values.mapping(raw["tiers"], "tiers").items()
    }
    need(bool(tiers), "tiers", raw["tiers"], "must have one at least, e.g. cpu")
    secondary = values.mapping(raw.get("secondary", {}), "secondary")
    seeds = values.seeds_by_tier(raw["seeds"], list(tiers))
    primary = _contrast(raw["primary"], arms, "primary")
    controls = [name for name, role in roles.items() if role == "control"]
    need(primary.rule != "equivalence" or not controls, "controls", controls,
         "a claim of equality has no negative control: leave them out")  # fmt: skip
    return Study(
        **head,
        base=values.overrides(raw["base"], "base"),
        tiers=tiers,
        asks=values.names(raw.get("asks", []), "asks"),
        roles=roles,
        overrides=own_of,
        seeds=seeds,
        beside=values.beside(raw["beside"], seeds) if "beside" in raw else None,
        primary=primary,
        secondary={str(name): _contrast(own, arms, f"secondary.{name}") for name, own in secondary.items()},
        gates=values.gates(values.mapping(raw["gates"], "gates"), arms),
        cure=_cure(raw["cure"], primary, arms) if "cure" in raw else None,
        screen=values.screen(raw["screen"], list(tiers)) if "screen" in raw else (),
    )


def _contrast(raw: Any, arms: Sequence[str], where: str) -> Contrast:
    rule = values.mapping(raw, where).get("rule")
    one_of(rule, tuple(NEEDS), f"{where}.rule")
    along = rule == "peak" and "along" in raw
    needs = ("high", "along") if along else NEEDS[rule]
    values.keys(raw, ["metric", "rule", "margin", *needs], ("of",) if along else ("of", "at"), where)
    levels = values.mapping(raw.get("levels", {}), f"{where}.levels")
    for level in levels.values():
        values.number(level, f"{where}.levels")
    need(along or len({*levels.values()}) >= LEVELS.get(rule, 0), f"{where}.levels", levels,
         f"rule={rule} needs {LEVELS.get(rule)} different levels or more")  # fmt: skip
    direction = raw.get("direction")
    need("direction" not in needs or direction in (1, -1), f"{where}.direction", direction, "must be 1 or -1")
    high, low = raw.get("high"), START if along else raw.get("low")
    for key, name in (("high", high), ("low", low), *(("levels", name) for name in levels)):
        if name is not None and not (key == "low" and name == START):
            one_of(name, arms, f"{where}.{key}")
    need(high is None or high != low, f"{where}.low", low, "is the arm `high` itself")
    at = raw.get("at")
    need(at is None or (isinstance(at, int) and at > 0), f"{where}.at", at, "must be a step after the start: 1 or more")
    margin, of = values.margin_of(raw, where)
    return Contrast(str(raw["metric"]), rule, margin, of, direction, high, low, levels, at, raw.get("along"))


def _cure(raw: Any, primary: Contrast, arms: Sequence[str]) -> Cure:
    values.keys(values.mapping(raw, "cure"), ["arm", "removes", "cost"], ("well",), "cure")
    # the effect is between these two; of levels, between the arm and the highest
    ill = primary.arms if primary.levels else [name for name in (primary.treated, primary.base) if name != START]
    one_of(raw["arm"], ill, "cure.arm")
    removes = values.number(raw["removes"], "cure.removes")
    need(0 < removes <= 1, "cure.removes", removes, "is a share of the effect: above 0, at most 1")
    values.keys(values.mapping(raw["cost"], "cure.cost"), ["metric", "margin"], ("of",), "cure.cost")
    cost = Cost(str(raw["cost"]["metric"]), *values.margin_of(raw["cost"], "cure.cost"))
    if "well" in raw:
        one_of(raw["well"], arms, "cure.well")
        need(raw["well"] != raw["arm"], "cure.well", raw["well"], "is the arm that is to be cured")
    return Cure(raw["arm"], removes, cost, raw.get("well"))


def _digest(raw: Mapping[str, Any], keys: Sequence[str]) -> str:
    declared = {key: raw[key] for key in keys if key in raw}
    return hashlib.sha256(json.dumps(declared, sort_keys=True, ensure_ascii=False).encode()).hexdigest()
