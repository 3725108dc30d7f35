"""`calc=NAME`: each function's parameters are the keys that it takes, with their types and defaults."""

from __future__ import annotations

import math
from collections.abc import Callable

from align.maths.best_of_n import kl_bound, weights
from align.memory import costs, kept, odds, states
from align.memory.dimensions import load
from align.memory.kept import Training
from align.memory.place import bytes_of
from align.memory.sheets import Sheet, gb
from align.refusals import finite, need, positive

Numbers = tuple[float, ...]


def zero(model: str | None = None, params: float | None = None, gpus: int = 8) -> Sheet:
    P, name = _parameters(model, params)
    positive(gpus, "gpus")
    names = ("data parallel", "ZeRO-1: optimizer split", "ZeRO-2: and gradients", "ZeRO-3: and weights")
    formulas = ("16 P", "4 P + 12 P / N", "2 P + 14 P / N", "16 P / N")
    rows = tuple(
        (names[stage], formulas[stage], gb(states.zero(P, gpus, stage)), gb(states.communication(P, stage)))
        for stage in states.STAGES
    )
    return Sheet(f"Model states on each of {gpus} GPUs, {name}, full fine-tuning",
                 ("split", "bytes", "GB each", "10^9 elements sent a step"), rows,
                 ("Mixed-precision Adam: 2 bytes of weights, 2 of gradients, 12 of float32 copy and moments "
                  "(arXiv:1910.02054). Activations come on top.",))  # fmt: skip


def copies(model: str | None = None, params: float | None = None) -> Sheet:
    P, name = _parameters(model, params)
    rows = tuple((m.names, m.says, m.bytes_each, gb(m.bytes_each * P), m.lora) for m in states.METHODS)
    return Sheet(f"Models that full fine-tuning keeps, {name}",
                 ("algo", "trained; frozen", "bytes a parameter", "GB", "here, with LoRA"), rows,
                 ("16 bytes for each trained parameter, 2 for each frozen one. Reward model and critic have the "
                  "policy's size; caches and activations come on top.",))  # fmt: skip


def lora(model: str = "smollm2-135m", rank: int = 16, targets: tuple[str, ...] = ("all-linear",)) -> Sheet:
    shape = load(model)
    positive(rank, "rank")
    chosen = "all-linear" if targets == ("all-linear",) else targets
    P, R = shape.parameters, shape.adapter(rank, chosen)
    rows = (
        ("base, frozen", f"{P:,}", gb(states.FROZEN * P)),
        ("adapter, trained", f"{R:,}", gb(states.TRAINED * R)),
        ("both", f"{P + R:,}", gb(states.lora_states(P, R))),
        ("full fine-tuning", f"{P:,}", gb(states.TRAINED * P)),
    )
    says = f"The adapter has {100 * R / P:.2f} % of the model's parameters: r (in + out) for each adapted layer."
    return Sheet(f"LoRA of rank {rank} on {', '.join(targets)}, {model}", ("what", "parameters", "GB of states"), rows,
                 (says, "2 bytes for each frozen parameter, 16 for each trained one; adapters here too: float32 "
                        "weights, gradients and moments."))  # fmt: skip


def kv(
    model: str = "llama2-7b", dtype: str = "bfloat16", length: int = 4096, batch: int = 1, gb_gpu: float = 80.0
) -> Sheet:
    shape, number = load(model), bytes_of(dtype)
    positive(length, "length")
    positive(batch, "batch")
    finite(gb_gpu, "gb_gpu", 0, open_low=True)
    weights = shape.parameters * number
    kinds = {"as it is": shape.kv_heads, "each query head its own (MHA)": shape.heads, "one for all (MQA)": 1}
    rows = []
    for name, heads in kinds.items():
        token = shape.cache(number, heads)
        rows.append((name, heads, f"{token:,}", gb(token * length * batch),
                     costs.most_sequences(gb_gpu * 1e9, weights, token, length)))  # fmt: skip
    return Sheet(f"Keys and values of {batch} x {length} tokens, {model}, {dtype}",
                 ("heads of keys and values", "number", "bytes a token", "GB", f"sequences in {gb_gpu:g} GB"),
                 tuple(rows),
                 (f"2 x layers x heads x head size x bytes. The weights take {gb(weights)} GB.",))  # fmt: skip


def activations(model: str = "smollm2-135m", batch: int = 8, length: int = 512, rank: int = 16) -> Sheet:
    shape = load(model)
    for key, value in (("batch", batch), ("length", length)):
        positive(value, key)
    need(rank >= 0, "rank", rank, "must be >= 0; 0 is full fine-tuning")
    rows = [
        ("s b h L (34 + 5 a s / h)", gb(costs.activations(shape, batch, length, flash=False))),
        ("... attention keeps no scores", gb(costs.activations(shape, batch, length, flash=True))),
        ("all logits, float32, once", gb(costs.logits(shape, batch, length))),
    ]
    notes = ["The formula is of a GPT block (arXiv:2205.05198); log-softmax and gradient make the logits 2 to 3 times."]
    if shape.model_type in kept.PACKED:
        how = Training(2, rank)
        ours = batch * length * (kept.token(shape, how) + kept.predicted(shape, how))
        rows.append((f"here, rank {rank}" if rank else "here, all weights", gb(ours)))
        rows.append((f"here, logits of {kept.CHUNK} positions", gb(kept.head(shape, 2))))
    return Sheet(f"Activations of {batch} x {length} tokens, {model}, bfloat16", ("what is kept", "GB"), tuple(rows),
                 tuple(notes))  # fmt: skip


def flops(model: str | None = None, params: float | None = None, tokens: float = 1e6) -> Sheet:
    P, name = _parameters(model, params)
    finite(tokens, "tokens", 0, open_low=True)
    rows = tuple((what, f"{times} P", f"{times * P:.3g}", f"{times * P * tokens:.3g}")
                 for what, times in costs.OPERATIONS.items())  # fmt: skip
    return Sheet(f"Operations, {name}", ("what", "a token", "a token", f"{tokens:,.0f} tokens"), rows,
                 ("Attention adds 4 x layers x width for each position that a query sees.",))  # fmt: skip


def grpo_signal(p: Numbers = (0.01, 0.05, 0.1, 0.2, 0.5, 0.8, 0.95), group: tuple[int, ...] = (4, 8, 16, 64)) -> Sheet:
    for value in p:
        finite(value, "p", 0, 1)
    for size in group:
        need(size >= 2, "group", size, "must be >= 2: a group of one has nothing to compare with")
    rows = tuple((f"{value:g}", *(f"{100 * odds.silent_groups(value, size):.1f} %" for size in group)) for value in p)
    return Sheet("Groups without a signal: all answers right, or all wrong",
                 ("success rate", *(f"G = {size}" for size in group)), rows,
                 ("p^G + (1 - p)^G: their advantages are 0 (DAPO's dynamic sampling replaces them).",))  # fmt: skip


def gae(
    gamma: float = 1.0, lam: Numbers = (0.0, 0.9, 0.95, 0.99, 1.0), length: tuple[int, ...] = (10, 64, 128, 1024)
) -> Sheet:
    finite(gamma, "gamma", 0, 1)
    for value in lam:
        finite(value, "lam", 0, 1)
    for tokens in length:
        positive(tokens, "length")
    rows = tuple((f"{value:g}", *(f"{odds.credit(gamma, value, tokens):.3g}" for tokens in length)) for value in lam)
    return Sheet(f"Weight of the last reward in the first token's advantage, gamma = {gamma:g}",
                 ("lambda", *(f"T = {tokens}" for tokens in length)), rows,
                 ("(gamma lambda)^(T - 1) (arXiv:1506.02438): the rest must come through the critic.",))  # fmt: skip


def bon(n: tuple[int, ...] = (1, 2, 4, 16, 64, 1000), scores: Numbers = ()) -> Sheet:
    for value in n:
        positive(value, "n")
        need(not scores or value <= len(scores), "n", value, f"there are {len(scores)} scores; n can be no more")
    rows = [(value, f"{kl_bound(value):.3f}") for value in n]
    notes = ["KL = log n - (n - 1) / n nats a sequence, an upper bound (arXiv:2401.01879)."]
    if not scores:
        return Sheet("Best of n", ("n", "KL"), tuple(rows), tuple(notes))
    found = tuple((*row, f"{_expected(scores, row[0]):.4g}") for row in rows)
    notes.append("Expected gold: sum of C(i - 1, n - 1) / C(N, n) gold_i, gold in the proxy's order, lowest first. "
                 "Noisy above n = N / 4.")  # fmt: skip
    return Sheet(f"Best of n, from {len(scores)} samples", ("n", "KL", "gold"), found, tuple(notes))


def _expected(scores: Numbers, n: int) -> float:
    return math.fsum(w * score for w, score in zip(weights(n, len(scores)), scores, strict=True))


def power(
    sd: float = 25.0, prompts: tuple[int, ...] = (50, 100, 200, 400), samples: tuple[int, ...] = (1, 2, 4),
    effect: float | None = None,
) -> Sheet:  # fmt: skip
    finite(sd, "sd", 0, open_low=True)
    for key, values in (("prompts", prompts), ("samples", samples)):
        for value in values:
            positive(value, key)
    rows = []
    for count in prompts:
        for each in samples:
            error = odds.standard_error(sd, count, each)
            cells = (count, each, f"{error:.3g}", f"{odds.RULE * error:.3g}", f"{odds.detectable(error):.3g}")
            rows.append(cells if effect is None else (*cells, f"{100 * odds.power(effect, error):.0f} %"))
    columns = ("prompts", "samples of each", "standard error", f"least to claim ({odds.RULE} SE)", "found in 80 %")
    return Sheet(f"Difference of two arms' means, SD {sd:g} of one answer",
                 columns if effect is None else (*columns, f"finds {effect:g}"), tuple(rows),
                 ("SE = sd sqrt(2 / (prompts x samples)), answers independent; two-sided z test at 5 %. Lengths have "
                  "SD 19 to 25 tokens within a prompt, gold in its own SD has 1.",))  # fmt: skip


def bt(
    sharpness: float = 1.5, length_bias: Numbers = (0.0, 0.25, 0.5, 1.0, 1.5), flips: Numbers = (0.0, 0.1, 0.25, 0.4)
) -> Sheet:
    finite(sharpness, "sharpness", 0)
    for value in flips:
        finite(value, "flips", 0, 0.5)
    for value in length_bias:
        finite(value, "length_bias", -100)
    rows = []
    for bias in length_bias:
        for share in flips:
            found = odds.labels(sharpness, bias, share)
            rows.append((f"{bias:g}", f"{share:g}", *(f"{100 * value:.1f} %" for value in found)))
    return Sheet(f"Bradley-Terry labels of sharpness {sharpness:g}",
                 ("length bias", "flips", "agree with gold", "two raters agree", "longer one chosen"), tuple(rows),
                 ("P = (1 - 2 eps) sigma(kappa dG + b dn) + eps, gold and length independent and normal "
                  "(data.labels.sharpness, length_bias, flips).",))  # fmt: skip


CALCS: dict[str, Callable[..., Sheet]] = {
    "zero": zero, "copies": copies, "lora": lora, "kv": kv, "activations": activations, "flops": flops,
    "grpo_signal": grpo_signal, "gae": gae, "bon": bon, "power": power, "bt": bt,
}  # fmt: skip


def _parameters(model: str | None, params: float | None) -> tuple[float, str]:
    need(model is None or params is None, "params", params, f"model={model} has its own number; give one of the two")
    if params is not None:
        finite(params, "params", 1)
        return params, f"{params:.4g} parameters"
    shape = load(model or "qwen7b")
    return shape.parameters, f"{shape.name} ({shape.parameters:,} parameters)"
