"""What is said to a vLLM server, and what is taken for an answer. HTTP and JSON by the standard library; no torch.

Of its OpenAI-compatible protocol (vLLM 0.32) these parts:

    GET  /v1/models               -> data: [{id, root, ...}], the base and the adapters it has
    POST /v1/load_lora_adapter    lora_name, lora_path       (needs VLLM_ALLOW_RUNTIME_LORA_UPDATING)
    POST /v1/unload_lora_adapter  lora_name
    POST /v1/completions          what `Server.complete` sends -> model, choices[0]: token_ids, prompt_token_ids,
                                  logprobs.token_logprobs, finish_reason

An answer is believed only when everything about it fits the question.
"""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Timer
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from align.refusals import on_one_line

CONNECT = 5.0  # seconds for a connection: nothing can break it off, and Ctrl-C waits for it
COMPLETIONS = "/v1/completions"
ANSWER_BYTES = 64 * 2**20  # of an answer of 32768 tokens 3 MB
SAID = 300  # characters of what a server says that are passed on
CEILING = 1e-3  # of a logprob: 0 and rounding
FLOOR = -1e4  # of a logprob: no token that is less likely is ever drawn, and float32 holds what is above


class ServerError(Exception):
    """A server did not do what it was asked; the message names it."""


class Request(NamedTuple):
    """A completion to be sampled."""

    prompt: tuple[int, ...]
    limit: int  # tokens
    seed: int


class Answer(NamedTuple):
    ids: tuple[int, ...]  # the token that ended it included
    logprobs: tuple[float, ...]  # of the distribution at the temperature asked for


class Server:
    """One server, by its address. Methods raise ServerError; several threads may ask at once."""

    def __init__(self, url: str, key: str | None = None):
        parts = urlsplit(url)
        assert parts.hostname is not None
        self.url, self.host, self.port = url, parts.hostname, parts.port
        self.kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self.headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {key}"} if key else {})
        self.open = set[socket.socket]()
        self.aborted = False

    def models(self, seconds: float) -> dict[str, str | None]:
        """Name -> folder of what it serves."""
        listed = self._asked("GET", "/v1/models", None, seconds).get("data")
        try:
            return {str(model["id"]): model.get("root") for model in listed}
        except (TypeError, KeyError, AttributeError):
            raise ServerError(f"{self.url} lists its models as {on_one_line(str(listed))[:SAID]}") from None

    def load(self, name: str, folder: str, seconds: float) -> None:
        self._asked("POST", "/v1/load_lora_adapter", {"lora_name": name, "lora_path": folder}, seconds)

    def unload(self, name: str, seconds: float) -> None:
        self._asked("POST", "/v1/unload_lora_adapter", {"lora_name": name}, seconds)

    def complete(
        self, model: str, request: Request, temperature: float, stop_ids: tuple[int, ...], seconds: float
    ) -> Answer:
        """Sampled from the whole distribution: what a server's own defaults would cut off is asked for explicitly."""
        body = {
            "model": model, "prompt": list(request.prompt), "max_tokens": request.limit, "temperature": temperature,
            "seed": request.seed, "n": 1, "top_p": 1.0, "top_k": 0, "min_p": 0.0, "repetition_penalty": 1.0,
            "presence_penalty": 0.0, "frequency_penalty": 0.0, "logprobs": 0, "return_token_ids": True,
            "ignore_eos": True, "stop_token_ids": list(stop_ids),  # EOS is one of them; the server may know others
        }  # fmt: skip
        said = self._asked("POST", COMPLETIONS, body, seconds)
        wrong = f"{self.url} answered a request for a completion with"
        if said.get("model") != model:
            raise ServerError(f"{wrong} the model {on_one_line(str(said.get('model')))[:SAID]} instead of {model}")
        try:
            (choice,) = said["choices"]
            answer = Answer(tuple(choice["token_ids"]), tuple(choice["logprobs"]["token_logprobs"]))
            read, finish = tuple(choice["prompt_token_ids"]), choice["finish_reason"]
        except (KeyError, TypeError, ValueError):
            raise ServerError(f"{wrong} {on_one_line(json.dumps(said))[:SAID]}") from None
        if read != request.prompt:
            raise ServerError(f"{wrong} a completion of another prompt")
        problem = _problem(answer, finish, request.limit, stop_ids)
        if problem:
            raise ServerError(f"{wrong} {problem}")
        return Answer(answer.ids, tuple(map(float, answer.logprobs)))

    def abort(self) -> None:
        """Give up what is being asked: the threads that wait for it go on with a ServerError. No completion is asked
        for again, as a thread may be about to; adapters can be unloaded."""
        self.aborted = True
        for asked in list(self.open):
            _break(asked)

    def _asked(self, method: str, path: str, body: Any, seconds: float) -> dict[str, Any]:
        connection = self.kind(self.host, self.port, timeout=min(seconds, CONNECT))
        deadline = time.monotonic() + seconds
        try:
            self._connect(connection, path)
            connection.sock.settimeout(seconds)
            with self._limited(connection.sock, deadline):
                self._go_on(path)
                connection.request(method, path, None if body is None else json.dumps(body), self.headers)
                response = connection.getresponse()
                text = self._read(response)
        except (OSError, HTTPException, ValueError) as error:
            if isinstance(error, TimeoutError) or time.monotonic() > deadline:
                raise ServerError(f"{self.url} took more than {seconds:g} s for {path}") from None
            raise ServerError(f"{self.url} cannot be asked for {path}: {type(error).__name__}: {error}") from None
        finally:
            connection.close()
        if response.status != 200:
            raise ServerError(f"{self.url} answered {path} with {response.status}: {on_one_line(text)[:SAID]}")
        try:
            said = json.loads(text) if text.lstrip().startswith("{") else {}  # adapters are confirmed in a sentence
        except (ValueError, RecursionError):
            raise ServerError(f"{self.url} answered {path} with damaged JSON: {on_one_line(text)[:SAID]}") from None
        return said

    def _connect(self, connection: HTTPConnection, path: str) -> None:
        self._go_on(path)
        try:
            connection.connect()
        except TimeoutError:
            raise ServerError(f"{self.url} took no connection for {path} within {connection.timeout:g} s") from None

    def _go_on(self, path: str) -> None:
        if self.aborted and path == COMPLETIONS:
            raise ServerError(f"{self.url} was given up")

    @contextmanager
    def _limited(self, connection: socket.socket, deadline: float) -> Iterator[None]:
        """Until a deadline, or until it is given up: a timeout of the socket's would begin anew with every byte."""
        late = Timer(max(deadline - time.monotonic(), 0), _break, [connection])
        late.daemon = True
        late.start()
        self.open.add(connection)
        try:
            yield
            if time.monotonic() > deadline:  # what was read until then may be half of it
                raise TimeoutError
        finally:
            late.cancel()
            self.open.discard(connection)

    def _read(self, response: HTTPResponse) -> str:
        parts, size = list[bytes](), 0
        while part := response.read1(2**16):
            parts.append(part)
            size += len(part)
            if size > ANSWER_BYTES:
                raise ValueError(f"an answer of more than {ANSWER_BYTES} bytes")
        if response.length:
            raise ValueError(f"{response.length} bytes of the answer are missing")
        return b"".join(parts).decode("utf-8", "replace")


def _break(connection: socket.socket) -> None:
    """Wake the thread that waits for its answer, which close() would not."""
    with suppress(OSError):  # it has just been closed
        connection.shutdown(socket.SHUT_RDWR)


def _problem(answer: Answer, finish: str, limit: int, stop_ids: tuple[int, ...]) -> str | None:
    """What is wrong with a completion; None: nothing."""
    ids, logprobs = answer
    if not 1 <= len(ids) <= limit or not all(type(i) is int and i >= 0 for i in ids):
        return f"{len(ids)} tokens where 1 to {limit} ids were asked for"
    if len(logprobs) != len(ids):
        return f"{len(logprobs)} logprobs of {len(ids)} tokens"
    strange = [p for p in logprobs if type(p) not in (float, int) or not FLOOR < p <= CEILING]
    if strange:
        return f"logprobs that are none: {on_one_line(str(strange[:3]))[:SAID]}"
    ended = ids[-1] in stop_ids
    if finish not in ("stop", "length") or (finish == "stop") != ended or any(i in stop_ids for i in ids[:-1]):
        return f"an end ({on_one_line(str(finish))[:SAID]}) that is not that of its tokens"
    if not ended and len(ids) != limit:
        return f"{len(ids)} tokens that neither end nor reach the limit of {limit}"
    return None
