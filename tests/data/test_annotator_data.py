from __future__ import annotations

import gzip
import hashlib
import json
import math
import os
import random
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from align.data import DataError, load
from align.data.annotator import PoolHeader, build, make_pool, pool_key, pool_prompts, prompts, read_pool, write_pool
from align.data.dataset import digest
from reward_models.base import Sample
from reward_models.labels import similarity


def config(path=None, **labels):
    pool = SimpleNamespace(samples=8, max_new_tokens=128, temperature=1.0, path=path)
    asked = {"pairs": 400, "annotators": 1, "sharpness": 1.5, "flips": 0.0, "length_bias": 0.0, "similarity": None}
    labels = SimpleNamespace(**asked | {"seed": 0} | labels)
    return SimpleNamespace(kind="annotator", name="annotator", pool=pool, labels=labels)


def babble(asked, samples):
    """Answers made of the topic, its keywords and filler: some keep their constraint, one in twenty is cut."""
    rng = random.Random(0)
    answers = []
    for prompt in asked:
        words = [*prompt.info["words"], *prompt.info["keywords"]]
        for _ in range(samples):
            tokens = rng.randint(8, 60)
            filler = [f"w{rng.randint(0, 500)}" for _ in range(tokens)]
            said = [rng.choice(words).rstrip("*") if rng.random() < 0.2 else word for word in filler]
            text = rng.choice(["Yes, ", "- ", ""]) + " ".join(said) + rng.choice([".", "", " today.", ". More."])
            answers.append((text, tokens, rng.random() > 0.05))
    return answers


@pytest.fixture(scope="module")
def pool():
    return make_pool(config(), babble, "model-a")


@pytest.fixture(scope="module")
def data(pool):
    return build(config(), pool)


def test_the_pool_answers_train_and_valid_prompts_and_never_those_of_the_probe(pool):
    assert len(pool.rows) == (294 + 63) * 8
    probed = {prompt.id for prompt in prompts("eval")}
    assert len(probed) == 63 and probed.isdisjoint(row.prompt_id for row in pool.rows)


def test_train_pairs_held_out_pairs_and_probe_prompts_have_three_disjoint_sets_of_topics(data):
    topics = [
        {pair.prompt.topic for pair in data.train_pairs},
        {pair.prompt.topic for pair in data.heldout_pairs},
        {prompt.topic for prompt in data.heldout_prompts},
    ]
    assert [len(found) for found in topics] == [42, 9, 9]
    assert len(set.union(*topics)) == 60
    assert len(data.train_prompts) == 294 and len(data.heldout_prompts) == 63


def test_as_many_pairs_as_asked_and_their_chosen_answers_are_the_demonstrations(data):
    assert len(data.train_pairs) == 400
    assert [(d.prompt, d.response) for d in data.demonstrations] == [(p.prompt, p.chosen) for p in data.train_pairs]
    assert 150 < len(data.heldout_pairs) <= 63 * 4


def test_held_out_pairs_carry_the_noiseless_margin_and_training_pairs_do_not(data):
    assert all("gold_margin" not in pair.prompt.info for pair in data.train_pairs)
    agree = [pair.prompt.info["gold_margin"] > 0 for pair in data.heldout_pairs]
    assert 0.65 < sum(agree) / len(agree) < 0.92  # sharpness 1.5: about 79 of 100


def test_labels_without_noise_never_contradict_gold(pool):
    sure = build(config(sharpness=math.inf), pool)
    assert all(pair.prompt.info["gold_margin"] >= 0 for pair in sure.heldout_pairs)


def test_length_bias_makes_chosen_answers_longer(pool):
    def longer(bias: float) -> float:
        chosen = [len(pair.chosen) > len(pair.rejected) for pair in build(config(length_bias=bias), pool).train_pairs]
        return sum(chosen) / len(chosen)

    assert abs(longer(0.0) - 0.5) < 0.075  # 3 SE of 400 pairs
    assert longer(1.5) > 0.62  # .71 in the calibration table


def test_pairs_of_one_similarity_are_trained_on_and_held_out(pool):
    far, near = (build(config(pairs=150, similarity=band), pool) for band in ([0, 0.25], [0.75, 1]))
    for side in ("train_pairs", "heldout_pairs"):
        one, other = ([similarity(p.chosen, p.rejected) for p in getattr(data, side)] for data in (far, near))
        assert max(one) < min(other)
    assert far.fingerprint != near.fingerprint


def test_truncated_answers_are_dropped_and_their_number_and_length_noted(data, pool):
    cut = {row.text for row in pool.rows if not row.finished}
    used = {text for pair in data.train_pairs + data.heldout_pairs for text in (pair.chosen, pair.rejected)}
    assert cut and not cut & used
    note = data.notes[0]
    lost = sum(not row.finished for row in pool.rows if row.prompt_id in {p.id for p in data.train_prompts})
    assert note.startswith(f"truncated answers (train): dropped {lost} of 2352 (mean ") and "kept" in note


def test_a_shortfall_of_pairs_and_a_failed_gate_are_said(pool):
    scarce = replace(pool, rows=tuple(replace(row, finished=row.sample < 4) for row in pool.rows))
    notes = build(config(pairs=1000), scarce).notes
    assert "data.labels.pairs=1000: the pool's finished answers give only 588" in notes  # 294 prompts x 2
    assert any(note.startswith("gate truncation FAILED: 0.500, must be <= 0.1") for note in notes)


def test_more_pairs_than_any_pool_of_this_size_could_give_is_refused(pool):
    with pytest.raises(DataError, match="data.labels.pairs=2000: .* at most 1176"):
        build(config(pairs=2000), pool)


def test_a_pool_where_nothing_is_finished_is_refused(pool):
    cut = replace(pool, rows=tuple(replace(row, finished=False) for row in pool.rows))
    with pytest.raises(DataError, match="raise data.pool.max_new_tokens"):
        build(config(), cut)


def test_the_fingerprint_follows_pool_and_labels(data, pool):
    assert build(config(), pool).fingerprint == data.fingerprint
    assert build(config(seed=1), pool).fingerprint != data.fingerprint
    changed = replace(pool, rows=(replace(pool.rows[0], text="Other."), *pool.rows[1:]))
    assert build(config(), changed).fingerprint != data.fingerprint


def test_the_key_names_settings_and_weights(pool):
    assert pool_key(config(), "model-a") == pool.header.key
    hotter = config()
    hotter.pool.temperature = 0.7
    assert len({pool_key(config(), "model-a"), pool_key(config(), "model-b"), pool_key(hotter, "model-a")}) == 3


def test_a_pool_file_comes_back_equal_and_equal_pools_are_equal_bytes(pool, tmp_path):
    odd = replace(pool, rows=(replace(pool.rows[0], text='"\u2028\x85\n\ud800é\x00'), *pool.rows[1:]))
    for name in ("a.gz", "b.gz"):
        write_pool(tmp_path / "deep" / name, odd)
    assert read_pool(tmp_path / "deep" / "a.gz") == odd
    assert (tmp_path / "deep" / "a.gz").read_bytes() == (tmp_path / "deep" / "b.gz").read_bytes()
    assert sorted(path.name for path in (tmp_path / "deep").iterdir()) == ["a.gz", "b.gz"]


def damaged(pool, path, line: int, **changes):
    """Write the pool with some fields of one line (0: the header) changed."""
    write_pool(path, pool)
    lines = gzip.decompress(path.read_bytes()).decode().splitlines()
    lines[line] = json.dumps(json.loads(lines[line]) | changes)
    path.write_bytes(gzip.compress("\n".join(lines).encode()))


@pytest.mark.parametrize(
    ("line", "changes", "says"),
    [
        (0, {"temperature": 0.5}, "line 1: the key does not fit"),
        (0, {"key": None}, "line 1, field 'key': expected str"),
        (0, {"samples": "8"}, "line 1, field 'samples': expected int"),
        (3, {"tokens": "12"}, "line 4, field 'tokens': expected int"),
        (3, {"finished": 1}, "line 4, field 'finished': expected bool"),
        (3, {"prompt_id": "nobody/knows"}, "not 8 for each of the 357 prompts"),
        (3, {"sample": 7}, "not 8 for each of the 357 prompts"),
    ],
)
def test_a_changed_pool_file_is_refused(pool, tmp_path, line, changes, says):
    damaged(pool, tmp_path / "pool.gz", line, **changes)
    with pytest.raises(DataError, match="pool.gz") as caught:
        read_pool(tmp_path / "pool.gz")
    assert says in str(caught.value)


def test_a_file_that_is_missing_cut_or_no_pool_is_refused(pool, tmp_path):
    path = tmp_path / "pool.gz"
    with pytest.raises(DataError, match="no such file"):
        read_pool(path)
    write_pool(path, pool)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        read_pool(path)
    for content in (b"", b"[]", b"not json", b"[" * 100_000):
        path.write_bytes(gzip.compress(content))
        with pytest.raises(DataError, match="line 1"):
            read_pool(path)


def test_a_pool_file_that_is_no_file_or_would_fill_the_memory_is_refused(pool, tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="no such file"):
        read_pool(tmp_path / "pipe")
    parts = {name: value for name, value in asdict(pool.header).items() if name != "key"} | {"samples": 10**15}
    write_pool(tmp_path / "many", replace(pool, header=PoolHeader(digest(parts), **parts)))
    with pytest.raises(DataError, match=f"answers that are not {10**15} for each"):
        read_pool(tmp_path / "many")
    monkeypatch.setattr("align.data.annotator.MAX_POOL_BYTES", 1000)
    write_pool(tmp_path / "long", pool)
    with pytest.raises(DataError, match="more than 1000 bytes"):
        read_pool(tmp_path / "long")


def test_a_pool_made_for_other_prompts_or_settings_is_refused(pool):
    with pytest.raises(DataError, match="another set of prompts"):
        build(config(), replace(pool, header=replace(pool.header, prompts="old")))
    longer = config()
    longer.pool.max_new_tokens = 256
    with pytest.raises(DataError, match="data.pool.max_new_tokens=256: the pool was made with 128"):
        build(longer, pool)


def test_a_sampler_that_returns_too_few_answers_is_our_bug():
    with pytest.raises(AssertionError):
        make_pool(config(), lambda asked, samples: [("a", 1, True)], "model-a")


def test_load_takes_the_pool_from_the_path_or_asks_the_provider(pool, tmp_path, data, monkeypatch):
    asked = []

    def provide(cfg):
        asked.append(cfg)
        return pool

    assert load(config(), None, 0, provide).fingerprint == data.fingerprint
    write_pool(tmp_path / "pool.gz", pool)
    assert load(config(str(tmp_path / "pool.gz")), None, 0, None).fingerprint == data.fingerprint
    assert len(asked) == 1
    monkeypatch.setenv("HOME", str(tmp_path))
    assert load(config("~/pool.gz"), None, 0, None).fingerprint == data.fingerprint
    with pytest.raises(DataError, match="data.pool.path=null"):
        load(config(), None, 0, None)


def test_gold_of_the_data_is_fitted_on_training_answers_alone(pool, data):
    valid = {prompt.id for prompt in prompts("valid")}
    rows = tuple(replace(row, text=f"{row.sample}.") if row.prompt_id in valid else row for row in pool.rows)
    sample = Sample("", "A sentence.", (), (0,) * 30, True, pool_prompts()[0].info)
    assert build(config(), replace(pool, rows=rows)).gold([sample]) == data.gold([sample])


def test_a_kind_of_data_that_does_not_exist_is_refused():
    with pytest.raises(DataError, match="data.kind='parquet': must be one of annotator, arithmetic, jsonl"):
        load(SimpleNamespace(kind="parquet"), None, 0, None)


SHIPPED = next((Path(__file__).resolve().parents[2] / "align" / "assets").glob("pool-*.jsonl.gz"))
# Of the version before there were panels: SHA-256 of all pairs in order, and the fingerprint.
BEFORE = [
    (
        {},
        "bfb8f8df2880b9c70e6bdb892cf8666ce29b9fd6aae5ea2af6610bdf9333441f",
        "c2d9b4760a66291b3d4a092981fc4b27bf512fb4af478a26d3499ea19e54e8da",
    ),
    (
        {"pairs": 1024, "flips": 0.1, "length_bias": 0.5, "seed": 3},
        "9797c85055902c7b99e92af1c0a801e7496d7a315a7421135c62db17fb2b7e4a",
        "6ece5bb3a4008ddc6dfcd2d100c0ef24b498d1a64aa54611632e927a76142048",
    ),
]


@pytest.fixture(scope="module")
def shipped():
    return read_pool(SHIPPED)


@pytest.mark.parametrize(("labels", "texts", "fingerprint"), BEFORE, ids=["plain", "noisy"])
def test_one_annotator_labels_the_shipped_pool_as_before_there_were_panels(shipped, labels, texts, fingerprint):
    data = build(config(**labels), shipped)
    pairs = (*data.train_pairs, *data.heldout_pairs)
    said = "".join(f"{pair.prompt.id}\0{pair.chosen}\0{pair.rejected}\0\0" for pair in pairs)
    assert (hashlib.sha256(said.encode()).hexdigest(), data.fingerprint) == (texts, fingerprint)


def test_a_panel_changes_labels_and_nothing_else(shipped):
    one, many = (build(config(annotators=n, pairs=1024), shipped) for n in (1, 13))
    assert many.fingerprint != one.fingerprint and many.notes == one.notes
    assert (many.train_prompts, many.heldout_prompts) == (one.train_prompts, one.heldout_prompts)
    couples = list(zip(one.train_pairs, many.train_pairs, strict=True))
    assert all((p.prompt, {p.chosen, p.rejected}) == (q.prompt, {q.chosen, q.rejected}) for p, q in couples)
    assert 0.02 < sum(p.chosen != q.chosen for p, q in couples) / len(couples) < 0.3
    sizes = [[abs(pair.prompt.info["gold_margin"]) for pair in data.heldout_pairs] for data in (one, many)]
    assert sizes[0] == sizes[1]  # gold is the same judge of both


def test_the_shipped_pool_passes_every_gate(shipped):
    assert not [note for note in build(config(), shipped).notes if note.startswith("gate ")]
