"""A hub that is down, silent, broken or that stops in the middle of a file: said in time, and half a model is none."""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import pytest

from align import hub
from align.embedded import ModelError

REPO, COMMIT = "some/model", "0123456789abcdef0123456789abcdef01234567"
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"weights" * 5000}


class Hub(ThreadingHTTPServer):
    """Speaks as much of the hub's protocol as a snapshot takes. `fault` is what it does wrong, `times` how often."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answer)
        self.fault, self.times = "", 0
        self.asked: Counter[str] = Counter()
        self.released = threading.Event()

    def faulty(self, fault: str) -> bool:
        if self.fault != fault or self.times <= 0:
            return False
        self.times -= 1
        return True


class Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def do_HEAD(self) -> None:
        self.answer()

    def do_GET(self) -> None:
        self.answer()

    def answer(self) -> None:
        path = self.path.partition("?")[0]
        kind = "info" if path.startswith("/api/") else "file"
        self.server.asked[f"{self.command} {kind}"] += 1
        if self.server.faulty(f"silent {kind}"):
            self.server.released.wait(60)
            self.close_connection = True
        elif self.server.faulty(f"broken {kind}"):
            self.reply(503, b"no capacity", {})
        elif self.server.faulty(f"garbage {kind}"):
            self.reply(200, b"<html>please log in</html>", {})
        elif "/tree/" in path:
            tree = [{"type": "file", "path": name, "size": len(body), "oid": name} for name, body in FILES.items()]
            self.reply(200, json.dumps(tree).encode(), {})
        elif kind == "info":
            siblings = [{"rfilename": name} for name in FILES]
            self.reply(200, json.dumps({"id": REPO, "sha": COMMIT, "siblings": siblings}).encode(), {})
        else:
            self.file(FILES[path.rpartition("/")[2]])

    def file(self, content: bytes) -> None:
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").partition("-")[0])
        headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        cut = self.command == "GET" and len(content) > 100 and self.server.faulty("cut off")
        self.reply(206 if start else 200, content[start:], headers, half=cut)

    def reply(self, status: int, body: bytes, headers: dict[str, str], half: bool = False) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body[: len(body) // 2] if half else body)
        self.close_connection = half


@pytest.fixture
def server(tmp_path, monkeypatch) -> Iterator[Hub]:
    running = Hub()
    threading.Thread(target=running.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{running.server_port}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", here)
    template = here + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DOWNLOAD_TIMEOUT", 1)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_ETAG_TIMEOUT", 1)
    monkeypatch.setattr(hub, "TIMEOUT_S", 1.0)
    # huggingface_hub asks for a file's size seven times, waits 60 s each and pauses 23 s in all
    monkeypatch.setattr("huggingface_hub.file_download._ETAG_RETRY_TIMEOUT", 1)
    monkeypatch.setattr("huggingface_hub.utils._http.time", SimpleNamespace(**vars(time) | {"sleep": lambda s: None}))
    yield running
    running.released.set()
    running.shutdown()
    running.server_close()


def whole() -> bool:
    folder = hub.hub_folder(REPO)
    return {name: (folder / name).read_bytes() for name in FILES} == FILES


def test_a_snapshot_is_taken_once_and_then_found_without_a_hub(server):
    assert whole()
    before = server.asked.copy()
    assert whole() and server.asked == before


@pytest.mark.parametrize("fault", ["silent info", "broken info", "garbage info", "silent file", "broken file"])
def test_a_hub_with_a_fault_is_reported_in_time_and_works_when_it_is_mended(server, fault):
    server.fault, server.times = fault, 1000
    started = time.monotonic()
    with pytest.raises(ModelError, match=f"model.path={REPO}: .*the hub did not give it"):
        hub.hub_folder(REPO)
    assert time.monotonic() - started < 40
    server.times = 0
    server.released.set()
    assert whole()


def test_a_file_that_is_cut_off_is_not_taken_for_a_whole_one(server):
    server.fault, server.times = "cut off", 1000
    with pytest.raises(ModelError, match="the hub did not give it"):
        hub.hub_folder(REPO)
    server.times = 0
    assert whole()


def test_a_download_that_stops_once_goes_on_by_itself(server):
    server.fault, server.times = "cut off", 1
    assert whole() and server.times == 0
