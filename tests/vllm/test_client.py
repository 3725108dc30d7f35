"""An answer is believed only when everything about it fits the question; nothing is waited for without end."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from align.refusals import ConfigError
from align.vllm_client import Request, Server, ServerError
from align.vllm_laws import key_of
from tests.vllm.rollouts import STOPS, policy

REQUEST = Request(prompt=(3, 77, 105), limit=6, seed=2**62)


@pytest.fixture
def adapter(tmp_path) -> Path:
    policy().model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def asked(fake, adapter, seconds: float = 5.0):
    server = Server(fake.url, fake.key)
    if "one" not in server.models(5):
        server.load("one", str(adapter), 5)
    return server.complete("one", REQUEST, 1.0, STOPS, seconds)


def test_a_completion_is_its_tokens_and_their_logprobs(fakes, adapter):
    answer = asked(fakes(), adapter)
    assert len(answer.ids) == len(answer.logprobs) <= 6
    assert answer.ids[-1] in STOPS or len(answer.ids) == 6
    assert all(p < 0 for p in answer.logprobs)


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("error", "answered /v1/completions with 500: .*engine core is dead"),
        ("torn", "damaged JSON"),
        ("deep", "damaged JSON"),
        ("cut", "cannot be asked"),
        ("ids", "logprobs of .* tokens|where 1 to 6 ids"),
        ("none", r"logprobs that are none: \[None\]"),
        ("nan", r"logprobs that are none: \[nan\]"),
        ("positive", r"logprobs that are none: \[0.5\]"),
        ("infinite", r"logprobs that are none: \[-inf\]"),
        ("huge", "logprobs that are none: .-1000000"),  # an integer of JSON that no float holds
        ("low", r"logprobs that are none: \[-1e\+300\]"),  # a float that float32 does not hold
        ("false", r"logprobs that are none: \[False\]"),
        ("name", "the model base instead of one"),
        ("prompt", "a completion of another prompt"),
        ("early", "neither end nor reach the limit of 6"),
        ("middle", r"an end \((stop|length)\) that is not that of its tokens"),
        ("empty", "choices"),
        ("two", "choices"),
        ("list", "choices"),
        ("forgets", "404: .*does not exist"),
        ("die", "cannot be asked"),
    ],
)
def test_an_answer_with_one_thing_wrong_is_refused_by_what_is_wrong(fakes, adapter, fault, words):
    fake = fakes(fault=fault)
    with pytest.raises(ServerError, match=words) as refusal:
        asked(fake, adapter)
    assert fake.url in str(refusal.value)


@pytest.mark.parametrize("fault", ["hang", "drip", "headers"])
def test_a_server_that_hangs_or_gives_a_byte_now_and_then_is_given_up_after_the_limit(fakes, adapter, fault):
    fake = fakes(fault=fault)
    started = time.monotonic()
    with pytest.raises(ServerError, match="took more than 3 s"):  # long enough to begin to answer
        asked(fake, adapter, seconds=3)
    assert time.monotonic() - started < 15


def test_what_is_being_asked_can_be_given_up(fakes, adapter):
    fake = fakes(fault="hang")
    server = Server(fake.url)
    server.load("one", str(adapter), 5)
    threading.Timer(0.3, server.abort).start()
    started = time.monotonic()
    with pytest.raises(ServerError):
        server.complete("one", REQUEST, 1.0, STOPS, 25)
    assert time.monotonic() - started < 5
    with pytest.raises(ServerError, match="given up"):
        server.complete("one", REQUEST, 1.0, STOPS, 25)
    server.unload("one", 5)  # a run that was interrupted leaves its servers as they were
    assert set(server.models(5)) == {"base"}


@pytest.fixture
def full() -> Iterator[socket.socket]:
    """A server that takes no connection: as many as may wait do."""
    waiting = list[socket.socket]()
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listening:
        with suppress(TimeoutError):
            while True:
                waiting.append(socket.socket())
                waiting[-1].settimeout(0.3)
                waiting[-1].connect(listening.getsockname())
        waiting.pop().close()  # it would come before whoever tries to connect next
        yield listening
    for one in waiting:
        one.close()


def test_a_server_that_takes_no_connection_has_failed_after_seconds(full):
    server = Server("http://127.0.0.1:{1}".format(*full.getsockname()))
    started = time.monotonic()
    with pytest.raises(ServerError, match="took no connection for /v1/completions within 5 s"):
        server.complete("one", REQUEST, 1.0, STOPS, 25)
    assert time.monotonic() - started < 15


def test_a_connection_that_comes_about_after_it_was_given_up_is_not_asked_anything(full):
    server = Server("http://127.0.0.1:{1}".format(*full.getsockname()))

    def give_up() -> None:
        server.abort()
        full.accept()  # there is room: the system's next attempt to connect succeeds

    threading.Timer(0.3, give_up).start()
    started = time.monotonic()
    with pytest.raises(ServerError, match="given up"):
        server.complete("one", REQUEST, 1.0, STOPS, 25)
    assert time.monotonic() - started < 15


def test_without_its_key_a_server_says_so(fakes):
    fake = fakes(key="secret")
    with pytest.raises(ServerError, match="401") as refusal:
        Server(fake.url, "guess").models(5)
    assert "guess" not in str(refusal.value) and "secret" not in str(refusal.value)
    assert Server(fake.url, "secret").models(5) == {"base": fake.folder}


def test_an_adapter_that_is_not_there_is_refused_in_the_servers_words(fakes):
    with pytest.raises(ServerError, match="No adapter found"):
        Server(fakes().url).load("one", "/no/such/folder", 5)


def test_a_key_is_taken_without_its_line_end_and_what_no_header_can_have_is_refused_unseen():
    assert key_of(" sk-secret\r\n") == "sk-secret" and key_of(None) is None and key_of("\n") is None
    for key in ("sk-\rsecret", "sk-sécret"):
        with pytest.raises(ConfigError, match="VLLM_API_KEY") as refusal:
            key_of(key)
        assert "cret" not in str(refusal.value)
