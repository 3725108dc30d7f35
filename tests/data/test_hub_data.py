"""Sets of the hub from small local copies in the very same columns, and what is said when there is no hub."""

from __future__ import annotations

import gzip
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
from huggingface_hub.utils import filter_repo_objects

from align.data import DataError, load, sources
from reward_models.base import Sample
from tests.config.test_conf import composed
from tests.end_to_end.helpers import adapter_moved, execute

SETS = ("ultrafeedback", "hh_rlhf", "tldr", "gsm8k")


@pytest.fixture(autouse=True)
def own_caches(tmp_path, monkeypatch):
    """Nothing of the user's caches is read or written, and nobody answers for a hub."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets-cache")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    bars = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    yield
    if not bars:
        datasets.enable_progress_bars()


def read(name, path, *overrides, tokenizer=None, seed=0):
    limits = () if tokenizer else ("data.max_prompt_tokens=null", "data.max_completion_tokens=null")
    where = "null" if path is None else str(path)
    algo = "algo=grpo" if name == "gsm8k" else "algo=dpo"
    experiment = composed(algo, f"data={name}", f"data.path={where}", *limits, *overrides)
    return load(experiment.data, tokenizer, seed, None)


# --- rows as the real sets have them ---


def uf(i, chosen=None, rejected="No.", prompt=None) -> dict:
    """HuggingFaceH4/ultrafeedback_binarized: chat turns that begin with the prompt, and columns that nobody reads."""
    said = [{"content": prompt or f"Why {i}?", "role": "user"}]
    ways = [[*said, {"content": text, "role": "assistant"}] for text in (chosen or f"Because {i}.", rejected)]
    return {"prompt": said[0]["content"], "prompt_id": f"{i:064x}", "chosen": ways[0], "rejected": ways[1],
            "messages": ways[0], "score_chosen": 8.5, "score_rejected": 7.0}  # fmt: skip


def hh(i, chosen=" Because.", rejected=" No.", before="", other_before=None) -> dict:
    """Anthropic/hh-rlhf: two transcripts."""
    start = f"\n\nHuman: Why {i}?"
    ways = [f"{start}{turns}\n\nAssistant:{text}" for turns, text in
            ((before, chosen), (before if other_before is None else other_before, rejected))]  # fmt: skip
    return {"chosen": ways[0], "rejected": ways[1]}


def tldr(i, chosen=" I went.", rejected=" I stayed.") -> dict:
    """trl-lib/tldr-preference: plain strings; completions begin with the space that TRL's concatenation needs."""
    post = f"SUBREDDIT: r/tifu\n\nTITLE: Trip {i}\n\nPOST: I went to {i}.\nIt was long.\n\nTL;DR:"
    return {"prompt": post, "chosen": chosen, "rejected": rejected}


def gsm(i, answer=None) -> dict:
    """openai/gsm8k: calculator notes and the answer after four hashes."""
    answer = answer or f"{i} + 1000 = <<{i}+1000={i + 1000}>>{i + 1000} apples.\n#### 1,{i:03}"
    return {"question": f"{i} apples and 1,000 more?", "answer": answer}


ROWS = {"ultrafeedback": uf, "hh_rlhf": hh, "tldr": tldr, "gsm8k": gsm}


def parquet(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    datasets.Dataset.from_list(rows).to_parquet(path)
    return path


def lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(json.dumps(row) + "\n" for row in rows).encode()))
    return path


def copy_of(name: str, root: Path, train: list[dict], test: list[dict]) -> Path:
    """The repository's files as they lie on the hub."""
    if name == "hh_rlhf":
        folders = ("harmless-base", "helpful-base", "helpful-online", "helpful-rejection-sampled")
        for n, folder in enumerate(folders):
            lines(root / folder / "train.jsonl.gz", train[n::4])
            lines(root / folder / "test.jsonl.gz", test[n::4])
        return root
    folder = "main" if name == "gsm8k" else "data"
    train_split, test_split = {"ultrafeedback": ("train_prefs", "test_prefs"), "tldr": ("train", "validation"),
                               "gsm8k": ("train", "test")}[name]  # fmt: skip
    parquet(root / folder / f"{train_split}-00000-of-00001.parquet", train)
    parquet(root / folder / f"{test_split}-00000-of-00001.parquet", test)
    return root


def small(name: str, root: Path, train=range(12), test=range(12, 20)) -> Path:
    return copy_of(name, root, [ROWS[name](i) for i in train], [ROWS[name](i) for i in test])


# --- what is read ---


@pytest.mark.parametrize("name", SETS)
def test_each_set_in_its_own_format_becomes_prompts_pairs_and_demonstrations(tmp_path, name):
    data = read(name, small(name, tmp_path / "copy"))
    assert (len(data.train_prompts), len(data.heldout_prompts), len(data.demonstrations)) == (12, 8, 12)
    expected = (0, 0) if name == "gsm8k" else (12, 8)
    assert (len(data.train_pairs), len(data.heldout_pairs)) == expected
    assert (data.verifier is not None) == (name == "gsm8k")
    assert any("dropped 0 of 12 rows" in note for note in data.notes)


def test_texts_and_turns_are_the_rows_own(tmp_path):
    pair = next(
        p for p in read("ultrafeedback", small("ultrafeedback", tmp_path / "uf")).train_pairs if "3" in p.chosen
    )
    assert (pair.prompt.messages, pair.chosen, pair.rejected) == (
        ({"role": "user", "content": "Why 3?"},), "Because 3.", "No.")  # fmt: skip
    turns = "\n\nAssistant: What?\n\nHuman: That."
    rows = [hh(i, before=turns) for i in range(8)]
    pair = read("hh_rlhf", copy_of("hh_rlhf", tmp_path / "hh", rows[:4], rows[4:])).train_pairs[0]
    assert [t["role"] for t in pair.prompt.messages] == ["user", "assistant", "user"]
    assert (pair.chosen, pair.rejected) == ("Because.", "No.")
    pair = read("tldr", small("tldr", tmp_path / "tldr")).train_pairs[0]
    assert pair.prompt.text.endswith("\n\nTL;DR:") and (pair.chosen, pair.rejected) == ("I went.", "I stayed.")
    data = read("gsm8k", small("gsm8k", tmp_path / "gsm"))
    shown = data.demonstrations[0]
    answer = shown.prompt.info["answer"]
    assert shown.response == f"{answer - 1000} + 1000 = {answer} apples.\n#### {answer}"
    samples = [Sample("", text, (), (), True, shown.prompt.info) for text in (shown.response, "#### 7")]
    assert data.verifier(samples) == [1.0, 0.0]


def test_rows_that_do_not_fit_are_left_out_and_counted_by_what_was_expected(tmp_path):
    bad = [
        hh(90, chosen=" No."),  # the same answer twice
        hh(91, chosen=" "),  # nothing said
        hh(92, before="\n\nHuman: Hello?"),  # two human turns on end
        hh(93, before="\n\nAssistant: A.\n\nHuman: B?", other_before="\n\nAssistant: C.\n\nHuman: D?"),
        {"chosen": "\n\nHuman: Bye.", "rejected": "\n\nHuman: Bye."},  # nobody answers
        {"chosen": "\n\nHuman: \n\nAssistant: Yes.", "rejected": "\n\nHuman: \n\nAssistant: No."},  # nothing asked
    ]
    test = [hh(i) for i in range(20, 24)]
    data = read("hh_rlhf", copy_of("hh_rlhf", tmp_path, [hh(i) for i in range(8)] + bad, test))
    assert len(data.train_pairs) == 8
    (note,) = (note for note in data.notes if note.startswith("train:"))
    assert note.startswith("train: dropped 6 of 14 rows that do not fit")
    for count, expected in ((2, "a non-empty string"), (1, "two different answers"), (1, "a last turn of role 'assis"),
                            (1, "a system turn at most"), (1, "one assistant turn, or the prompt's")):  # fmt: skip
        assert f"{count}: expected {expected}" in note


def test_malformed_rows_of_the_other_sets(tmp_path):
    rows = [uf(i) for i in range(4)]
    bad = [uf(90, chosen="No."), uf(91, rejected=""), uf(92, chosen=" "), uf(93) | {"chosen": []},
           uf(94) | {"rejected": uf(95)["rejected"]}]  # fmt: skip
    data = read("ultrafeedback", copy_of("ultrafeedback", tmp_path / "uf", rows + bad, [uf(8)]))
    assert len(data.train_pairs) == 4 and "dropped 5 of 9 rows" in data.notes[1]
    rows = [tldr(i) for i in range(4)]
    bad = [tldr(90, chosen=" I stayed. "), tldr(91, rejected=" "), tldr(92) | {"chosen": None}]
    data = read("tldr", copy_of("tldr", tmp_path / "tldr", rows + bad, [tldr(8)]))
    assert len(data.train_pairs) == 4 and "dropped 3 of 7 rows" in data.notes[1]
    rows = [gsm(i) for i in range(4)]
    bad = [gsm(90, "About 7."), gsm(91, "#### 2.5"), gsm(1, "#### 7"), gsm(92) | {"question": ""}]
    data = read("gsm8k", copy_of("gsm8k", tmp_path / "gsm", rows + bad, [gsm(8)]))
    assert len(data.demonstrations) == 4 and "dropped 4 of 8 rows" in data.notes[1]


def test_a_prompt_of_the_test_split_is_not_trained_on_even_when_the_cap_leaves_it_out_there(tmp_path):
    rows = [uf(i) for i in range(12)] + [uf(1, prompt="  WHY 12? ")]
    path = copy_of("ultrafeedback", tmp_path, rows, [uf(i) for i in range(8, 16)])
    data = read("ultrafeedback", path, "data.heldout=1")
    assert len(data.heldout_prompts) == 1
    assert {p.text for p in data.train_prompts} == {f"Why {i}?" for i in range(8)}
    assert "prompts of train_prefs that are in test_prefs too: dropped 5 of 13" in data.notes


def test_caps_draw_prompts_by_a_hash_the_seed_changing_what_is_trained_on_and_nothing_else(tmp_path):
    path = small("tldr", tmp_path, range(60), range(60, 100))
    few = ("data.train=20", "data.heldout=10")
    one, again, other = (read("tldr", path, *few, seed=seed) for seed in (0, 0, 1))
    assert one == again and one.fingerprint != other.fingerprint
    assert one.heldout_prompts == other.heldout_prompts and len(one.heldout_prompts) == 10
    drawn = [{p.id for p in data.train_prompts} for data in (one, other)]
    assert drawn[0] != drawn[1] and len(drawn[0]) == len(drawn[1]) == 20
    first = {p.id for p in read("tldr", path, "data.train=60").train_prompts[:20]}
    assert drawn[0] == first  # a larger cap adds prompts, it does not draw others
    in_order = [f"Trip {i}\n" for i in range(20)]
    assert not all(any(title in p.text for p in one.train_prompts) for title in in_order)  # not the first 20


def test_all_pairs_of_a_prompt_stay_together_and_count_as_one(tmp_path):
    rows = [tldr(i, chosen=f" Summary {k}.") for i in range(10) for k in range(3)]
    data = read("tldr", copy_of("tldr", tmp_path, rows, [tldr(50)]), "data.train=4")
    assert (len(data.train_prompts), len(data.train_pairs)) == (4, 12)


def test_limits_are_filled_up_from_the_prompts_that_are_left(tmp_path, tokenizer):
    rows = [uf(i, chosen="x" * 99 if i % 2 else None) for i in range(20)]
    path = copy_of("ultrafeedback", tmp_path, rows, [uf(i) for i in range(20, 24)])
    data = read("ultrafeedback", path, "data.train=6", "data.max_completion_tokens=50", tokenizer=tokenizer)
    assert len(data.train_prompts) == 6 and all(len(p.chosen) < 50 for p in data.train_pairs)
    (note,) = (note for note in data.notes if note.startswith("data.max_completion_tokens=50"))
    assert "mean 100.0 tokens" in note


# --- where it lies ---


def test_all_forms_of_a_local_copy_give_the_same_data(tmp_path):
    train, test = [uf(i) for i in range(12)], [uf(i) for i in range(12, 20)]
    as_hub = copy_of("ultrafeedback", tmp_path / "hub", train, test)
    flat = tmp_path / "flat"
    lines(flat / "train_prefs.jsonl.gz", train)
    lines(flat / "test_prefs.jsonl.gz", test)
    saved = tmp_path / "saved"
    splits = {"train_prefs": train, "test_prefs": test}
    datasets.DatasetDict({k: datasets.Dataset.from_list(v) for k, v in splits.items()}).save_to_disk(str(saved))
    found = [read("ultrafeedback", path) for path in (as_hub, flat, saved)]
    assert len({data.fingerprint for data in found}) == 1
    assert found[0].train_pairs == found[1].train_pairs == found[2].train_pairs


def test_shards_are_read_as_one_and_a_missing_one_is_missed(tmp_path):
    for n in range(2):
        parquet(tmp_path / "main" / f"train-0000{n}-of-00002.parquet", [gsm(i) for i in range(n, 8, 2)])
    parquet(tmp_path / "main" / "test-00000-of-00001.parquet", [gsm(9)])
    parquet(tmp_path / "socratic" / "train-00000-of-00001.parquet", [gsm(99)])
    assert len(read("gsm8k", tmp_path).train_prompts) == 8
    (tmp_path / "main" / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(DataError, match="1 of 2 files of the split train"):
        read("gsm8k", tmp_path)


@pytest.mark.parametrize("form", ["parquet", "jsonl.gz", "saved"])
def test_a_copy_that_is_not_split_holds_out_prompts_by_their_hash(tmp_path, form):
    rows, path = [gsm(i) for i in range(20)], tmp_path / f"mine.{form}"
    if form == "saved":
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    else:
        (parquet if form == "parquet" else lines)(path, rows)
    data = read("gsm8k", path, "data.heldout=5")
    assert (len(data.train_prompts), len(data.heldout_prompts)) == (15, 5)
    assert "no split test: 5 prompts of the only one are held out, by their hash" in data.notes


def test_a_copy_in_the_hubs_cache_is_used_and_its_revision_said(tmp_path):
    repo, commit = tmp_path / "hub-cache" / "datasets--openai--gsm8k", "e53f048856ff4f594e959d75785d2c2d37b678ee"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    small("gsm8k", repo / "snapshots" / commit)
    plain = read("gsm8k", None)
    assert plain.notes[0].startswith(f"openai/gsm8k, revision {commit}")
    pinned = read("gsm8k", None, f"data.revision={commit}")
    assert pinned.train_prompts == plain.train_prompts and pinned.fingerprint != plain.fingerprint
    next((repo / "snapshots" / commit / "main").glob("test-*")).unlink()  # half of it is no copy
    with pytest.raises(DataError, match="not in the hub's local cache"):
        read("gsm8k", None)


# --- what is refused ---


@pytest.mark.parametrize("name", SETS)
def test_without_a_hub_the_error_comes_at_once_and_says_what_to_do(name):
    started = time.monotonic()
    with pytest.raises(DataError) as refused:
        read(name, None, "data.revision=abc")
    assert time.monotonic() - started < 15
    message = str(refused.value)
    for part in ("not in the hub's local cache at data.revision=abc", "did not give it", "data.path=FOLDER", name):
        assert part in message


def test_a_copy_that_is_no_copy_is_refused_with_what_was_expected(tmp_path):
    def refusal(name: str, path: Path, *overrides: str) -> str:
        with pytest.raises(DataError) as refused:
            read(name, path, *overrides)
        return str(refused.value)

    assert "no such file or folder" in refusal("gsm8k", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "no file of the split train; expected a folder of save_to_disk" in refusal("gsm8k", tmp_path / "empty")
    (tmp_path / "a.csv").write_text("question,answer\n")
    assert "found a.csv; expected files of one kind: .parquet" in refusal("gsm8k", tmp_path / "a.csv")
    (tmp_path / "a.parquet").write_bytes(b"no parquet")
    assert "cannot read a.parquet" in refusal("gsm8k", tmp_path / "a.parquet")
    other = parquet(tmp_path / "b.parquet", [tldr(1), tldr(2)])
    assert "no column question among prompt, chosen, rejected" in refusal("gsm8k", other)
    equal = parquet(tmp_path / "c.parquet", [tldr(1, chosen="I stayed.")])
    assert "no row fits" in refusal("tldr", equal) and "the same text as chosen" in refusal("tldr", equal)
    one = parquet(tmp_path / "d.parquet", [gsm(1)])
    assert "data.train: data.path=" in refusal("gsm8k", one)
    part = small("hh_rlhf", tmp_path / "hh")
    shutil.rmtree(part / "helpful-online")
    assert "no file of the split train in its folder helpful-online" in refusal("hh_rlhf", part)
    assert len(read("hh_rlhf", part, "data.folders=[helpful-base]").train_prompts) == 3
    datasets.DatasetDict({"train": datasets.Dataset.from_list([uf(1)])}).save_to_disk(str(tmp_path / "saved"))
    assert "no split train_prefs, only train" in refusal("ultrafeedback", tmp_path / "saved")


# --- runs ---


def test_runs_on_local_copies_train_and_measure(tmp_path):
    from safetensors.torch import load_file

    uf_copy, gsm_copy = small("ultrafeedback", tmp_path / "uf"), small("gsm8k", tmp_path / "gsm")
    short = ("steps=2", "probe.every=2", "algo.optimizer.warmup_steps=0", "sampling.max_new_tokens=8")
    for algo, name, path in (("sft", "ultrafeedback", uf_copy), ("dpo", "ultrafeedback", uf_copy),
                             ("grpo", "gsm8k", gsm_copy)):  # fmt: skip
        formula = "verifier" if name == "gsm8k" else "none"
        run = execute(tmp_path / algo, f"algo={algo}", f"data={name}", f"data.path={path}",
                      f"reward.formula={formula}", *short)  # fmt: skip
        rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        last = [row for row in rows if row["phase"] == "probe"][-1]
        assert last["step"] == 2
        assert ("accuracy/greedy" in last) == (name == "gsm8k")
        if algo != "grpo":  # a random policy solves no question, so its groups have no signal
            assert adapter_moved(load_file(run / "adapter" / "adapter_model.safetensors"))


def test_the_config_of_each_set_is_kept_whole():
    for name in SETS:
        data = asdict(composed("algo=sft", f"data={name}"))["data"]
        assert data["name"] == name and data["kind"] == "hub" and data["path"] is None


def test_the_root_of_a_repository_is_asked_for_by_names_it_has(monkeypatch):
    asked = []
    monkeypatch.setattr(sources, "snapshot", lambda repo, wanted, complete, **which: asked.extend(wanted) or 1 / 0)
    cfg = SimpleNamespace(repo="a/b", revision=None, folders=["."], train_split="train", heldout_split="test")
    with pytest.raises(ZeroDivisionError):
        sources._fetched(cfg)
    names = ["train-00000-of-00001.parquet", "test.jsonl", "README.md"]
    assert list(filter_repo_objects(names, allow_patterns=asked)) == names[:2]
