"""A vLLM server of the run's own: on 127.0.0.1, with a key that nobody else has, and ended however the run ends."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from align.refusals import ConfigError
from align.vllm_client import Server, ServerError

START_SECONDS = 1200  # that a server may take to load its model; on two CPU cores SmolLM2-135M takes 30
STOP_SECONDS = 20  # after SIGTERM
LOG_LINES = 15  # of a server that ended, for the message
# In vLLM's python. Linux sends SIGTERM when the run is killed, which could not end it any more; in a group of its own
# it does not hear the terminal's Ctrl-C, which the run hears and answers.
LAUNCH = """
import os, sys
if sys.platform == "linux":
    import ctypes, signal
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.executable, [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *sys.argv[2:]])
"""


class OwnServer(Server):
    """`python`: of an environment with vLLM; `arguments`: of its server; `log`: a file for what it says."""

    def __init__(self, python: str, arguments: list[str], log: Path):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.key = secrets.token_hex(32)
        super().__init__(f"http://127.0.0.1:{port}", self.key)
        self.command = [str(Path(python).expanduser()), "-c", LAUNCH, str(os.getpid()),
                        "--host", "127.0.0.1", "--port", str(port), *arguments]  # fmt: skip
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        return self.process is not None and self.process.poll() is None

    def settle(self) -> None:
        """A moment for a server that does not answer: what is killed is off the network before its process is gone."""
        with suppress(subprocess.TimeoutExpired):
            if self.process is not None:
                self.process.wait(1.0)

    def begin(self) -> None:
        """Returns when it answers. Raises ConfigError: at the start it is the user's to repair."""
        try:
            self.start()
        except ServerError as error:
            raise ConfigError(f"sampling.vllm.python={self.command[0]}: {error}") from None

    def start(self) -> None:
        """Returns when it answers. Raises ServerError when it ends instead, or takes too long."""
        self.stop()
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = os.environ | {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "True", "VLLM_API_KEY": self.key}
        with self.log.open("ab") as log:
            try:
                self.process = subprocess.Popen(self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                                env=environment, start_new_session=True)  # fmt: skip
            except OSError as error:
                raise ServerError(f"vLLM's server cannot be started: {error.strerror}") from None
        deadline = time.monotonic() + START_SECONDS
        while time.monotonic() < deadline:
            if not self.alive:
                raise ServerError(f"vLLM's server ended ({self.process.returncode}) instead of starting:\n"
                                  f"{self.last_words()}")  # fmt: skip
            with suppress(ServerError):
                self.models(seconds=5)
                return
            time.sleep(0.2)
        raise ServerError(f"{self.url} did not start within {START_SECONDS} s; what it said is in {self.log}")

    def stop(self) -> None:
        """It and what it started."""
        if self.process is None:
            return
        for number, seconds in ((signal.SIGTERM, STOP_SECONDS), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)  # also when it has ended: its engine is a process of its own
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(seconds)
        self.process = None

    def last_words(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-LOG_LINES:])
