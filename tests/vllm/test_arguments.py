"""What a server of the run's own may be given beside what the run gives it: harmless names, each in full."""

from __future__ import annotations

import sys

import pytest

from align.refusals import ConfigError
from tests.config.test_conf import composed

OWN = ("sampling=vllm", f"sampling.vllm.python={sys.executable}")

# Classes and files by name, ports, other weights; the ways in which vLLM's parser takes a name that is not in full.
REFUSED = [
    "--scheduler-cls=evil.S", "--distributed-executor-backend=evil.E", "--worker-cls=evil.W", "--middleware=evil.M",
    "--logits-processors=evil.L", "--attention-backend=CUSTOM", "--tokenizer-mode=custom", "--trust-remote-code",
    "--compilation-config={}", "--speculative-config={}", "--kv-transfer-config={}", "--kv-events-config={}",
    "--hf-overrides={}", "--hf-overrides.auto_map.AutoConfig=evil", "--max-model-len.x=1", "-O.backend=evil", "-O3",
    "-sc", "-cc", "-tp=2", "-tp", "--", "-", "", "--max-model", "--max-model-le=512", "--enforce", "--hos=0.0.0.0",
    "--data-parallel-address=0.0.0.0", "--data-parallel-rpc-port=1", "--master-addr=0.0.0.0", "--uds=x", "--grpc",
    "--config=x.yaml", "--load-format=pt", "--download-dir=x", "--log-config-file=x", "--hf_token=t",
    "--lora-dtype=auto", "__max-model-len=512", "--quantization=fp8", "--kv-cache-dtype=fp8", "--tokenizer=x", "model",
]  # fmt: skip


@pytest.mark.parametrize("argument", REFUSED)
def test_an_argument_that_is_not_known_to_be_harmless_is_refused(argument):
    with pytest.raises(ConfigError, match=r"^sampling\.vllm\.arguments=.*--max-model-len .*docs/vllm\.md"):
        composed(*OWN, f"sampling.vllm.arguments=['{argument}']")


def test_memory_and_speed_of_its_own_server_are_the_users():
    given = ["--max-model-len=512", "--gpu_memory_utilization", "0.5", "--enforce-eager", "--kv-cache-memory-bytes=8G"]
    taken = composed(*OWN, f"sampling.vllm.arguments=[{','.join(repr(argument) for argument in given)}]")
    assert taken.sampling.vllm.arguments == given
