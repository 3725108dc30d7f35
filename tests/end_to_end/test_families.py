"""Models that are given by their path alone: a folder with a config, safetensors and a tokenizer."""

from __future__ import annotations

import pytest

from tests.end_to_end.helpers import no_warmup, run
from tests.invariants.families import CONFIGS, TOKENIZER, model


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize("algo", ["grpo", "dpo", "reward"])
def test_a_folder_is_enough(tmp_path, family, algo):
    folder = tmp_path / family
    model(family).save_pretrained(folder)
    TOKENIZER.save_pretrained(folder)
    done = run(tmp_path, *no_warmup(algo), f"model.path={folder}", "steps=1", "sampling.max_new_tokens=4")
    assert done.state == "finished"
    first = done.phase("probe")[0]
    assert [first[key] for key in ("kl/k1", "kl/k3", "kl/exact") if key in first] == [0] * (
        0 if algo == "reward" else 3
    )
    assert (done.path / "adapter" / "adapter_model.safetensors").is_file()
