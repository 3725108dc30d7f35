"""A launcher of Hydra's for tests: jobs as those of a cluster see them, in another working directory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from omegaconf import open_dict


class Elsewhere(Launcher):
    """Every job is started in the folder above, as by a worker that is there, and by its own composed config."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        setup_globals()
        here, returned = Path.cwd(), []
        try:
            for number, overrides in enumerate(job_overrides, initial_job_idx):
                config = self.hydra_context.config_loader.load_sweep_config(self.config, list(overrides))
                with open_dict(config.hydra.job):
                    config.hydra.job.num, config.hydra.job.id = number, f"worker-{number}"
                os.chdir(self.config.hydra.runtime.cwd + "/..")
                job = self.task_function, config, "hydra.sweep.dir", "hydra.sweep.subdir", self.hydra_context
                returned.append(run_job(*job))
                assert returned[-1].return_value == 0  # raises what the job raised
        finally:
            os.chdir(here)
        return returned
