"""The laws of completions that vLLM's servers sample, and of weights against a sampler that is not the trainer."""

from __future__ import annotations

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
# What would have it listen elsewhere, run code, unpickle, or have a key in the run directory. vLLM takes abbreviations.
UNSAFE = ("--trust-remote-code", "--load-format", "--hf-token", "--uds", "--middleware", "--config", "--tokenizer",
          "--lora-modules", "--hf-overrides", "--worker-cls", "--worker-extension-cls", "--logits-processors",
          "--tool-parser-plugin", "--reasoning-parser-plugin", "--io-processor-plugin", "--allowed-local-media-path",
          "--allowed-origins", "--root-path", "--hf-config-path", "--model-loader-extra-config")  # fmt: skip


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
    for argument in v.arguments:
        name = argument.partition("=")[0].replace("_", "-")
        if not name.startswith("--"):  # the value of the one before
            continue
        ours, unsafe = (any(one.startswith(name) for one in names) for names in (OURS, UNSAFE))
        need(not ours, "sampling.vllm.arguments", name, "the run gives this itself; leave it out")
        need(not unsafe, "sampling.vllm.arguments", name, "a server of the run's own listens on 127.0.0.1, runs no "
             "code, reads safetensors and is given no key in an argument; leave it out")  # fmt: skip
    finite(v.seconds, "sampling.vllm.seconds", 0, open_low=True)
    need(0 <= v.retries <= 100, "sampling.vllm.retries", v.retries, "must be between 0 and 100")
    finite(v.gap, "sampling.vllm.gap", 0, open_low=True)


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
