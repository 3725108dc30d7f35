"""A model as its dimensions: how many parameters, where adapters go, what a cached token takes. No torch."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from align.refusals import ConfigError, one_of, shown
from align.run import CONF

FILE = CONF / "memory" / "models.yaml"


class Linear(NamedTuple):
    """A linear layer of a block."""

    name: str
    inputs: int
    outputs: int
    bias: bool

    @property
    def parameters(self) -> int:
        return self.inputs * self.outputs + self.bias * self.outputs


@dataclass(frozen=True)
class Family:
    """How the blocks of a transformers model_type differ."""

    gated: bool = True  # gate, up and down; else two layers
    norms: int = 2  # of the hidden size, in a block
    head_norms: bool = False  # of queries and keys, of a head's size
    biases: tuple[str, ...] = ()  # linear layers that have one
    centred: bool = False  # LayerNorm: a weight and a bias
    positions: bool = False  # learned, two more than the longest sequence


QKV, OPT = ("q_proj", "k_proj", "v_proj"), ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
FAMILIES = {
    "llama": Family(),
    "mistral": Family(),
    "qwen2": Family(biases=QKV),
    "qwen3": Family(head_norms=True),
    "gemma3_text": Family(norms=4, head_norms=True),
    "opt": Family(gated=False, biases=OPT, centred=True, positions=True),
}


@dataclass(frozen=True)
class Dimensions:
    name: str
    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool  # embeddings and LM head are one matrix
    longest: int  # 0 where positions are not learned
    family: Family = field(repr=False)

    @property
    def queries(self) -> int:
        """Width of a token's queries, all heads."""
        return self.heads * self.head_dim

    @property
    def keys(self) -> int:
        """Width of a token's keys, and of its values."""
        return self.kv_heads * self.head_dim

    @property
    def linears(self) -> list[Linear]:
        """Those of one block, in the order in which it calls them."""
        h, f, q, kv = self.hidden, self.intermediate, self.queries, self.keys
        widths = {"q_proj": (h, q), "k_proj": (h, kv), "v_proj": (h, kv)}
        if self.family.gated:
            widths |= {"o_proj": (q, h), "gate_proj": (h, f), "up_proj": (h, f), "down_proj": (f, h)}
        else:
            widths |= {"out_proj": (q, h), "fc1": (h, f), "fc2": (f, h)}
        return [Linear(name, *width, name in self.family.biases) for name, width in widths.items()]

    @property
    def embedding(self) -> int:
        """Parameters of the token embeddings, and of the LM head."""
        return self.vocab * self.hidden

    @property
    def block(self) -> int:
        """Parameters of one block."""
        vector = self.hidden * (2 if self.family.centred else 1)
        norms = self.family.norms * vector + (2 * self.head_dim if self.family.head_norms else 0)
        return sum(linear.parameters for linear in self.linears) + norms

    @property
    def parameters(self) -> int:
        last_norm = self.hidden * (2 if self.family.centred else 1)
        positions = (self.longest + 2) * self.hidden if self.family.positions else 0
        return self.embedding * (1 if self.tied else 2) + positions + self.layers * self.block + last_norm

    def adapted(self, targets: str | Sequence[str]) -> list[Linear]:
        """Linear layers of a block that LoRA is put on. Raises ConfigError for a name that none has."""
        if targets == "all-linear":
            return self.linears
        for target in targets:
            one_of(target, [linear.name for linear in self.linears], "model.lora.targets")
        return [linear for linear in self.linears if linear.name in targets]

    def adapter(self, rank: int, targets: str | Sequence[str] = "all-linear") -> int:
        """Parameters of a LoRA adapter: r (in + out) for each adapted layer (arXiv:2106.09685, section 4.1)."""
        return self.layers * sum(rank * (linear.inputs + linear.outputs) for linear in self.adapted(targets))

    def cache(self, number_bytes: int, kv_heads: int | None = None) -> int:
        """Bytes that a token's keys and values take, with as many heads as asked: 2 L n_kv d b."""
        return 2 * self.layers * (self.kv_heads if kv_heads is None else kv_heads) * self.head_dim * number_bytes


def known() -> dict[str, dict[str, Any]]:
    return yaml.safe_load(FILE.read_text(encoding="utf-8"))


def load(name: str) -> Dimensions:
    """`model=`: a name of conf/memory/models.yaml, or a folder with a config.json. Raises ConfigError."""
    table = known()
    if name in table:
        return of_config(name, table[name])
    file = Path(os.path.expanduser(name)) / "config.json"
    if os.path.isfile(file):  # Path.is_file would raise for a name that no file can have
        try:
            config = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"model={shown(name)}: {file} cannot be read: {error}") from None
        if not isinstance(config, dict):
            raise ConfigError(f"model={shown(name)}: {file} is not the config of a model")
        return of_config(name, config)
    if "/" in name:
        raise ConfigError(f"model={shown(name)}: there is no {file}; give a folder with a config.json or one of "
                          f"{', '.join(table)}")  # fmt: skip
    one_of(name, list(table), "model")
    raise AssertionError(name)


def of_config(name: str, config: Mapping[str, Any]) -> Dimensions:
    """From what a config.json says. Raises ConfigError."""
    model_type = config.get("model_type")
    one_of(model_type, list(FAMILIES), f"model={shown(name)}: model_type")
    family = FAMILIES[str(model_type)]
    width = "intermediate_size" if family.gated else "ffn_dim"
    needed = ("num_hidden_layers", "hidden_size", width, "num_attention_heads", "vocab_size")
    for key in needed:
        if type(config.get(key)) is not int or config[key] < 1:
            raise ConfigError(
                f"model={shown(name)}: {key}={config.get(key)}: its config.json must have a whole number >= 1"
            )
    layers, hidden, intermediate, heads, vocab = (config[key] for key in needed)
    return Dimensions(
        name=name, model_type=str(model_type), layers=layers, hidden=hidden, intermediate=intermediate, heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads, head_dim=config.get("head_dim") or hidden // heads,
        vocab=vocab, tied=bool(config.get("tie_word_embeddings", False)),
        longest=config.get("max_position_embeddings", 0) if family.positions else 0, family=family,
    )  # fmt: skip
