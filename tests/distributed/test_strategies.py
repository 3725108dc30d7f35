"""conf/accelerate: each file is what Accelerate takes it for, and a run refuses what it did not get."""

from __future__ import annotations

import functools
from types import SimpleNamespace

import pytest
import torch
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from accelerate.commands.launch import launch_command_parser
from accelerate.utils import DistributedType

from align import run, strategy
from align.refusals import ConfigError
from tests.config.test_conf import composed
from tests.distributed.launched import FOLDER, NAMES, arguments, environment

TORCHRUN = {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0"}
ASKED = {"cpu": "one process", "gpu": "one process", "ddp": "ddp"}  # the others by their own name


def test_the_files_are_the_seven():
    assert sorted(NAMES) == sorted(file.stem for file in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_accelerate_knows_every_key_and_the_launcher_takes_the_file(name):
    file = FOLDER / f"{name}.yaml"
    assert file.read_text().startswith("# ")
    load_config_from_file(str(file))  # refuses an unknown key, but not one of a section
    known = {action.dest for action in launch_command_parser()._actions}
    for section, settings in yaml.safe_load(file.read_text()).items():
        for key in settings if isinstance(settings, dict) else ():
            assert section in ("fsdp_config", "deepspeed_config") and key in known, key
    args = arguments(name)
    assert args.mixed_precision == "no" and args.num_processes == (1 if name in ("cpu", "gpu") else 2)


@pytest.mark.parametrize("name", NAMES)
def test_what_a_file_asks_for_is_read_from_what_the_launcher_sets(name):
    one = name in ("cpu", "gpu")
    assert strategy.asked(environment(name) | ({} if one else TORCHRUN)) == ASKED.get(name, name)


def accelerator(kind: str, processes: int = 1, device: str = "cpu", plugin: int = 2) -> SimpleNamespace:
    plugins = SimpleNamespace(zero_stage=plugin), SimpleNamespace(fsdp_version=plugin)
    return SimpleNamespace(distributed_type=DistributedType(kind), num_processes=processes, device=torch.device(device),
                           state=SimpleNamespace(deepspeed_plugin=plugins[0], fsdp_plugin=plugins[1]))  # fmt: skip


experiment = functools.cache(composed)


def verified(name: str, got: SimpleNamespace, *settings: str, env: tuple[tuple[str, str], ...] = ()) -> str:
    launched = environment(name) | (TORCHRUN if name not in ("cpu", "gpu") else {}) | dict(env)
    try:
        strategy.verify(experiment(*settings), got, launched)
    except ConfigError as error:
        return str(error)
    return ""


def test_what_was_asked_for_and_obtained_goes_on():
    assert not verified("cpu", accelerator("NO"), "device=cpu")
    assert not verified("cpu", accelerator("NO"), "device=auto")
    assert not verified("gpu", accelerator("NO", device="cuda"))
    assert not verified("ddp", accelerator("MULTI_GPU", 2, "cuda"))
    assert not verified("ddp", accelerator("MULTI_CPU", 2), "device=cpu")


@pytest.mark.parametrize(
    ("name", "got", "settings", "says"),
    [
        ("fsdp2", accelerator("MULTI_CPU", 2), ["device=cpu"], ["=fsdp2", "train with ddp", "ddp.yaml"]),
        ("fsdp2", accelerator("FSDP", 2, "cuda", 1), [], ["=fsdp2", "train with fsdp1"]),
        ("zero2", accelerator("MULTI_CPU", 2), ["device=cpu"], ["=zero2", "train with ddp", "ddp.yaml"]),
        ("zero2", accelerator("DEEPSPEED", 2, "cuda", 3), [], ["=zero2", "train with zero3"]),
        ("ddp", accelerator("NO"), ["device=cpu"], ["=ddp", "one process", "cpu.yaml"]),
        ("ddp", accelerator("MULTI_GPU", 3, "cuda"), [], ["num_processes", "=2", "found 3"]),
        ("cpu", accelerator("NO", device="cuda"), [], ["device=auto", "use_cpu is true", "device=cpu"]),
        ("gpu", accelerator("NO"), [], ["device=auto", "no GPU", "cpu.yaml"]),
    ],
)
def test_what_was_not_obtained_is_refused_with_key_and_fix(name, got, settings, says):
    message = verified(name, got, *settings)
    assert all(part in message for part in says), message


def test_a_precision_that_no_run_would_use_is_refused():
    message = verified("ddp", accelerator("MULTI_GPU", 2, "cuda"), env=(("ACCELERATE_MIXED_PRECISION", "bf16"),))
    assert "mixed_precision (accelerate launch)=bf16" in message and "set it to no" in message


@pytest.mark.parametrize(
    ("name", "kind", "number", "why"),
    [
        ("fsdp2", "FSDP", 2, "need them whole"),
        ("zero3", "DEEPSPEED", 3, "need them whole"),
        ("zero1", "DEEPSPEED", 1, "a piece of the optimizer"),
        ("zero2", "DEEPSPEED", 2, "a piece of the optimizer"),
    ],
)
def test_what_is_cut_up_is_refused_with_the_reason_and_the_way_out(name, kind, number, why):
    message = verified(name, accelerator(kind, 2, "cuda", number))
    assert f"={name}: " in message and why in message and "conf/accelerate/ddp.yaml" in message


def test_the_launcher_that_starts_one_process_of_several_is_told():
    with pytest.raises(ConfigError, match=r"num_processes .* started alone.*ddp.yaml with device=cpu"):
        strategy.prepare(environment("ddp", "--cpu"))
    for name in NAMES[:3]:
        strategy.prepare(environment(name) | (TORCHRUN if name == "ddp" else {}))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "true"),
    ],
)
def test_what_accelerate_takes_from_the_environment_without_a_word_is_refused(name, value):
    with pytest.raises(ConfigError, match=f"{name}={value}: "):
        strategy.prepare(environment("ddp") | TORCHRUN | {name: value})


def test_without_deepspeed_a_run_says_what_to_install(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="=zero2: needs DeepSpeed: pip install deepspeed"):
        strategy.prepare(environment("zero2") | TORCHRUN)


def test_the_process_that_says_why_is_the_first_to_end(monkeypatch, capfd):
    slept: list[float] = []
    monkeypatch.setattr("sys.argv", ["align.run", "steps=0"])
    monkeypatch.setattr("time.sleep", slept.append)
    for main in (True, False):
        monkeypatch.setattr(run, "MAIN_PROCESS", main)
        with pytest.raises(SystemExit) as end:
            run.main()
        assert end.value.code == 1
        assert ("steps=0" in capfd.readouterr().err, bool(slept)) == (True, not main)  # if it is still there by then
