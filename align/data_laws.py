"""The laws of the group `data`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from align.refusals import finite, need, positive, reachable

if TYPE_CHECKING:
    from align.schema import Experiment

# What a set of the hub can be: pairs, their prompts apart or not, demonstrations, questions (align/data/rows.py).
HUB_COLUMNS = [["prompt", "chosen", "rejected"], ["chosen", "rejected"], ["prompt", "response"], ["question", "answer"]]


def enforce(e: Experiment) -> None:
    {"annotator": _annotator, "arithmetic": _arithmetic, "jsonl": _jsonl, "hub": _hub}[e.data.kind](e)


def _annotator(e: Experiment) -> None:
    pool, labels = e.data.pool, e.data.labels
    need(pool.samples >= 2, "data.pool.samples", pool.samples, "must be >= 2: a pair needs two answers to one prompt")
    reachable("data.pool.path", pool.path)
    positive(pool.max_new_tokens, "data.pool.max_new_tokens")
    finite(pool.temperature, "data.pool.temperature", 0, 5, open_low=True)
    positive(labels.pairs, "data.labels.pairs")
    need(
        1 <= labels.annotators <= labels.pairs,
        "data.labels.annotators",
        labels.annotators,
        f"must be between 1 and data.labels.pairs={labels.pairs}: a pair is labelled by one of them",
    )
    need(labels.sharpness > 0, "data.labels.sharpness", labels.sharpness, "must be > 0 (inf: no label noise)")
    finite(labels.flips, "data.labels.flips", 0, 0.5)
    finite(labels.length_bias, "data.labels.length_bias", -10, 10)
    if (band := labels.similarity) is not None:
        need(len(band) == 2 and 0 <= band[0] < band[1] <= 1, "data.labels.similarity", list(band),
             "must be [lowest, highest] quantile, within [0, 1]; null keeps every pair")  # fmt: skip
    need(labels.seed >= 0, "data.labels.seed", labels.seed, "must be >= 0")


def _arithmetic(e: Experiment) -> None:
    d = e.data
    need(2 <= d.terms <= 10, "data.terms", d.terms, "must be between 2 and 10")
    need(d.low <= d.high, "data.low", d.low, f"must be <= data.high={d.high}")
    positive(d.train, "data.train")
    positive(d.heldout, "data.heldout")
    need(bool(d.task.strip()), "data.task", repr(d.task), 'must be "sum" or the name of a reasoning_gym dataset')


def _jsonl(e: Experiment) -> None:
    d = e.data
    need(bool(d.path.strip()), "data.path", repr(d.path), "must name a .jsonl file: data=jsonl data.path=FILE")
    reachable("data.path", d.path)
    finite(d.heldout, "data.heldout", 0, 0.9, open_low=True)
    _limits(e)


def _limits(e: Experiment) -> None:
    for key in ("max_prompt_tokens", "max_completion_tokens"):
        value = getattr(e.data, key)
        need(value is None or value >= 1, f"data.{key}", value, "must be >= 1, or null for no limit")


def _hub(e: Experiment) -> None:
    d = e.data
    for key in ("repo", "train_split", "heldout_split"):
        need(bool(getattr(d, key).strip()), f"data.{key}", repr(getattr(d, key)), "must not be empty")
    need(d.train_split != d.heldout_split, "data.heldout_split", d.heldout_split,
         "must be another split than data.train_split")  # fmt: skip
    need(bool(d.folders), "data.folders", d.folders, "must name folders of the repository; [.] is its root")
    need(d.columns in HUB_COLUMNS, "data.columns", d.columns, f"must be one of {', '.join(map(str, HUB_COLUMNS))}")
    need(d.path is None or bool(d.path.strip()), "data.path", repr(d.path), "must name a folder or a file, or be null")
    reachable("data.path", d.path)
    need(d.path is None or d.revision is None, "data.revision", d.revision,
         "has no effect on a local copy (data.path); leave one of them out")  # fmt: skip
    need(d.train is None or d.train >= 1, "data.train", d.train, "must be >= 1, or null for all prompts")
    positive(d.heldout, "data.heldout")
    _limits(e)
