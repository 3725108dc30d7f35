"""One process, one side of one row: `python -m align.bench.worker SIDE ROW CANDIDATE RESULT key=value...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from align.bench.settings import Bench, at_candidate, experiment, settings

OURS, TRL, MACHINE = "ours", "trl", "machine"


def main(arguments: list[str]) -> None:
    side, row, candidate, result, *overrides = arguments
    bench = settings([*overrides, *([f"works={row}"] if row else [])])
    found = _machine(bench) if side == MACHINE else _side(bench, side, int(candidate) if candidate else None)
    Path(result).write_text(json.dumps(found))


def _machine(bench: Bench) -> dict[str, Any]:
    from align.bench.machine import measure
    from align.device import resolve_device, resolve_dtype

    device = resolve_device(bench.device)
    return measure(resolve_dtype(bench.dtype, device), device)


def _side(bench: Bench, side: str, candidate: int | None) -> dict[str, Any]:
    if side == OURS:
        from align.bench.ours import measure
    else:
        from align.bench.stock import measure
    import torch

    from align.bench.stamps import Stamps
    from align.device import resolve_device, resolve_dtype
    from align.opened import peak_memory_gb

    work = at_candidate(bench.works[0], candidate)
    run, stamps = experiment(bench, work), Stamps()
    config, given = measure(run, work, stamps)
    device = resolve_device(run.device)
    text = config.get_text_config()
    return {
        "seconds": stamps.seconds(bench.warmup),
        "peak_gb": peak_memory_gb(device),
        "threads": torch.get_num_threads(),
        "groups": given.groups,
        "shape": {
            "layers": text.num_hidden_layers,
            "hidden": text.hidden_size,
            "intermediate": text.intermediate_size,
            "heads": text.num_attention_heads,
            "kv_heads": text.num_key_value_heads,
            "head_dim": getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads,
            "vocab": text.vocab_size,
            "rank": run.model.lora.rank if run.model.lora else 0,
            "weight_bytes": resolve_dtype(run.dtype, device).itemsize,
        },
    }


if __name__ == "__main__":
    main(sys.argv[1:])
