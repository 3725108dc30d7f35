"""What SECURITY.md promises, of the source and of what a run writes and reads."""

from __future__ import annotations

import ast
import json
import pickle
from pathlib import Path
from shutil import copytree

import pytest
import torch
from safetensors.torch import load_file

from align.embedded import ModelError, tiny_folder
from tests.architecture.test_imports import FILES, ROOT
from tests.end_to_end.helpers import execute, no_warmup

CALLS = [
    (file.relative_to(ROOT), call, ast.unparse(call.func))
    for file in [*FILES, *sorted((ROOT / "scripts").rglob("*.py"))]
    for call in ast.walk(ast.parse(file.read_text("utf-8")))
    if isinstance(call, ast.Call)
]
FORBIDDEN = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "pickle.load", "pickle.loads",
             "yaml.load", "yaml.unsafe_load", "joblib.load", "marshal.loads"}  # fmt: skip


def given(call: ast.Call, name: str) -> object:
    """The constant that a call gives for a keyword; None when it does not give it."""
    return next((ast.literal_eval(k.value) for k in call.keywords if k.arg == name), None)


def test_nothing_evaluates_or_unpickles():
    assert len(CALLS) > 1000
    assert not [(file, call.lineno, name) for file, call, name in CALLS if name in FORBIDDEN]


def test_torch_loads_plain_values_only_and_in_one_place():
    loads = [(str(file), given(call, "weights_only")) for file, call, name in CALLS if name == "torch.load"]
    assert loads == [("align/checkpoints.py", True)]


def test_no_shell_and_no_code_from_a_hub():
    assert not [(file, call.lineno) for file, call, _ in CALLS if given_or_none(call, "shell")]
    assert not [(file, call.lineno) for file, call, _ in CALLS if given_or_none(call, "trust_remote_code")]
    loaders = [call for _, call, name in CALLS if name == "loader.from_pretrained"]
    assert [given(call, "trust_remote_code") for call in loaders] == [False]


def given_or_none(call: ast.Call, name: str) -> object:
    """As `given`; what is no constant counts as given."""
    try:
        return given(call, name)
    except ValueError:
        return "computed"


class Harm:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_a_model_whose_weights_are_a_pickle_is_refused_unread(tmp_path):
    folder, mark = tmp_path / "model", tmp_path / "mark"
    copytree(tiny_folder(), folder)
    (weights,) = folder.glob("*.safetensors")
    torch.save({**load_file(weights), "harm": Harm(mark)}, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(ModelError, match="cannot load it"):
        execute(tmp_path / "runs", *no_warmup("sft"), f"model.path={folder}", "steps=1")
    assert not mark.exists()


def test_an_adapter_in_a_pickle_is_refused_unread(tmp_path):
    run, mark = execute(tmp_path, *no_warmup("sft"), "steps=1"), tmp_path / "mark"
    (run / "adapter" / "adapter_model.safetensors").unlink()
    (run / "adapter" / "adapter_model.bin").write_bytes(pickle.dumps(Harm(mark)))
    with pytest.raises(ModelError, match="no adapter_model.safetensors"):
        execute(tmp_path, *no_warmup("dpo"), "steps=1", f"model.start={run}")
    assert not mark.exists()


def test_code_beside_a_model_is_not_run(tmp_path):
    folder, mark = tmp_path / "model", tmp_path / "mark"
    copytree(tiny_folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "harm.Config", "AutoModelForCausalLM": "harm.Model"}
    config["model_type"] = "harm"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "harm.py").write_text(f"open({str(mark)!r}, 'w')\n")
    with pytest.raises(ModelError, match="cannot load it"):
        execute(tmp_path / "runs", *no_warmup("sft"), f"model.path={folder}", "steps=1")
    assert not mark.exists()


def test_a_run_writes_down_no_secret_of_its_environment(tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY", "MLFLOW_TRACKING_PASSWORD"):
        monkeypatch.setenv(name, f"secret-{name}")
    run = execute(tmp_path, *no_warmup("dpo"), "steps=1", "tracker=tensorboard", page=True)
    files = [file for file in run.rglob("*") if file.is_file()]
    assert (run / "report.html") in files
    assert not [file for file in files if b"secret-" in file.read_bytes()]
