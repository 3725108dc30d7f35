"""Where a set of the hub lies: a local copy, the hub's cache, or the hub. Its splits are tables on disk, not in memory.

A local copy (`data.path`) is one of
    a folder that `save_to_disk` of the library datasets wrote: the whole set, or a part of it that is not split
    a folder of files as they lie in the hub's repository: inside its `data.folders`, or right in the folder
    one .parquet, .jsonl or .jsonl.gz file
A file is of a split when its name is the split's, then "-" or "." (train-00000-of-00002.parquet, train.jsonl.gz).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from align.data.errors import DataError
from align.hub import HubError, snapshot
from align.refusals import first_line

READERS = {".parquet": "parquet", ".jsonl": "json", ".jsonl.gz": "json"}


@dataclass(frozen=True)
class Source:
    """Two splits of a set, with the columns that are read. `heldout` is None where a local copy has only one."""

    name: str  # for messages
    note: str
    train: Any  # datasets.Dataset
    heldout: Any | None


def open_source(cfg: Any) -> Source:
    """The set of `cfg` (repo, revision, path, folders, train_split, heldout_split, columns). Raises DataError."""
    if cfg.path is None:
        folder = _fetched(cfg)
        name, note = cfg.repo, f"{cfg.repo}, revision {folder.name}"
        train, heldout = (_read(name, _files(folder, cfg.folders, s)) for s in (cfg.train_split, cfg.heldout_split))
    else:
        path = Path(cfg.path).expanduser()
        name, note = f"data.path={path}", f"{cfg.repo}, the local copy {path}"
        train, heldout = _copy(cfg, path)
    unread = sorted(set(train.column_names) - set(cfg.columns))
    note += f"; columns that are not read: {', '.join(unread)}" if unread else ""
    splits = [None if split is None else _columns(name, split, cfg.columns) for split in (train, heldout)]
    return Source(name, note, *splits)


def _fetched(cfg: Any) -> Path:
    """The repository's files of both splits, in the folder of their commit."""
    splits = (cfg.train_split, cfg.heldout_split)
    wanted = [str(PurePosixPath(folder, f"{split}[-.]*")) for folder in cfg.folders for split in splits]
    try:
        found = snapshot(
            cfg.repo,
            wanted,
            lambda folder: not any(_missing(folder, cfg.folders, split) for split in splits),
            repo_type="dataset",
            revision=cfg.revision,
        )
    except HubError as error:
        at = f" at data.revision={cfg.revision}" if cfg.revision else ""
        raise DataError(
            f"data.repo={cfg.repo}: it is not in the hub's local cache{at}, and the hub did not give it ({error})\n"
            f"Without a hub: data.path=FOLDER or data.path=FILE with a copy of it (conf/data/{cfg.name}.yaml says of "
            "which form), or data=annotator or data=arithmetic, which need none"
        ) from error
    for split in splits:
        if missing := _missing(found, cfg.folders, split):
            raise DataError(f"data.repo={cfg.repo}: {missing}; was it laid out anew? data.revision=COMMIT names an "
                            "older state of it")  # fmt: skip
    return found


def _copy(cfg: Any, path: Path) -> tuple[Any, Any | None]:
    """(training split, held-out split or None) of a local copy."""
    if not path.exists():
        raise DataError(f"data.path={path}: no such file or folder")
    if path.is_file():
        return _read(f"data.path={path}", [path]), None
    if any((path / name).is_file() for name in ("dataset_dict.json", "state.json")):
        return _saved(cfg, path)
    inside = [folder for folder in cfg.folders if (path / folder).is_dir()]
    folders = cfg.folders if inside else ["."]
    if missing := _missing(path, folders, cfg.train_split):
        raise DataError(
            f"data.path={path}: {missing}; expected a folder of save_to_disk, files named as on the hub "
            f"({cfg.train_split}*.parquet, .jsonl or .jsonl.gz), or the path of one file"
        )
    files = [_files(path, folders, split) for split in (cfg.train_split, cfg.heldout_split)]
    if files[1] and (missing := _missing(path, folders, cfg.heldout_split)):
        raise DataError(f"data.path={path}: {missing}")
    train, heldout = (_read(f"data.path={path}", some) if some else None for some in files)
    return train, heldout


def _saved(cfg: Any, path: Path) -> tuple[Any, Any | None]:
    from datasets import Dataset, load_from_disk

    try:
        saved = load_from_disk(str(path))
    except Exception as error:  # of a damaged folder: pyarrow's, json's and datasets' own
        raise DataError(f"data.path={path}: datasets cannot load it: {first_line(error)}") from error
    if isinstance(saved, Dataset):
        return saved, None
    if cfg.train_split not in saved:
        raise DataError(f"data.path={path}: it has no split {cfg.train_split}, only {', '.join(saved)}; name another "
                        "with data.train_split")  # fmt: skip
    return saved[cfg.train_split], saved.get(cfg.heldout_split)


def _files(root: Path, folders: Sequence[str], split: str) -> list[Path]:
    return [file for folder in folders for file in _inside(root / folder, split)]


def _inside(folder: Path, split: str) -> list[Path]:
    return sorted(file for file in folder.glob(f"{split}[-.]*") if _ending(file))


def _missing(root: Path, folders: Sequence[str], split: str) -> str | None:
    """What is missing of a split: every folder has files of it, and of N shards (...-of-0000N) all are there."""
    for folder in folders:
        files = _inside(root / folder, split)
        if not files:
            return f"no file of the split {split}" + (f" in its folder {folder}" if folder != "." else "")
        shards = files[0].name.partition(".")[0].rpartition("-of-")[2]
        if shards.isdigit() and int(shards) != len(files):
            return f"{len(files)} of {int(shards)} files of the split {split} ({files[0].name} ...)"
    return None


def _read(name: str, files: Sequence[Path]) -> Any:
    """Files of one kind as a table in the cache of datasets."""
    import datasets
    from pyarrow.dataset import ParquetFragmentScanOptions

    kinds = {READERS.get(_ending(file)) for file in files}
    kind = kinds.pop() if len(kinds) == 1 else None
    if kind is None:
        raise DataError(f"{name}: found {files[0].name}; expected files of one kind: {', '.join(READERS)}")
    # by default a file is held whole while it is read: 760 MB for 61,000 pairs of 380 MB, 450 MB so
    slowly = ParquetFragmentScanOptions(pre_buffer=False, use_buffered_stream=True)
    options = {"fragment_scan_options": slowly} if kind == "parquet" else {}
    shown = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        return datasets.load_dataset(kind, data_files=[str(file) for file in files], split="train", **options)
    except Exception as error:  # whatever pyarrow and datasets raise of a file that is not what its name says
        reason = first_line(error.__cause__ or error)
        raise DataError(f"{name}: datasets cannot read {files[0].name}: {reason}") from error
    finally:
        if not shown:
            datasets.enable_progress_bars()


def _ending(file: Path) -> str:
    return next((end for end in READERS if file.name.endswith(end)), "")


def _columns(name: str, table: Any, columns: Sequence[str]) -> Any:
    missing = [column for column in columns if column not in table.column_names]
    if missing:
        raise DataError(f"{name}: no column {missing[0]} among {', '.join(table.column_names)}; expected "
                        f"{', '.join(columns)}")  # fmt: skip
    return table.select_columns(list(columns))
