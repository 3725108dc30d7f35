"""What SECURITY.md promises, of the source and of what a run writes and reads."""

from __future__ import annotations

import ast
import json
import os
import pickle
import time
from pathlib import Path
from shutil import copytree
from unittest.mock import MagicMock

import pytest
import torch
from safetensors.torch import load_file

from align.compose import composed
from align.config import ConfigError, check
from align.data.lines import _without_duplicates
from align.embedded import ModelError, _convert, tiny_folder
from align.files import appending
from align.private import scrubbed
from align.report.text import visible
from align.reward_model import load_reward_model
from align.rows import RunError
from align.run import stop
from align.runs import Run, read
from align.study import values
from align.watched import Watched
from reward_models.base import RewardError
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
    loaders = [(str(file), call) for file, call, name in CALLS if name.endswith(".from_pretrained")]
    assert {file for file, _ in loaders} == {"align/starts.py", "align/embedded.py", "align/bench/stock.py"}
    # PEFT's reads an adapter, and has no such argument
    others = [call for _, call in loaders if ast.unparse(call.func) != "PeftModel.from_pretrained"]
    assert all(sealed(call) for call in others)


def sealed(call: ast.Call) -> bool:
    """Whether a loader is told to run no code, by itself or by the dictionary it is given."""
    return given(call, "trust_remote_code") is False or any(k.arg is None for k in call.keywords)


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


def test_code_beside_a_gguf_file_is_neither_run_nor_offered(tmp_path, monkeypatch):
    """transformers would ask on the terminal, and `yes |` answers."""
    mark = tmp_path / "mark"
    (tmp_path / "whole.gguf").write_bytes(b"GGUF no more")
    harm = {"tokenizer_class": "X", "auto_map": {"AutoTokenizer": ["h.T", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(harm))
    (tmp_path / "h.py").write_text(f"open({str(mark)!r}, 'w')\n")
    seen = []
    for loader in ("AutoModelForCausalLM", "AutoTokenizer"):
        monkeypatch.setattr(f"transformers.{loader}.from_pretrained", lambda folder, **how: seen.append(
            ([file.name for file in Path(folder).iterdir()], how)) or MagicMock())  # fmt: skip
    _convert(tmp_path / "whole.gguf", tmp_path / "out")
    assert [files for files, _ in seen] == [["whole.gguf"]] * 2
    assert all(how["trust_remote_code"] is False and how["local_files_only"] for _, how in seen)


def test_an_adapter_of_another_kind_is_refused_before_peft_reads_what_it_names(tmp_path):
    run = execute(tmp_path, *no_warmup("sft"), "steps=1")
    file = run / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "MULTITASK_PROMPT_TUNING"}))
    with pytest.raises(ModelError, match="expected LORA"):
        execute(tmp_path, *no_warmup("dpo"), "steps=1", f"model.start={run}")


def test_a_damaged_adapter_is_one_sentence(tmp_path):
    run = execute(tmp_path, *no_warmup("sft"), "steps=1")
    (run / "adapter" / "adapter_model.safetensors").write_bytes(b"no weights")
    with pytest.raises(ModelError, match="its adapter cannot be loaded"):
        execute(tmp_path, *no_warmup("dpo"), "steps=1", f"model.start={run}")


def test_a_model_folder_with_an_adapter_in_it_is_refused(tmp_path):
    copytree(tiny_folder(), tmp_path / "model")
    (tmp_path / "model" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match="the folder holds an adapter"):
        execute(tmp_path / "runs", *no_warmup("sft"), f"model.path={tmp_path / 'model'}", "steps=1")


def test_a_secret_is_not_resolved_into_a_config(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    for key in ("model.path", "sampling.vllm.urls"):
        with pytest.raises(ConfigError, match="would be written into the run directory") as refused:
            check(composed(["sampling=vllm", f"{key}=['http://${{oc.env:HF_TOKEN}}.example']"]))
        assert "hf_secret" not in str(refused.value)
    assert check(composed(["runs_root=${oc.env:SCRATCH}/runs"])).runs_root == f"{tmp_path}/runs"


def test_a_message_of_a_library_is_without_passwords(monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "abcdef123")
    said = scrubbed("request to http://user:S3CRETpw@127.0.0.1:9/x failed with key abcdef123")
    assert said == "request to http://***@127.0.0.1:9/x failed with key ***"
    monkeypatch.setenv("SOME_KEY", "test")  # a part of many a path
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(Path(__file__).parent))  # where, not what
    assert scrubbed(f"a test in {__file__}") == f"a test in {__file__}"
    assert scrubbed("http://user:a/b@c/d@host/x and http://host/y") == "http://***@host/x and http://host/y"
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")  # no secret
    monkeypatch.setenv("MAX_TOKENS", "4096")
    monkeypatch.setenv("OTHER_KEY", "abcdef12")  # the beginning of another
    assert scrubbed("false, 4096, abcdef123, abcdef12") == "false, 4096, ***, ***"
    said = '{"url":"http://h:1/","mail":"a@b"}'
    assert scrubbed(said) == said


def test_a_long_message_is_read_in_time():
    for text in ("://a:", "://" + ":" * 2000, "://" + "a" * 2000, "://a:/"):
        started = time.process_time()
        scrubbed(text * (100_000 // len(text)))
        assert time.process_time() - started < 5, text[:9]


@pytest.mark.parametrize("kind", [RuntimeError, RewardError])
def test_what_a_run_leaves_of_its_failure_has_no_secret(tmp_path, monkeypatch, kind):
    monkeypatch.setenv("JUDGE_API_KEY", "sk-abcdef123")
    with pytest.raises(kind), Run.create(tmp_path / "run", {}, {}):
        raise kind("https://api.example/v1?key=sk-abcdef123 cannot be reached")
    monkeypatch.setenv("ALIGN_LAST_WORDS", str(tmp_path / "run" / "words"))
    with pytest.raises(SystemExit):
        stop("https://api.example/v1?key=sk-abcdef123 cannot be reached", 2)
    left = {file.name: file.read_text() for file in (tmp_path / "run").iterdir()}
    assert all("key=*** cannot" in left[name] for name in ("error.log", "status.json", "words"))
    assert not any("abcdef" in text for text in left.values())


def test_a_study_of_somebody_else_gives_hydra_nothing_to_make():
    for item in ("+hydra.callbacks.x={_target_:align.jobs.run_child}", "hydra/launcher=joblib", "~hydra.sweeper=1"):
        with pytest.raises(ConfigError, match="is Hydra's"):
            values.overrides([item], "base")


def test_files_of_a_run_are_not_links_to_others(tmp_path):
    victim, run = tmp_path / "victim", tmp_path / "run"
    victim.write_text("precious\n")
    run.mkdir()
    (run / "events.jsonl").symlink_to(victim)
    with pytest.raises(RunError, match="events.jsonl is a link"):
        Run.reopen(run, None)
    with pytest.raises(OSError):
        appending(run / "events.jsonl")
    assert victim.read_text() == "precious\n"


@pytest.mark.parametrize("text", ["x: &a {b: *a}", "x: &a [*a]", "x: [{1: a, b: c}]", f"steps: {'9' * 30}",
                                  "x: 0x" + "f" * 5000, "1: a"])  # fmt: skip
def test_a_config_that_no_run_wrote_is_damage(tmp_path, text):
    (tmp_path / "config.yaml").write_text(text)
    (tmp_path / "meta.json").write_text("{}")
    with pytest.raises(RunError, match="is damaged"):
        read(tmp_path)


def test_a_pipe_in_a_run_directory_is_not_waited_for(tmp_path):
    for name in ("metrics.jsonl", "status.json"):
        os.mkfifo(tmp_path / name)
    (tmp_path / "config.yaml").write_text("steps: 4\n")
    (tmp_path / "meta.json").write_text("{}")
    watched = Watched(tmp_path)
    assert watched.metrics.rows == [] and watched.state == "unknown"


def test_a_field_twice_is_found_in_a_long_object():
    pairs = [(f"k{i}", 0) for i in range(200_000)] + [("k7", 1)]
    started = time.perf_counter()
    with pytest.raises(ValueError, match="'k7' twice"):
        _without_duplicates(pairs)
    assert time.perf_counter() - started < 2


def test_a_reward_model_in_a_pickle_is_refused_unread(tmp_path):
    """PEFT would read adapter_model.bin, and without it ask the hub for a repository of the folder's name."""
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.bin").write_bytes(pickle.dumps(Harm(tmp_path / "mark")))
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        load_reward_model(None, None, None, tmp_path)
    assert not (tmp_path / "mark").exists()


def test_what_hides_or_reorders_text_is_shown():
    assert visible("a\u200eb\u200bc\u2028d\ufeffe\U000e0041f") == "a\ufffdb\ufffdc\ufffdd\ufffde\ufffdf"
