"""A sweep ends with the comparison of its runs (Hydra callback, see conf/run.yaml)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig


class CompareAtEnd(Callback):
    """Collects the run directories of a multirun's jobs; jobs run one after the other in this process."""

    def __init__(self) -> None:
        self.runs: list[Path] = []

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **_: Any) -> None:
        if job_return.status is JobStatus.COMPLETED:
            self.runs.append(Path(str(job_return.return_value)))

    def on_multirun_end(self, config: DictConfig, **_: Any) -> None:
        if self.runs:
            from align.compare import compare

            print(compare(self.runs, Path("compare")))
