"""Imports point one way; what reads run directories never needs torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
# A module may import from its own level and from those before it.
LEVELS = [
    ["align.maths", "align.refusals", "align.on_policy_laws", "align.algo_laws", "align.data_laws", "align.vllm_laws",
     "align.laws", "align.schema", "align.sampling_schema", "align.compose", "align.config", "align.alarms",
     "align.locks", "align.stopping", "align.runs", "align.seeds", "align.embedded", "align.hub", "align.tiny",
     "align.records", "align.rollouts", "align.checkpoints", "align.places", "align.strict_json",
     "align.strategy", "align.files", "align.private", "align.rows", "reward_models"],
    ["align.report", "align.compare", "align.terminal", "align.trackers", "align.watched", "align.watch_view",
     "align.watch", "align.jobs"],
    ["align.attention", "align.head", "align.lora", "align.fused", "align.quant", "align.merged", "align.packing",
     "align.decoding", "align.data", "align.device", "align.halving", "align.starts", "align.models",
     "align.reward_model", "align.forward", "align.features"],
    ["align.sampling", "align.rewards", "align.critic", "align.vllm_client", "align.vllm_server",
     "align.vllm_rollouts", "align.vllm_served"],
    ["align.measures"],
    ["align.probe", "align.stages", "align.describe"],
    ["align.opened", "align.best_of_n", "align.tempered"],
    ["align.trainers"],
    ["align.exact"],
    ["align.experiment"],
    ["align.run", "align.sweep"],
    ["align.bench", "align.memory", "align.study"],
]  # fmt: skip
FILES = [*sorted((ROOT / "align").rglob("*.py")), *sorted((ROOT / "reward_models").rglob("*.py"))]


def module_of(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def level_of(module: str) -> int | None:
    for number, names in enumerate(LEVELS):
        if any(module == name or module.startswith(name + ".") for name in names):
            return number
    return None


def imports_of(file: Path) -> set[str]:
    """Modules of the project imported at the top of the file (imports inside functions are late on purpose)."""
    found: set[str] = set()
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return {name for name in found if name.split(".")[0] in ("align", "reward_models")}


@pytest.mark.parametrize("file", FILES, ids=[module_of(f) for f in FILES])
def test_imports_point_one_way(file):
    module = module_of(file)
    if module == "align":
        return
    own = level_of(module)
    assert own is not None, f"{module} has no level: add it to LEVELS"
    for name in imports_of(file):
        level = level_of(name)
        assert level is None or level <= own, f"{module} imports {name} from a later level"


def test_rewards_stand_on_their_own():
    for file in (ROOT / "reward_models").rglob("*.py"):
        assert not any(name.startswith("align") for name in imports_of(file)), file.name


def test_maths_imports_torch_only():
    for file in (ROOT / "align" / "maths").glob("*.py"):
        tree = ast.parse(file.read_text())
        names = {n.module or "" for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
        names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
        roots = {name.split(".")[0] for name in names} - set(sys.stdlib_module_names)
        assert roots <= {"torch", "align"} and all(
            not n.startswith("align") or n.startswith("align.maths") for n in names
        )


def test_comparing_and_watching_runs_does_not_import_torch():
    code = "import sys, align.compare, align.runs, align.watch, align.study.__main__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "False", done.stdout + done.stderr


LOOP = ["trainers/on_policy.py", "trainers/learner.py", "trainers/losses.py", "trainers/estimators.py",
        "trainers/prompts.py", "trainers/reports.py", "critic.py", "rollouts.py", "checkpoints.py", "places.py",
        "opened.py", "run.py", "experiment.py"]  # fmt: skip
ALGORITHMS = {"ppo", "grpo", "rloo", "dr_grpo", "dapo", "gspo", "reinforce_pp", "dpo", "ipo", "kto"}


def test_the_algorithms_that_the_loop_must_not_name_are_those_of_conf():
    assert {file.stem for file in (ROOT / "conf" / "algo").glob("*.yaml")} >= ALGORITHMS


@pytest.mark.parametrize("file", LOOP)
def test_the_loop_names_no_algorithm(file):
    code = ast.parse((ROOT / "align" / file).read_text())
    words = {n.value.lower() for n in ast.walk(code) if isinstance(n, ast.Constant) and isinstance(n.value, str)
             and "\n" not in n.value and " " not in n.value}  # fmt: skip
    assert not words & ALGORITHMS


@pytest.mark.parametrize("file", LOOP)
def test_the_loop_asks_no_algorithm_for_its_name(file):
    code = ast.parse((ROOT / "align" / file).read_text())
    names = [ast.unparse(n) for n in ast.walk(code) if isinstance(n, ast.Compare | ast.Match)]
    assert not [text for text in names if "algo.name" in text]
