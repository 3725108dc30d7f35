"""Data of the synthetic annotator: its prompts, a pool of answers sampled from the start model, and labels on them.

    topics   42 train             9 valid                   9 eval
    used as  prompts and pairs    held-out pairs            held-out prompts (the probe)

The pool covers train and valid. It is sampled once per model and settings (`pool_key`) and kept as a gzip file of
JSON lines. Reward heads are judged on another, of many answers to the prompts of the probe (align/study/heads.py).
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from align.data.dataset import Data, digest, dropped
from align.data.errors import DataError
from align.files import replacing
from align.records import Demonstration, PreferencePair, Prompt
from reward_models.annotator import Answer, GoldScale, fit_scale, gold_source
from reward_models.base import RewardError
from reward_models.gates import pool_gates
from reward_models.instructions import prompt_specs
from reward_models.labels import MAX_PAIRS_PER_PROMPT, LabelledPair, LabelSettings, label_pairs

MAX_POOL_BYTES = 256 * 2**20  # unpacked; the shipped one has 0.8 million, and a small file may unpack to any size
# (prompts, samples of each) -> (text, tokens with EOS, finished) per answer, prompt-major
Sampler = Callable[[Sequence[Prompt], int], Sequence[tuple[str, int, bool]]]
Record = TypeVar("Record")


@dataclass(frozen=True)
class PoolHeader:
    """What a pool is a pool of. `key` is the hash of the rest."""

    key: str
    prompts: str  # hash of the prompt set
    model: str  # fingerprint of the weights that answered
    samples: int
    temperature: float
    max_new_tokens: int


@dataclass(frozen=True)
class PoolRow:
    """One answer."""

    prompt_id: str
    sample: int  # 0..samples-1
    text: str
    tokens: int  # EOS included
    finished: bool


@dataclass(frozen=True)
class Pool:
    """`samples` answers to every prompt asked, prompt by prompt; by default those of `pool_prompts()`."""

    header: PoolHeader
    rows: tuple[PoolRow, ...]


# --- prompts ---


def prompts(*splits: str) -> tuple[Prompt, ...]:
    """Prompts of the splits (train, valid, eval), always in the same order; any prefix is a fair sample of topics."""
    return tuple(
        Prompt(spec.id, ({"role": "user", "content": spec.text},), spec.info["topic"], spec.info)
        for spec in prompt_specs()
        if spec.split in splits
    )


def pool_prompts() -> tuple[Prompt, ...]:
    """What a pool must answer."""
    return prompts("train", "valid")


def _prompt_set(asked: Sequence[Prompt]) -> str:
    return digest([[prompt.id, prompt.text] for prompt in asked])


# --- the pool and its file ---


def pool_header(cfg: Any, model_fingerprint: str, asked: Sequence[Prompt] | None = None) -> PoolHeader:
    parts = {
        "prompts": _prompt_set(pool_prompts() if asked is None else asked),
        "model": model_fingerprint,
        "samples": cfg.pool.samples,
        "temperature": float(cfg.pool.temperature),
        "max_new_tokens": cfg.pool.max_new_tokens,
    }
    return PoolHeader(key=digest(parts), **parts)


def pool_key(cfg: Any, model_fingerprint: str, asked: Sequence[Prompt] | None = None) -> str:
    """Names the pool of these settings and weights: equal key, same distribution of answers to the same prompts."""
    return pool_header(cfg, model_fingerprint, asked).key


def make_pool(cfg: Any, sample: Sampler, model_fingerprint: str, asked: Sequence[Prompt] | None = None) -> Pool:
    """Sample a pool. `sample` applies cfg.pool.temperature and cfg.pool.max_new_tokens itself."""
    header = pool_header(cfg, model_fingerprint, asked)
    asked, samples = pool_prompts() if asked is None else asked, cfg.pool.samples
    answers = sample(asked, samples)
    assert len(answers) == len(asked) * samples, f"{len(answers)} answers for {len(asked)} prompts x {samples}"
    rows = tuple(
        PoolRow(asked[i // samples].id, i % samples, text, int(tokens), bool(finished))
        for i, (text, tokens, finished) in enumerate(answers)
    )
    return Pool(header, rows)


def write_pool(path: Path, pool: Pool) -> None:
    """Equal pools give equal bytes."""
    lines = [asdict(pool.header), *(asdict(row) for row in pool.rows)]
    text = "".join(json.dumps(line) + "\n" for line in lines)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as aside:
        aside.write_bytes(gzip.compress(text.encode(), mtime=0))


def read_pool(path: Path, asked: Sequence[Prompt] | None = None) -> Pool:
    """Raises DataError when the file is not a pool, is damaged, or answers other prompts than this version's."""
    try:
        if not path.is_file():  # a pipe would be waited for
            raise DataError(f"pool {path}: there is no such file")
        with gzip.open(path) as file:
            text = file.read(MAX_POOL_BYTES + 1)
        if len(text) > MAX_POOL_BYTES:
            raise DataError(f"pool {path}: more than {MAX_POOL_BYTES} bytes; it is no pool")
        lines = text.decode().removesuffix("\n").split("\n")
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise DataError(f"pool {path}: cannot be read: {error}") from None
    header = _record(path, 1, PoolHeader, lines[0])
    rows = tuple(_record(path, number, PoolRow, line) for number, line in enumerate(lines[1:], start=2))
    if header.key != digest({name: value for name, value in asdict(header).items() if name != "key"}):
        raise DataError(f"pool {path}, line 1: the key does not fit the header; the file was changed, sample it again")
    pool = Pool(header, rows)
    _check_rows(f"pool {path}", pool, pool_prompts() if asked is None else asked)
    return pool


def _record(path: Path, number: int, schema: type[Record], line: str) -> Record:
    """A line as the dataclass it must be, field by field."""
    types: dict[str, Any] = {"str": str, "int": int, "float": (float, int), "bool": bool}
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        raise DataError(f"pool {path}, line {number}: not JSON; sample it again") from None
    for field in fields(schema):  # type: ignore[arg-type]
        if not isinstance(value, dict) or not isinstance(value.get(field.name), types[str(field.type)]):
            raise DataError(f"pool {path}, line {number}, field '{field.name}': expected {field.type}; sample it again")
    return schema(**{field.name: value[field.name] for field in fields(schema)})  # type: ignore[arg-type]


def _check_rows(what: str, pool: Pool, asked: Sequence[Prompt]) -> None:
    if pool.header.prompts != _prompt_set(asked):
        raise DataError(f"{what}: it answers another set of prompts than this version's; sample it again")
    as_many = len(pool.rows) == len(asked) * pool.header.samples  # first: the header may say any number
    expected = [(prompt.id, i) for prompt in asked for i in range(pool.header.samples if as_many else 0)]
    if not as_many or [(row.prompt_id, row.sample) for row in pool.rows] != expected:
        raise DataError(
            f"{what}: {len(pool.rows)} answers that are not {pool.header.samples} for each of the "
            f"{len(asked)} prompts in order; sample it again"
        )


# --- data ---


def build(cfg: Any, pool: Pool) -> Data:
    """Fit gold on the pool's train answers, label pairs, split. Notes report truncation, shortfalls and failed gates.

    Raises DataError when the pool was made with other settings than `cfg.pool`, or cannot give what `cfg.labels` asks.
    """
    check_settings(cfg, pool)
    train, valid = (answers_to(pool, prompts(split)) for split in ("train", "valid"))
    settings = label_settings(cfg)
    possible = len(train) * min(MAX_PAIRS_PER_PROMPT, cfg.pool.samples // 2)
    if settings.pairs > possible:
        raise DataError(
            f"data.labels.pairs={settings.pairs}: {len(train)} prompts x {cfg.pool.samples} answers give "
            f"at most {possible} disjoint pairs; lower it, or raise data.pool.samples (up to 8)"
        )
    try:
        scale = fit_scale(list(train.values()))
    except RewardError as error:
        raise DataError(f"data=annotator: {error}") from None
    labelled = label_pairs(train, scale, settings)
    checked = label_pairs(valid, scale, replace(settings, pairs=len(pool.rows)))
    notes = [_truncation_note("train", train), _truncation_note("valid", valid)]
    identical = labelled.identical + checked.identical
    couples = labelled.available + checked.available + identical
    notes.append(f"pairs of identical answers: dropped {identical} of {couples}")
    if len(labelled.pairs) < settings.pairs:
        notes.append(f"data.labels.pairs={settings.pairs}: the pool's finished answers give only {len(labelled.pairs)}")
    by_id = {prompt.id: prompt for prompt in pool_prompts()}
    train_pairs = tuple(
        PreferencePair(by_id[pair.prompt_id], pair.chosen.text, pair.rejected.text) for pair in labelled.pairs
    )
    return Data(
        name=cfg.name,
        train_prompts=prompts("train"),
        heldout_prompts=prompts("eval"),
        train_pairs=train_pairs,
        heldout_pairs=tuple(_with_margin(by_id[pair.prompt_id], pair) for pair in checked.pairs),
        demonstrations=tuple(Demonstration(pair.prompt, pair.chosen) for pair in train_pairs),
        verifier=None,
        gold=gold_source(scale),
        fingerprint=_fingerprint(pool, settings, scale),
        notes=(*notes, *_gate_notes(list(valid.values()), scale)),
    )


def _fingerprint(pool: Pool, settings: LabelSettings, scale: GoldScale) -> str:
    """What settings were before there was a choice is left out: such data, and the runs that have it, are older."""
    older = (("annotators", 1), ("similarity", None))
    labels = {key: value for key, value in asdict(settings).items() if (key, value) not in older}
    return digest([asdict(pool.header), [asdict(row) for row in pool.rows], labels, scale.digest()])


def label_settings(cfg: Any) -> LabelSettings:
    given = {field.name: getattr(cfg.labels, field.name) for field in fields(LabelSettings)}
    band = given["similarity"]
    return LabelSettings(**given | {"similarity": band and tuple(band)})


def check_settings(cfg: Any, pool: Pool) -> None:
    """Raises DataError when the pool was made with other settings than `cfg.pool`."""
    for key in ("samples", "temperature", "max_new_tokens"):
        asked, made = getattr(cfg.pool, key), getattr(pool.header, key)
        if asked != made:
            raise DataError(
                f"data.pool.{key}={asked}: the pool was made with {made}; set data.pool.{key}={made}, or "
                "data.pool.path=null to sample another"
            )
    _check_rows("the pool", pool, pool_prompts())


def answers_to(pool: Pool, of: Sequence[Prompt]) -> dict[str, list[Answer]]:
    """Prompt id -> its answers."""
    infos = {prompt.id: prompt.info for prompt in of}
    groups: dict[str, list[Answer]] = {prompt.id: [] for prompt in of}
    for row in pool.rows:
        if row.prompt_id in infos:
            groups[row.prompt_id].append(Answer(row.text, row.tokens, row.finished, infos[row.prompt_id]))
    return groups


def _with_margin(prompt: Prompt, pair: LabelledPair) -> PreferencePair:
    """A held-out pair; info["gold_margin"] is what gold says without noise (> 0: the label is right)."""
    info = {**prompt.info, "gold_margin": pair.gold_margin}
    return PreferencePair(replace(prompt, info=info), pair.chosen.text, pair.rejected.text)


def _truncation_note(split: str, groups: Mapping[str, Sequence[Answer]]) -> str:
    answers = [answer for group in groups.values() for answer in group]
    lost = [answer.tokens for answer in answers if not answer.finished]
    return dropped(f"truncated answers ({split})", lost, [answer.tokens for answer in answers if answer.finished])


def _gate_notes(groups: Sequence[Sequence[Answer]], scale: GoldScale) -> list[str]:
    return [
        f"gate {gate.name} FAILED: {gate.value:.3f}, must be {gate.threshold}"
        for gate in pool_gates(groups, scale)
        if not gate.passed
    ]
