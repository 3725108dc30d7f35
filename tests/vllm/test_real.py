"""The same against vLLM itself: `ALIGN_VLLM_PYTHON=.vllm/bin/python pytest tests/vllm/test_real.py` (minutes).

What the fake server promises of the protocol is seen here of the real one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter

import pytest
import torch

from align.checkpoints import load_trainable, trainable
from align.forward import Scorer, batch_of, score
from align.maths.masked import masked_mean
from align.models import load_policy
from align.records import Prompt
from align.runs import read
from align.vllm_client import Server, ServerError
from align.vllm_rollouts import ServedSampler
from align.vllm_served import arguments
from align.vllm_server import OwnServer
from tests.config.test_conf import composed
from tests.end_to_end.helpers import ROOT
from tests.invariants.families import PROMPTS
from tests.vllm.rollouts import move
from tests.vllm.test_runs import servers_of, wait_for

PYTHON = os.environ.get("ALIGN_VLLM_PYTHON")
pytestmark = [pytest.mark.slow, pytest.mark.skipif(PYTHON is None, reason="ALIGN_VLLM_PYTHON is not set")]
SETTINGS = ("data=arithmetic", "sampling=vllm", "sampling.max_new_tokens=16", f"sampling.vllm.python={PYTHON}",
            "device=cpu", "sampling.vllm.arguments=['--max-model-len=512']", "tracker=none")  # fmt: skip
QUESTION = PROMPTS[2]


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """A server, and a policy whose adapter has moved."""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    root, e = tmp_path_factory.mktemp("served"), composed(*SETTINGS)
    policy = load_policy(e.model, torch.device("cpu"), torch.bfloat16, 0)
    move(policy, 0.01)
    own = OwnServer(PYTHON, arguments(e, policy, root), root / "vllm.log")
    own.start()
    sampler = ServedSampler(e, policy, [own], root / "sent", QUESTION)
    yield sampler
    sampler.close()
    own.stop()


def logprobs(policy, completions):
    batch = batch_of(completions, policy.tokenizer.pad_token_id, policy.device)
    with torch.no_grad():
        return score(Scorer(policy.model, 1.0), batch)[0]


def gap(sampler, completions):
    return float(masked_mean((logprobs(sampler.policy, completions) - completions.logprobs).abs(), completions.mask))


def under(policy, weights, completions):
    """Log-probabilities of the tokens with these weights, [tokens] float64."""
    load_trainable(policy.model, weights)
    return logprobs(policy, completions)[completions.mask].double()


def test_the_servers_logprobs_are_the_trainers_before_and_after_an_update(served):
    served.begin()
    before = served(served.policy, PROMPTS, 4, served.cfg, 0)
    assert gap(served, before) < 0.1
    move(served.policy, 0.02, seed=5)
    after = served(served.policy, PROMPTS, 4, served.cfg, 0)
    assert gap(served, after) < 0.1 < gap(served, before), "the second adapter is another, and was taken up"
    assert [name for name in served.servers[0].models(10) if name != "base"] == [served.adapter.name]
    assert served.told() == []


def test_a_change_as_small_as_one_update_is_served(served):
    """Rounding hides it in any one token. Over many, s - p_before regressed on p_after - p_before has the slope 1 when
    the server has the weights of after, and 0 when it still has those of before. p in float32: rounding of its own
    would flatten the slope."""
    exact = load_policy(composed(*SETTINGS).model, torch.device("cpu"), torch.float32, 0)
    before = {name: weights.clone() for name, weights in trainable(served.policy.model).items()}
    served.begin()
    move(served.policy, 2e-3, seed=7)
    made = served(served.policy, PROMPTS, 32, served.cfg, 5)
    p_before, p_after = (under(exact, weights, made) for weights in (before, trainable(served.policy.model)))
    load_trainable(served.policy.model, before)
    change, seen = p_after - p_before, made.logprobs[made.mask].double() - p_before
    slope = float((change * seen).sum() / change.square().sum())
    error = float((seen - slope * change).std() / change.square().sum().sqrt())
    print(f"\nslope {slope:.3f}, standard error {error:.3f}; change {float(change.abs().mean()):.4f} nats per token, "
          f"rounding {float((seen - change).abs().mean()):.4f}, {len(change)} tokens")  # fmt: skip
    assert float(change.abs().mean()) < 0.1 and error < 0.1
    assert abs(slope - 1) < 3 * error


def test_a_completion_ends_with_its_stop_token_or_at_the_limit(served):
    made = served(served.policy, PROMPTS, 8, served.cfg, 3)
    common = int(made.ids[made.mask].mode().values)  # made to end completions
    served.policy.stop_ids = (*served.policy.stop_ids, common)
    try:
        ended = served(served.policy, PROMPTS, 8, served.cfg, 3)
    finally:
        served.policy.stop_ids = served.policy.stop_ids[:-1]
    assert ended.finished.any()
    for row, mask, finished in zip(ended.ids, ended.mask, ended.finished, strict=True):
        ids = row[mask].tolist()
        assert finished == (ids[-1] in (*served.policy.stop_ids, common))
        assert common not in ids[:-1] and (finished or len(ids) == 16)


def test_prompts_of_more_tokens_than_a_step_takes_are_answered(served):
    """On a CPU vLLM's engine ended at the first prompt that it read in two parts."""
    words = {"role": "user", "content": "Why is the sky blue, and why are clouds white? " * 20}
    long = [Prompt(f"long/{n}", ({**words, "content": f"{n}. {words['content']}"},), "long") for n in range(10)]
    served.begin()
    made = served(served.policy, long, 1, served.cfg, 4)
    assert len(made.prompts) == 10 and sum(map(len, made.prompt_ids)) > 2048
    assert gap(served, made) < 0.1 and not [said for said in served.told() if "ended" in said or " with 500" in said]


def test_seeds_make_samples_of_a_prompt_differ(served):
    made = served(served.policy, PROMPTS[:1], 8, served.cfg, 1)
    assert len({tuple(row) for row in made.ids.tolist()}) > 4


def test_a_server_says_what_the_fake_says_of_adapters_it_has_and_has_not(served):
    server: Server = served.servers[0]
    served.begin()
    name = served.adapter.name
    with pytest.raises(ServerError, match="400: .*already been loaded"):
        server.load(name, str(served.adapter), 60)
    with pytest.raises(ServerError, match="404: .*No adapter found"):
        server.load("other", "/no/such/folder", 60)
    with pytest.raises(ServerError, match="404: .*does not exist"):
        server.complete("other", served.canary, 1.0, served.policy.stop_ids, 60)
    with pytest.raises(ServerError, match="401"):
        Server(server.url, "guess").models(10)


def test_two_servers_share_a_rollout_and_one_that_is_killed_in_it_loses_nothing(served, tmp_path):
    experiment, first = composed(*SETTINGS), served.servers[0]
    second = OwnServer(PYTHON, arguments(experiment, served.policy, tmp_path), tmp_path / "vllm.log")
    second.start()
    sampler = ServedSampler(experiment, served.policy, [first, second], tmp_path / "sent", QUESTION)
    completed, answers = sampler.completed, Counter[str]()

    def counted(server, *request):
        answer = completed(server, *request)
        answers[server.url] += 1
        if server is second and answers[server.url] == 3:
            os.killpg(second.process.pid, signal.SIGKILL)
        return answer

    try:
        sampler.begin()
        sampler.completed = counted
        made = sampler(sampler.policy, PROMPTS, 12, sampler.cfg, 9)
        (said,) = sampler.told()
        assert second.url in said and answers[second.url] >= 3
        assert answers.total() == len(made.prompts) == 12 * len(PROMPTS), "each was answered once"
        assert [prompt.id for prompt in made.prompts] == [prompt.id for prompt in PROMPTS for _ in range(12)]
        assert gap(sampler, made) < 0.1
        before = answers[second.url]
        again = sampler(sampler.policy, PROMPTS, 12, sampler.cfg, 10)
        assert "started again" in sampler.told()[0] and answers[second.url] > before + 3 and gap(sampler, again) < 0.1
    finally:
        sampler.close()
        second.stop()


def test_a_run_whose_server_is_killed_goes_on_with_another_and_ends_it(tmp_path):
    command = [sys.executable, "-m", "align.run", *SETTINGS, "algo=grpo", "steps=3", "probe.prompts=2", "probe.pairs=0",
               "probe.samples=1", f"run_dir={tmp_path}/run"]  # fmt: skip
    child = subprocess.Popen(command, cwd=ROOT, text=True, stderr=subprocess.PIPE)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.is_file() and '"train"' in metrics.read_text(), 900)
    (server,) = servers_of(child.pid)
    os.killpg(server, signal.SIGKILL)
    _, said = child.communicate(timeout=900)
    assert child.returncode == 0, said
    record = read(tmp_path / "run")
    assert [row["completions"] for row in record.phase("train")] == [32, 64, 96]
    assert all(row["sampler/gap"] < 0.1 for row in record.phase("train"))
    assert "started again" in (tmp_path / "run" / "events.jsonl").read_text()
