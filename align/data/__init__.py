"""Data: from a config to prompts, pairs and demonstrations, split by topic. `load` picks the kind, once, here."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from align.data import annotator, arithmetic, jsonl, sets
from align.data.annotator import Pool
from align.data.dataset import Data
from align.data.errors import DataError

__all__ = ["Data", "DataError", "PoolProvider", "find_pool", "load"]

PoolProvider = Callable[[Any], Pool]  # the annotator's config -> a pool from the cache, or freshly sampled


def load(cfg: Any, tokenizer: Any | None, seed: int, pool_provider: PoolProvider | None) -> Data:
    """Data of the group `data`. Raises DataError.

    tokenizer      counts tokens for the limits of data=jsonl and of sets of the hub; the other kinds do not look at it
    seed           draws what is trained on where data=arithmetic or a set has more than asked for. Held-out data never
                   depends on it, and labels have a seed of their own (data.labels.seed)
    pool_provider  gives data=annotator its pool when data.pool.path is null
    """
    loaders: dict[str, Callable[[], Data]] = {
        "annotator": lambda: annotator.build(cfg, find_pool(cfg, pool_provider)),
        "arithmetic": lambda: arithmetic.load(cfg, seed),
        "jsonl": lambda: jsonl.load(cfg, tokenizer),
        "hub": lambda: sets.load(cfg, tokenizer, seed),
    }
    if cfg.kind not in loaders:
        raise DataError(f"data.kind={cfg.kind!r}: must be one of {', '.join(loaders)}")
    return loaders[cfg.kind]()


def find_pool(cfg: Any, pool_provider: PoolProvider | None) -> Pool:
    """The file that is named, or what the provider gives. Raises DataError."""
    if cfg.pool.path is not None:
        return annotator.read_pool(Path(cfg.pool.path).expanduser())
    if pool_provider is None:
        raise DataError("data.pool.path=null: no pool is at hand and nothing to sample one with; name a pool file")
    return pool_provider(cfg)
