"""Why half of LoRA is zero, and which half: what moves at the first step, under each init that the product offers.

y = W x + s B A x, A [r, in], B [out, r], G = dL/d(whole weight). Then dL/dA = s B' G and dL/dB = s G A', so

    default       B = 0   dL/dA = 0, dL/dB != 0; the start is the base; a step of descent at rate e moves the weight by
                          s B1 A0 = -e s^2 G A0' A0: within the inputs that A0 happens to read
    b_random      A = 0   the mirror: dL/dB = 0, and -e s^2 B0 B0' G: within the outputs that B0 happens to write
                          For variance v and fourth moment 9/5 v^2, E (A'A)^2 = r v^2 (in + r - 1/5) I and
                          E (BB')^2 = r v^2 (out + r - 1/5) I; v is 1/(3 in) and 1/(3 r), so at the same rate its
                          first step is larger by in/r sqrt((out + r - 1/5) / (in + r - 1/5)): why Init[A] stands
                          larger rates than Init[B]
    zeros         both 0  both gradients 0, for ever: a saddle
    both_random           both move, but the start is W + s B0 A0: with entries uniform within 1/sqrt(fan-in) (variance
                          1/(3 fan-in)) each output is off by s sqrt(r / (3r) / (3 in)) |x| = s |x| / (3 sqrt(in)), rms
    pissa         s B0 A0 = the r largest singular values of W, taken off the frozen part: the start is the base,
                          and both move (arXiv:2404.02948)
"""

from __future__ import annotations

from math import sqrt
from typing import TYPE_CHECKING, Any

from align.exact import Check, Exact, Figure, Panel, relative

if TYPE_CHECKING:
    from torch import Tensor

    from align.schema import Model

Row = dict[str, Any]  # a row of a table
HAND = "closed form, derived in the module; arXiv:2106.09685, section 4.1, and 2406.08447"
INITS = ("default", "b_random", "zeros", "both_random", "gaussian", "pissa", "olora")
SAME_START = ("default", "b_random", "zeros", "gaussian")  # to the last bit; pissa and olora to rounding
RATE, STEPS = 0.05, 3
INPUTS, OUTPUTS, RANK, SCALE, DRAWS = 96, 64, 8, 2.0, 100

NAMES = {"default": "default: B = 0", "gaussian": "gaussian: B = 0", "b_random": "b_random: A = 0",
         "zeros": "zeros: both 0", "both_random": "both_random", "pissa": "pissa", "olora": "olora"}  # fmt: skip
FIGURE = Figure(
    "A LoRA adapter adds B·A to a weight. The gradients of its two halves before the first step: where one half is "
    "zero the other one has no gradient, and where both are zero nothing can ever move. And how far the start is from "
    "the model that was to be tuned: with both halves random it is another model. Tiny model, fixed text.",
    (
        Panel("Gradients at the start: which half moves first", "tiny model", "init",
              {"|dL/dA|": "of A", "|dL/dB|": "of B"}, ("", "norm of the gradient"), names=NAMES),
        Panel("Distance of the start from the base model", "tiny model", "init", {"KL to the base": ""},
              ("", "KL, nats per token"), names=NAMES),
    ),
)  # fmt: skip


def compute() -> Exact:
    base = _base()
    models = [_model(init, base) for init in INITS]
    layers = [_layer(init) for init in INITS]
    checks = [*_zeros(models), *_starts(models), *_first_steps(layers), *_drawn_checks()]
    pissa = next(row for row in layers if row["init"] == "pissa")
    checks.append(Check("pissa: its adapter is the best approximation of the weight of its rank", 0,
                        pissa["distance to the truncated SVD"], 1e-4, "arXiv:2404.02948, eq. 2-4"))  # fmt: skip
    return Exact(tuple(checks), {"tiny model": models, "one layer": layers}, FIGURE)


def _settings(init: str) -> Model:
    from hydra import compose, initialize_config_dir

    from align.config import check
    from align.run import CONF

    overrides = ["model=tiny", "algo=sft", "reward=gold", f"model.lora.init={init}", "dtype=float32"]
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return check(compose("run", overrides=overrides)).model


def _policy(init: str) -> Any:
    import torch

    from align.models import load_policy

    return load_policy(_settings(init), torch.device("cpu"), torch.float32, seed=0)


def _matrices(model: Any) -> dict[str, list[Any]]:
    return {
        letter: [p for name, p in model.named_parameters() if f"lora_{letter}." in name and p.requires_grad]
        for letter in "AB"
    }


def _norm(tensors: list[Tensor]) -> float:
    return float(sum(float(t.double().square().sum()) for t in tensors)) ** 0.5


def _text() -> Tensor:
    """Every byte once, in four rows."""
    import torch

    return torch.arange(5, 261).view(4, 64)


def _base() -> Tensor:
    """Logits of the tiny model without an adapter."""
    import torch

    with torch.no_grad():
        return _policy("default").reference(input_ids=_text()).logits[:, :-1].flatten(0, 1)


def _model(init: str, base: Tensor) -> Row:
    """The tiny policy on fixed text: distance of its start from the base, gradients, and what a few steps moved."""
    import torch

    from align.maths import logprobs

    model, ids = _policy(init).model, _text()
    model.eval()
    matrices = _matrices(model)
    before = [p.detach().clone() for p in (*matrices["A"], *matrices["B"])]
    optimizer = torch.optim.SGD([*matrices["A"], *matrices["B"]], lr=RATE)
    losses, first = [], {}
    for step in range(STEPS + 1):
        logits = model(input_ids=ids).logits[:, :-1].flatten(0, 1)
        if step == 0:
            start = logits.detach()
        loss = -logprobs.token_logprobs(logits, ids[:, 1:].flatten())[0].mean()
        optimizer.zero_grad()
        loss.backward()
        losses.append(float(loss.detach()))
        first = first or {f"|dL/d{letter}|": _norm([p.grad for p in ps]) for letter, ps in matrices.items()}
        optimizer.step()
    moved = [p.detach() - b for p, b in zip((*matrices["A"], *matrices["B"]), before, strict=True)]
    return {
        "init": init, **first, "shift of the logits": float((start - base).abs().max()),
        "KL to the base": float(logprobs.exact_kl(start, base).mean()), "moved": _norm(moved),
        "loss": losses[0], f"loss after {STEPS} steps": losses[-1],
    }  # fmt: skip


def _zeros(models: list[Row]) -> list[Check]:
    """Which gradients are exactly 0 at the start, and that the others are not."""
    silent = {"default": "A", "gaussian": "A", "b_random": "B", "zeros": "AB"}
    checks = []
    for row in models:
        init = row["init"]
        for letter in "AB":
            is_zero = letter in silent.get(init, "")
            name = f"{init}: dL/d{letter} is {'zero' if is_zero else 'not zero'} at the start"
            checks.append(Check(name, 1, float((row[f"|dL/d{letter}|"] == 0) == is_zero), 0, HAND))
        stays = init == "zeros"
        checks.append(Check(f"{init}: {'nothing moves' if stays else 'something moves'} in {STEPS} steps", 1,
                            float((row["moved"] == 0) == stays), 0, HAND))  # fmt: skip
    return checks


def _starts(models: list[Row]) -> list[Check]:
    checks = []
    for row in models:
        init, shift = row["init"], row["shift of the logits"]
        if init == "both_random":
            checks.append(Check("both_random: the start is not the base", 1, float(shift > 1e-3), 0, HAND))
        else:
            tolerance = 0.0 if init in SAME_START else 1e-4
            checks.append(Check(f"{init}: the start is the base", 0, shift, tolerance, HAND))
    return checks


def adapted(init: str, seed: int = 0) -> Any:
    """One linear layer with an adapter of the product's, s = 2; its weight is drawn from its own seed."""
    import torch
    from peft import TaskType
    from torch import nn

    from align.models import add_adapter
    from align.schema import Lora

    lora = Lora(rank=RANK, alpha=SCALE * RANK, dropout=0.0, targets=["0"], init=init, rslora=False, dora=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        layer = nn.Sequential(nn.Linear(INPUTS, OUTPUTS, bias=False)).requires_grad_(False)
        torch.manual_seed(seed)
        return add_adapter(layer, lora, TaskType.FEATURE_EXTRACTION)


def _product(model: Any) -> Tensor:
    """s B A in float64."""
    (a,), (b,) = (list(map(lambda p: p.detach().double(), ps)) for ps in _matrices(model).values())
    return SCALE * b @ a


def _layer(init: str) -> Row:
    """A step of plain descent on L = sum(G * W): what it does to the whole weight, and what the closed form says."""
    import torch

    model = adapted(init)
    G = _gradient()
    (a,), (b,) = _matrices(model).values()
    A, B, before = a.detach().double(), b.detach().double(), _product(model)
    (
        model.get_base_model()(torch.eye(INPUTS)) * G.float().T
    ).sum().backward()  # rows of the identity: the layer's whole weight
    with torch.no_grad():
        for parameter in (a, b):
            parameter -= RATE * parameter.grad
    moved = _product(model) - before
    dA, dB = SCALE * B.T @ G, SCALE * G @ A.T
    by_hand = SCALE * ((B - RATE * dB) @ (A - RATE * dA) - B @ A)
    one_sided = {"default": -RATE * SCALE**2 * G @ A.T @ A, "b_random": -RATE * SCALE**2 * B @ B.T @ G}
    W = adapted("default").get_base_model()[0].base_layer.weight.double()
    U, S, V = torch.linalg.svd(W, full_matrices=False)
    truncated = (U[:, :RANK] * S[:RANK]) @ V[:RANK]
    return {
        "init": init, "|moved|": float(moved.norm()),
        "rank of the move": float(torch.linalg.matrix_rank(moved, rtol=1e-4)),
        "off by": float((moved - one_sided.get(init, by_hand)).norm() / moved.norm().clamp(min=1e-30)),
        "|start|": float(before.norm()), "distance to the truncated SVD": float((before - truncated).norm()),
    }  # fmt: skip


def _first_steps(layers: list[Row]) -> list[Check]:
    checks = [
        Check(f"{row['init']}: the first step moves the weight as derived, relative", 0, row["off by"], 1e-4, HAND)
        for row in layers
    ]
    ranks = {"default": RANK, "b_random": RANK, "zeros": 0}
    by_init = {row["init"]: row for row in layers}
    return checks + [
        Check(f"{init}: rank of the first step", rank, by_init[init]["rank of the move"], 0, HAND)
        for init, rank in ranks.items()
    ]


def _drawn_checks() -> list[Check]:
    """Means of squares over draws of the adapters: the shift of both_random, the first steps of the two halves."""
    G = _gradient()
    squares: dict[str, list[float]] = {"default": [], "b_random": [], "both_random": []}
    for seed in range(DRAWS):
        for init, found in squares.items():
            (A,), (B,) = (ps for ps in _matrices(adapted(init, seed)).values())
            a, b = A.detach().double(), B.detach().double()
            what = {"default": G @ a.T @ a, "b_random": b @ b.T @ G, "both_random": SCALE * b @ a}[init]
            found.append(float(what.square().sum()))
    rms = {init: sqrt(sum(found) / DRAWS) for init, found in squares.items()}
    faster = INPUTS / RANK * sqrt((OUTPUTS + RANK - 0.2) / (INPUTS + RANK - 0.2))
    return [
        relative(f"both_random: rms shift of an output per unit of input, {DRAWS} draws", SCALE / (3 * sqrt(INPUTS)),
                 rms["both_random"] / sqrt(INPUTS * OUTPUTS), 0.02, HAND),
        relative(f"b_random: its first step over that of the default at the same rate, rms of {DRAWS} draws", faster,
                 rms["b_random"] / rms["default"], 0.02, HAND),
    ]  # fmt: skip


def _gradient() -> Tensor:
    """G, of the loss with respect to the whole weight."""
    import torch

    return torch.randn(OUTPUTS, INPUTS, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
