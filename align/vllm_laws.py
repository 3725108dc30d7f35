"""The laws of completions that vLLM's servers sample, and of weights against a sampler that is not the trainer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from align.on_policy_laws import MUTATING_INITS, RATIO_LEVELS
from align.refusals import finite, need, one_of, reachable

if TYPE_CHECKING:
    from align.schema import Experiment, Importance, Vllm

BOUNDS = ("truncated", "masked")
COLDEST = 0.01
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM makes room for (its LoRAConfig)
# What the run gives its server itself; a key in the config would be written into the run directory.
OURS = ("--model", "--served-model-name", "--host", "--port", "--dtype", "--enable-lora", "--max-lora-rank",
        "--max-loras", "--max-cpu-loras", "--logprobs-mode", "--generation-config", "--max-num-seqs",
        "--api-key")  # fmt: skip
# What a user may add, of vLLM 0.32: memory, speed, the log. Nothing that listens, imports or reads a file; and
# nothing that samples other numbers on purpose, as arguments are no part of what an experiment is.
VALUED = ("--max-model-len", "--gpu-memory-utilization", "--kv-cache-memory-bytes", "--num-gpu-blocks-override",
          "--block-size", "--cpu-offload-gb", "--max-num-batched-tokens", "--max-cudagraph-capture-size",
          "--tensor-parallel-size", "--uvicorn-log-level")  # fmt: skip
SWITCHES = ("--enforce-eager", "--no-enforce-eager", "--enable-prefix-caching", "--no-enable-prefix-caching",
            "--enable-chunked-prefill", "--no-enable-chunked-prefill", "--async-scheduling", "--no-async-scheduling",
            "--disable-cascade-attn", "--disable-custom-all-reduce", "--disable-log-stats",
            "--disable-uvicorn-access-log")  # fmt: skip
PLAIN = re.compile(r"[A-Za-z0-9.]+")  # a number or a word: no path, no JSON, no further argument


def enforce(e: Experiment) -> None:
    for key in ("vllm", "importance"):
        value = getattr(e.sampling, key)
        need(
            value is None or e.algo.kind == "on_policy",
            f"sampling.{key}",
            "given",
            f"has no effect with algo={e.algo.name}, which samples nothing to train on; use sampling.{key}=none",
        )
    if e.sampling.importance is not None:
        _importance(e, e.sampling.importance)
    if e.sampling.vllm is not None:
        _servable(e)
        _servers(e.sampling.vllm)


def _importance(e: Experiment, importance: Importance) -> None:
    one_of(importance.level, RATIO_LEVELS, "sampling.importance.level")
    one_of(importance.bound, BOUNDS, "sampling.importance.bound")
    finite(importance.cap, "sampling.importance.cap", 1, open_low=True)
    need(
        importance.level != "token" or e.algo.ratio.level == "token",
        "sampling.importance.level",
        importance.level,
        f"algo.ratio.level={e.algo.ratio.level} has one advantage per sequence, and so one weight; use sequence_mean "
        "or sequence_sum",
    )


def _servable(e: Experiment) -> None:
    """What a server with the base and a plain adapter samples as the trainer would."""
    lora, key = e.model.lora, "sampling.vllm"
    need(
        lora is not None,
        key,
        "given",
        "only adapters are sent to the servers and model.lora=none trains the whole model; keep model.lora, or "
        "sampling.vllm=none",
    )
    assert lora is not None
    need(e.model.quant is None, key, "given", f"the servers have the base in {e.dtype}, not in "
         f"model.quant={e.model.quant}; leave one out")  # fmt: skip
    need(not lora.dora, key, "given", "vLLM serves no model.lora.dora; turn it off")
    need(lora.init not in MUTATING_INITS, key, "given", f"model.lora.init={lora.init} rewrites the base, which "
         "the servers have as it was; use model.lora.init=default")  # fmt: skip
    need(e.sampling.temperature >= COLDEST, "sampling.temperature", e.sampling.temperature, f"vLLM takes {COLDEST} for "
         "whatever is below; use that, or sampling=default")  # fmt: skip
    need(lora.rank <= RANKS[-1], "model.lora.rank", lora.rank, f"vLLM serves ranks up to {RANKS[-1]}")
    for name in ("top_k", "top_p", "min_p"):
        value = getattr(e.sampling, name)
        need(value is None, f"sampling.{name}", value, "the servers' logprobs are compared with the trainer's, which "
             "knows no cut: wrong weights could not be told from it; use null with sampling.vllm")  # fmt: skip


def key_of(said: str | None) -> str | None:
    """VLLM_API_KEY as a header can have it, without the line end of the file it came from. Raises ConfigError."""
    key = (said or "").strip()
    need(key.isascii() and (key.isprintable() or not key), "VLLM_API_KEY", "(not shown)",
         "has characters that no header can have; set it to the key alone")  # fmt: skip
    return key or None


def _servers(v: Vllm) -> None:
    for url in v.urls:
        _url(url)
    need(len(set(v.urls)) == len(v.urls), "sampling.vllm.urls", v.urls, "names a server twice")
    if v.urls:
        for key, value, nothing in (("python", v.python, None), ("arguments", v.arguments, [])):
            need(value == nothing, f"sampling.vllm.{key}", value, "is for a server of the run's own and has no effect "
                 f"beside sampling.vllm.urls; use {'null' if nothing is None else '[]'}")  # fmt: skip
    else:
        need(v.python is not None, "sampling.vllm.python", v.python, "name the python of an environment with vLLM "
             "(docs/vllm.md), or servers that run: sampling.vllm.urls=[http://HOST:PORT]")  # fmt: skip
        reachable("sampling.vllm.python", v.python)
        need(Path(v.python or "").expanduser().is_file(), "sampling.vllm.python", v.python, "there is no such file")
    _arguments(v.arguments)
    finite(v.seconds, "sampling.vllm.seconds", 0, open_low=True)
    need(0 <= v.retries <= 100, "sampling.vllm.retries", v.retries, "must be between 0 and 100")
    finite(v.gap, "sampling.vllm.gap", 0, open_low=True)


def _arguments(given: Sequence[str]) -> None:
    """Each name in full, so that it means one thing to vLLM too: it takes abbreviations, `-x` and `--name.key`. A value
    that belongs to no name would be the model."""
    key, rest = "sampling.vllm.arguments", list(given)
    while rest:
        name, equals, value = rest.pop(0).partition("=")
        known = name[:2] + name[2:].replace("_", "-")
        need(known not in OURS, key, known, "the run gives this itself; leave it out")
        need(known in VALUED + SWITCHES, key, name, "is not among the names that the run's own server may be given, in "
             f"full: {' '.join(VALUED + SWITCHES)} (docs/vllm.md); leave it out, or name a server that you started "
             "with it: sampling.vllm.urls=[http://HOST:PORT]")  # fmt: skip
        if known in SWITCHES:
            need(not equals, key, f"{name}={value}", f"takes no value; use {known}")
            continue
        if not equals:
            value = rest.pop(0) if rest else ""
        need(bool(PLAIN.fullmatch(value)), key, f"{name}={value}", "must be a number or a word")


def _url(url: str) -> None:
    key, parts, host = "sampling.vllm.urls", None, None
    need("@" not in url, key, "(not shown)", "has a password in it, which would be written into the run directory; set "
         "VLLM_API_KEY instead")  # fmt: skip
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:  # a port that is no number, half an IPv6 address
        host = None
    need(parts is not None and parts.scheme in ("http", "https") and bool(host), key, url,
         "must look like http://HOST:PORT")  # fmt: skip
    assert parts is not None
    need(parts.path in ("", "/") and not parts.query and not parts.fragment, key, url,
         f"must end after the port: {parts.scheme}://{parts.netloc}")  # fmt: skip
