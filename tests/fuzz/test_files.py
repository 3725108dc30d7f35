"""Damaged checkpoints are passed over, damaged models refused; nothing half-written is left behind."""

from __future__ import annotations

import json
import shutil
import warnings

import gguf
import numpy
import pytest
import torch

from align import checkpoints, embedded, models
from align.checkpoints import Snapshot
from align.embedded import ModelError
from align.schema import Model
from align.tiny import build_tiny
from tests.fuzz import bad
from tests.fuzz.trial import attempt, fuzzed

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Checkpoints of step 1 and 2."""
    folder = tmp_path_factory.mktemp("saved")
    for step in (1, 2):
        weights, state = {"w": torch.full((3,), float(step))}, {"optimizer": {"step": torch.tensor(step)}}
        checkpoints.write(folder, Snapshot(step, weights, state, {"sizes": {}}, {}, [checkpoints.rng_state()]))
    return folder


@fuzzed(80)
def test_a_damaged_checkpoint_is_passed_over(saved, tmp_path_factory, rng):
    folder = bad.copied(saved, tmp_path_factory.getbasetemp() / "checkpoints")
    file = folder / "step-000002" / rng.choice(("weights.safetensors", "state.pt", "manifest.json", "manifest.json"))
    vouched = False
    if file.suffix == ".json":
        bad.spoil_json(rng, file)
    elif rng.random() < 0.1:
        bad.spoil(rng, file)
    else:
        file.write_bytes(bad.damaged(rng, file.read_bytes()))
        vouched = rng.random() < 0.5
        if vouched:  # its checksum is right: it was written so
            sums = json.loads((file.parent / "manifest.json").read_text())
            sums[file.name] = checkpoints._sha256(file)
            (file.parent / "manifest.json").write_text(json.dumps(sums))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        found = attempt("checkpoints", lambda: list(checkpoints.snapshots(folder)))
    assert found[-1].step == 1 and found[-1].weights["w"].tolist() == [1.0, 1.0, 1.0]
    damage = [str(one.message) for one in told if "is damaged" in str(one.message)]
    if len(found) == 1:
        assert len(damage) == 1 and "step-000002" in damage[0] and "\n" not in damage[0]
    elif not vouched:
        assert found[0].step == 2 and found[0].weights["w"].tolist() == [2.0, 2.0, 2.0]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny")
    build_tiny(folder)
    return folder


@fuzzed(30)
def test_a_damaged_model_folder_is_refused(tiny, tmp_path_factory, rng):
    folder = bad.copied(tiny, tmp_path_factory.getbasetemp() / "model")
    file = folder / rng.choice([file.name for file in sorted(folder.iterdir())])
    if file.suffix == ".json":
        bad.spoil_json(rng, file)
    elif rng.random() < 0.2:
        bad.spoil(rng, file)
    else:
        file.write_bytes(bad.damaged(rng, file.read_bytes()))
    cfg = Model(name="x", path=str(folder), start=None, lora=None)
    attempt("tokenizers", lambda: models.load_tokenizer(cfg), ModelError)
    attempt("models", lambda: models.load_base(cfg, CPU, torch.float32), ModelError)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A .gguf file of a model of one layer, as small as there can be."""
    file = tmp_path_factory.mktemp("gguf") / "whole.gguf"
    writer = gguf.GGUFWriter(file, "llama")
    for add, count in ((writer.add_block_count, 1), (writer.add_embedding_length, 8), (writer.add_head_count, 2),
                       (writer.add_feed_forward_length, 16), (writer.add_context_length, 32),
                       (writer.add_head_count_kv, 2), (writer.add_vocab_size, 260)):  # fmt: skip
        add(count)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(["<s>", "</s>", "<unk>", "<pad>", *(f"t{i}" for i in range(255)), "t0t1"])
    writer.add_token_merges(["t0 t1"])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    shapes = {"token_embd": (260, 8), "output_norm": (8,), "output": (260, 8), "blk.0.attn_norm": (8,),
                             "blk.0.ffn_norm": (8,),
              **{f"blk.0.attn_{part}": (8, 8) for part in ("q", "k", "v", "output")},
              "blk.0.ffn_gate": (16, 8), "blk.0.ffn_up": (16, 8), "blk.0.ffn_down": (8, 16)}  # fmt: skip
    for name, shape in shapes.items():
        writer.add_tensor(f"{name}.weight", numpy.ones(shape, dtype=numpy.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def test_the_file_to_damage_is_whole(llama, tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGN_CACHE", str(tmp_path))
    assert (embedded.gguf_folder(llama) / "model.safetensors").is_file()


@fuzzed(15)
def test_a_damaged_gguf_file_is_refused(llama, tmp_path_factory, monkeypatch, rng):
    root = tmp_path_factory.getbasetemp() / "gguf"
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir()
    monkeypatch.setenv("ALIGN_CACHE", str(root / "cache"))
    file, data = root / "x.gguf", llama.read_bytes()
    for _ in range(rng.randrange(3)):
        data = bad.damaged(rng, data)
    file.write_bytes(data)
    attempt("gguf files", lambda: embedded.gguf_folder(file), ModelError)
    for left in (root / "cache").glob("*"):
        assert (left / "config.json").is_file() and list(left.glob("*.safetensors")), f"half-written: {left}"
