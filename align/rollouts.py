"""Putting parts of a rollout together, and taking some of its rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list, gather_object
from torch import Tensor
from torch.nn.functional import pad


def together(accelerator: Accelerator, make: Callable[[], Any]) -> Any:
    """What `make` returns on each process, in their order, as one record that every process holds.

    An error on one process is raised on all: the others would wait for its part, and the cause would be lost.
    """
    if accelerator.num_processes == 1:
        return make()
    try:
        part = make()
    except Exception as error:
        part = error
    parts = gather_object([part])
    for part in parts:
        if isinstance(part, Exception):
            raise part
    return joined(parts)


def from_main(accelerator: Any, make: Callable[[], Any]) -> Any:
    """What `make` returns on the main process, on every process; an error there is raised on all. `accelerator`: or a
    PartialState, which is there earlier."""
    found: list[Any] = [None]
    if accelerator.is_main_process:
        try:
            found = [make()]
        except Exception as error:
            found = [error]
    if accelerator.num_processes > 1:
        broadcast_object_list(found)
    if isinstance(found[0], Exception):
        raise found[0]
    return found[0]


def joined(parts: Sequence[Any]) -> Any:
    """Records of B_i rows as one record of their sum: tensors [B, T] are padded to the widest, with 0 or False."""
    first = parts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        if first.ndim == 1:
            return torch.cat(list(parts))
        width = max(part.shape[1] for part in parts)
        return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])
    if isinstance(first, tuple):
        return tuple(item for part in parts for item in part)
    if isinstance(first, Mapping):
        return {key: joined([part[key] for part in parts]) for key in first}
    assert is_dataclass(first), type(first)
    return type(first)(**{f.name: joined([getattr(part, f.name) for part in parts]) for f in fields(first)})


def taken(record: Any, rows: Sequence[int]) -> Any:
    """The same record with these rows only, in this order."""
    if record is None:
        return None
    if isinstance(record, Tensor):
        return record[list(rows)]
    if isinstance(record, tuple):
        return tuple(record[i] for i in rows)
    if isinstance(record, Mapping):
        return {key: taken(value, rows) for key, value in record.items()}
    assert is_dataclass(record), type(record)
    return type(record)(**{f.name: taken(getattr(record, f.name), rows) for f in fields(record)})
