"""A server that speaks the part of vLLM's protocol that we use (align/vllm_client.py), over the tiny model.

It really samples, token by token from the adapter it was sent, by transformers and PEFT not by our own code. It has
vLLM's manners (seen of 0.32): 404 for a model or an adapter it has not, 400 for an adapter it has, a
sentence instead of JSON when an adapter is taken, the ending token among the ids. And it can be made to fail.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

SLOW = 30.0  # seconds of a server that hangs; no test waits for them


class Fake(ThreadingHTTPServer):
    """`fault`: what goes wrong with the first so many completions (`times`); `after`: with those that follow."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = 128  # with 5, the default, sixteen requests at once are sometimes reset

    def __init__(
        self, folder: str, port: int = 0, key: str | None = None, fault: str = "", times: float = float("inf")
    ):
        super().__init__(("127.0.0.1", port), Handler)
        self.folder, self.key, self.fault, self.times = folder, key, fault, times
        self.after = ""
        self.base = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        self.adapted: PeftModel | None = None
        self.adapters: dict[str, str] = {}  # name -> folder
        self.weights: dict[str, str] = {}  # name -> PEFT's name of what answers for it
        self.lock, self.released = threading.Lock(), threading.Event()
        self.calls = Counter[str]()
        self.answered: list[tuple[int, int]] = []  # seed of each completion that was sent whole, its tokens
        self.loaded: list[str] = []
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, *_: Any) -> None:
        """Whoever asked is gone."""

    def stop(self) -> None:
        self.released.set()
        self.shutdown()
        self.server_close()

    def load(self, name: str, folder: str) -> tuple[int, str]:
        if name in self.adapters:
            return 400, f"The lora adapter '{name}' has already been loaded."
        if not os.path.isfile(f"{folder}/adapter_config.json"):
            return 404, f"Loading lora {name} failed: No adapter found for <path>"
        with self.lock:
            self.adapters[name], own = folder, f"a{len(self.loaded)}"
            self.loaded.append(name)
            if self.fault == "stale" and self.adapted is not None:
                self.weights[name] = "a0"
            elif self.adapted is None:
                self.adapted = PeftModel.from_pretrained(self.base, folder, adapter_name=own).eval()
                self.weights[name] = own
            else:
                self.adapted.load_adapter(folder, adapter_name=own)
                self.weights[name] = own
        if self.fault == "load_hang":
            self.released.wait(SLOW)
        if self.fault == "load_error":
            return 500, "engine core is busy"
        return 200, f"Success: LoRA adapter '{name}' added successfully."

    @torch.no_grad()
    def sample(self, asked: dict[str, Any]) -> dict[str, Any]:
        generator = torch.Generator().manual_seed(asked["seed"])
        ids, logprobs, finish = list(asked["prompt"]), list[float](), "length"
        with self.lock:
            assert self.adapted is not None
            self.adapted.set_adapter(self.weights[asked["model"]])
            for _ in range(asked["max_tokens"]):
                z = self.adapted(input_ids=torch.tensor([ids])).logits[0, -1] / asked["temperature"]
                token = int(torch.multinomial(z.softmax(-1), 1, generator=generator))
                ids.append(token)
                logprobs.append(float(z.log_softmax(-1)[token]))
                if token in asked["stop_token_ids"]:
                    finish = "stop"
                    break
        made = ids[len(asked["prompt"]) :]
        choice = {"index": 0, "text": "", "logprobs": {"token_logprobs": logprobs}, "finish_reason": finish,
                  "token_ids": made, "prompt_token_ids": list(asked["prompt"])}  # fmt: skip
        return {"object": "text_completion", "model": asked["model"], "choices": [choice]}


class Handler(BaseHTTPRequestHandler):
    server: Fake

    def log_message(self, *_: Any) -> None:
        """Silent."""

    def do_GET(self) -> None:
        if self.path != "/v1/models" or not self.allowed():
            return self.refuse(404 if self.allowed() else 401, "no")
        own = [{"id": "base", "root": self.server.folder, "parent": None}]
        sent = [{"id": name, "root": folder, "parent": "base"} for name, folder in self.server.adapters.items()]
        self.send(200, json.dumps({"object": "list", "data": [*own, *sent]}))

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.calls[self.path] += 1
        if not self.allowed():
            return self.refuse(401, "Unauthorized")
        if self.path == "/v1/load_lora_adapter":
            status, text = self.server.load(asked["lora_name"], asked["lora_path"])
            return self.send(200, text) if status == 200 else self.refuse(status, text)
        if self.path == "/v1/unload_lora_adapter":
            if self.server.adapters.pop(asked["lora_name"], None) is None:
                return self.refuse(404, f"The lora adapter '{asked['lora_name']}' cannot be found.")
            return self.send(200, f"Success: LoRA adapter '{asked['lora_name']}' removed successfully.")
        self.complete(asked)

    def complete(self, asked: dict[str, Any]) -> None:
        server = self.server
        fault = server.fault if server.times > 0 else server.after
        server.times -= 1
        if fault == "forgets":
            server.adapters.clear()
        if asked["model"] not in server.adapters:
            return self.refuse(404, f"The model `{asked['model']}` does not exist.")
        assert asked["return_token_ids"] and asked["ignore_eos"] and asked["logprobs"] == 0
        if fault == "error":
            return self.refuse(500, "engine core is dead")
        if fault == "hang":
            server.released.wait(SLOW)
        if fault == "slow":
            time.sleep(0.05)
        if fault == "die":
            threading.Thread(target=server.stop, daemon=True).start()
            return self.connection.close()
        said = spoiled(fault, server.sample(asked), next(iter(asked["stop_token_ids"]), 0))
        text = json.dumps(said)
        if fault == "torn":
            text = text[: len(text) // 2]
        if fault == "deep":
            text = '{"data":' + "[" * 200_000
        self.send(200, text, short=fault == "cut", drip=fault == "drip", slow_header=fault == "headers")
        server.answered.append((asked["seed"], len(said["choices"][0]["token_ids"])))

    def allowed(self) -> bool:
        return self.server.key is None or self.headers.get("Authorization") == f"Bearer {self.server.key}"

    def refuse(self, status: int, text: str) -> None:
        self.send(status, json.dumps({"error": {"message": text, "code": status}}))

    def send(self, status: int, text: str, short: bool = False, drip: bool = False, slow_header: bool = False) -> None:
        data = text.encode()
        self.send_response(status)
        if slow_header:
            for _ in range(600):
                self.send_header("X-Wait", "a bit")
                self.flush_headers()
                time.sleep(0.1)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if drip:
            for byte in data:
                self.wfile.write(bytes([byte]))
                time.sleep(0.1)
        self.wfile.write(data[:-9] if short else b"" if drip else data)


def spoiled(fault: str, said: dict[str, Any], stop: int) -> dict[str, Any]:
    """The answer with one thing wrong. `stop`: a token that ends completions."""
    choice = said["choices"][0]
    ids, logprobs = choice["token_ids"], choice["logprobs"]["token_logprobs"]
    if fault == "ids":
        ids.append(7)
    if fault == "vocabulary":
        ids[0] = 10**30
    strange = {"none": None, "nan": float("nan"), "positive": 0.5, "infinite": -math.inf, "huge": -(10**400),
               "low": -1e300, "false": False}  # fmt: skip
    if fault in strange:
        logprobs[0] = strange[fault]
    if fault == "name":
        said["model"] = "base"
    if fault == "prompt":
        choice["prompt_token_ids"] = choice["prompt_token_ids"][1:]
    if fault == "early":
        choice["token_ids"], choice["logprobs"]["token_logprobs"] = ids[:1], logprobs[:1]
        choice["finish_reason"] = "length"
    if fault == "middle":
        ids[0] = stop
    choices = {"empty": [], "list": [None], "two": [choice, choice]}
    if fault in choices:
        said["choices"] = choices[fault]
    return said


def main() -> None:
    """As `python -m vllm.entrypoints.openai.api_server` (tests/vllm/package)."""
    parser = argparse.ArgumentParser()
    for name in ("--host", "--model", "--served-model-name", "--dtype", "--max-lora-rank", "--logprobs-mode"):
        parser.add_argument(name, required=True)
    parser.add_argument("--port", type=int, required=True)
    for flag in ("--enable-lora", "--no-enable-chunked-prefill"):
        parser.add_argument(flag, action="store_true", required=True)
    known, _ = parser.parse_known_args()
    assert os.environ["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "True" and known.logprobs_mode == "processed_logprobs"
    fault = os.environ.get("FAKE_VLLM_FAULT", "")
    if fault == "start":
        raise SystemExit("no memory for the cache")
    fake = Fake(known.model, known.port, os.environ["VLLM_API_KEY"], fault)
    fake.released.wait()


if __name__ == "__main__":
    main()
