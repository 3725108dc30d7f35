"""Best of n: nothing is trained, of n answers the best by the reward is taken. The baseline of every trained arm.

Step s takes the best of n = 2^s, so a run's rows are the curve of reward against KL. Its KL to the policy it samples
from is at most log n - (n - 1) / n nats per sequence, with equality when no two answers are the same or have the same
reward (arXiv:2401.01879, theorem 1: an upper bound in general).
"""

from __future__ import annotations

import torch

from align.maths.best_of_n import kl_bound
from align.probe import Measured, Probe
from align.records import Completions
from align.rollouts import joined, taken
from align.sampling import sample
from align.seeds import derive


class BestOfN:
    """Candidates of each probed answer: the answer every other arm has at step 0, then more from the same policy."""

    def __init__(self, ruler: Probe, doublings: int):
        self.ruler, self.most = ruler, 2**doublings
        self.candidates: Completions | None = None
        self.scores = torch.zeros(0)

    def measure(self, step: int) -> Measured:
        """The probe of the best of 2^step answers. Step 0 is everybody's."""
        metrics, samples = self.ruler.measure(0) if step == 0 else self._best(step)
        return metrics | {"kl/bound": kl_bound(2**step)}, samples

    def _best(self, step: int) -> Measured:
        if self.candidates is None:
            self.candidates = self._sampled()
            self.scores = self.ruler.rewards(self.candidates)[0]
        rows = torch.arange(len(self.scores)).view(-1, self.most)[:, : 2**step]
        scores = self.scores[rows].nan_to_num(nan=-torch.inf, neginf=-torch.inf)  # argmax would choose NaN
        best = rows.gather(1, scores.argmax(-1, keepdim=True)).squeeze(-1).tolist()
        return self.ruler.judged(step, taken(self.candidates, best))

    def _sampled(self) -> Completions:
        """[prompts x samples x 2^steps], the answers of the probe first in each."""
        ruler, others = self.ruler, self.most - 1
        first = ruler.answers()
        more = sample(ruler.policy, ruler.prompts, ruler.cfg.samples * others, ruler.neutral,
                      derive(ruler.seed, "best_of_n"))  # fmt: skip
        return joined([
            part for i in range(len(first.texts))
            for part in (taken(first, [i]), taken(more, range(i * others, (i + 1) * others)))
        ])  # fmt: skip
