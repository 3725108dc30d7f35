"""The full estimate as tables: what is held, what comes on top, what was assumed."""

from __future__ import annotations

from dataclasses import replace

from align.algo_laws import UNTRAINED
from align.memory import kept
from align.memory.dimensions import Dimensions
from align.memory.estimate import Estimate, estimate, full_copies, roles
from align.memory.load import load_of
from align.memory.place import Place
from align.memory.sheets import Sheet, gb
from align.refusals import ConfigError
from align.schema import Experiment


def sheet(e: Experiment, shape: Dimensions, place: Place) -> Sheet:
    """Raises ConfigError for a model whose training is not counted."""
    if shape.model_type not in kept.PACKED:
        raise ConfigError(
            f"model={shape.name}: models of type {shape.model_type} are padded in training, which is not counted; the "
            f"estimate knows {', '.join(kept.PACKED)}, calc= serves every model"
        )
    found = estimate(e, shape, place)
    rows = [(part.name, gb(part.size), part.says) for part in found.held]
    rows += [(f"{'+' if part is found.largest else 'or'} {part.name}", gb(part.size), part.says)
             for part in found.phases]  # fmt: skip
    rows.append(("peak", gb(found.peak), _verdict(found, place)))
    where = f"each of {place.gpus} GPUs, ZeRO-{place.zero}" if place.gpus > 1 else "one GPU" if place.gpus else "a CPU"
    how = "LoRA" if e.model.lora else "all weights"
    title = f"{e.algo.name}, {shape.name} ({shape.parameters:,} parameters), {how}"
    return Sheet(f"{title}, on {where}", ("part", "GB", "what"), tuple(rows), tuple(_notes(e, shape, place)))


def _verdict(found: Estimate, place: Place) -> str:
    if place.memory is None:
        return f"all but the phases, and {found.largest.name}"
    left = place.memory * 1e9 - found.peak
    return f"fits {place.memory:g} GB, {gb(left)} left" if left >= 0 else f"does not fit {place.memory:g} GB"


def _notes(e: Experiment, shape: Dimensions, place: Place) -> list[str]:
    load, learned = load_of(e, place), e.reward.learned
    assumed = f"prompts of {load.prompt} tokens, completions of {load.completion}"
    notes = [f"Assumed: {assumed}, {'bfloat16' if place.number == 2 else 'float32'} base (prompt_tokens=, "
             "completion_tokens=, dtype=)."]  # fmt: skip
    if learned is not None and learned.run is None and e.algo.kind in ("on_policy", *UNTRAINED):
        stage = estimate(replace(e, algo=learned.algo), shape, place).peak + shape.parameters * place.number
        notes.append(f"A reward model that must be trained first takes {gb(stage)} GB meanwhile, this run's base held.")
    if not place.gpus:
        notes.append(f"While loading, the file of weights is in memory too: {gb(_loading(e, shape, place))} GB in all.")
    else:
        notes.append("Not counted: CUDA's context, fragmentation, buffers of collectives, a layer gathered by ZeRO-3.")
    found = roles(e)
    if found.trained:
        names = ", ".join(found.trained) + " trained" + (f"; {', '.join(found.frozen)} frozen" if found.frozen else "")
        notes.append(f"Full fine-tuning in mixed precision, every model whole ({names}): "
                     f"{gb(full_copies(e, shape, place))} GB on each device (calc=copies, calc=zero).")  # fmt: skip
    return notes


def _loading(e: Experiment, shape: Dimensions, place: Place) -> float:
    """The embedded model's file is float32, as de-quantised; the hub's are 16 bits."""
    file = 4 if e.model.path in ("embedded", "tiny") and e.model.name == shape.name else 2
    process = next(part.size for part in estimate(e, shape, place).held if part.name == "process")
    return process + shape.parameters * (place.number + file)
