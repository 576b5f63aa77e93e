"""Any data set of the Hugging Face hub: which of its tables are its splits, and its class names.

A data set is a repository with tables in it and a card, README.md, which may say under `configs:`
which table belongs to which split, and under `dataset_info:` what the classes are called. What the
card does not say is read from the names of files and folders:

    train.csv  test.csv  data/train-00000-of-00001.parquet  en/validation.jsonl  test/part-0.jsonl
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from huggingface_hub.repocard import metadata_load

from gpt2.support.distributed import on_rank_0
from gpt2.support.errors import UserError
from gpt2.support.files import is_table_name, table_suffix
from gpt2.support.hub import download_dataset, list_files
from gpt2.support.splits import SPLIT_NAMES, hub_name

# The formats that are read. Where the same rows come in several, the first of these is taken.
_FORMATS = ((".parquet",), (".jsonl", ".ndjson", ".json"), (".csv", ".tsv"))
_SUFFIXES = tuple(suffix for suffixes in _FORMATS for suffix in suffixes)

# Words for splits, as the datasets library reads them.
_WORDS = SPLIT_NAMES | {"testing": "test", "eval": "test", "evaluation": "test"}

Splits = dict[str, list[str]]  # name of a split -> paths of its tables inside the repository


@dataclass
class HubDataset:
    """A data set whose tables lie in the cache."""

    files: dict[str, list[Path]]  # "train", "validation", "test", those that it has -> tables
    class_names: dict[str, list[str]]  # column with numbers -> the names of its classes 0, 1, ...


def pin_revision(data: str, revision: str) -> str:
    """The commit at which the data set of the hub that `data` names is read: that of `revision`,
    else of the @REVISION in `data`, else the newest. "" if `data` is not of the hub.

    Raises UserError if there is no such data set, and if neither hub nor cache knows its files.
    """
    name = hub_name(data)
    if not name:
        if revision:
            raise UserError("--revision is for data sets of the hub, --data OWNER/NAME")
        return ""
    wanted = revision or name["revision"] or "main"
    try:
        # One process asks: between two questions the newest commit may become another.
        return on_rank_0(lambda: list_files("dataset", name["repository"], wanted)[0])
    except UserError as error:
        raise UserError(f"--data {data}: no such file or folder here, and {error}") from None


def licence_of_dataset(data: str, commit: str) -> str:
    """A line on the data set of the hub that `data` names: its name, its commit, and the licence
    that its card names."""
    repository = hub_name(data)["repository"]
    _, sizes = list_files("dataset", repository, commit)
    card = _read_card(repository, commit, []) if "README.md" in sizes else {}
    licence = card.get("license") or "its card names no licence"
    return f"{repository} of the hub, commit {commit[:12]}: {licence}"


def open_dataset(data: str, commit: str, notes: list[str]) -> HubDataset:
    """The data set of the hub that `data` names, at `commit`, downloaded or from the cache. Which
    tables are taken and what is not is told in `notes`.

    Raises UserError if no table is known to be for training, if there are several configurations
    and `data` names none, and if something cannot be downloaded.
    """
    name = hub_name(data)
    repository = name["repository"]
    _, sizes = list_files("dataset", repository, commit)
    tables = [
        file
        for file in sizes
        if is_table_name(Path(file)) and table_suffix(Path(file)) in _SUFFIXES
    ]
    card = _read_card(repository, commit, notes) if "README.md" in sizes else {}
    try:
        configs = _configs_of_card(card, tables) or _configs_of_names(tables)
        configs = {
            variant: _one_format(splits)
            for config in configs
            for variant, splits in _variants(config, configs[config]).items()
        }
        config = _choose_config(data, name["config"], configs, card)
        class_names = _class_names_of_card(card, config)
    except (AttributeError, KeyError, TypeError, ValueError, re.error):
        raise UserError(
            f"--data {data}: `configs:` or `dataset_info:` of its card are not as the hub "
            "describes them; download its files, and name one"
        ) from None
    found = configs[config]
    splits = {split: found[split] for split in ("train", "validation", "test") if split in found}
    if "train" not in splits:
        raise UserError(
            f"--data {data}: none of its splits is called train, they are {_list(found)}; download "
            "the files of the one you want, and name them"
        )
    left = [split for split in found if split not in splits]
    megabytes = sum(sizes[file] for files in splits.values() for file in files) / 1e6
    notes.append(
        f"{repository} of the hub, commit {commit}"
        + (f", configuration {config}" if len(configs) > 1 else "")
        + f", {megabytes:,.1f} MB"
        + "".join(f"; {split}: {_list(files, 2)}" for split, files in splits.items())
        + (f"; not used: {_list(left)}" if left else "")
    )
    files = {split: download_dataset(repository, paths, commit) for split, paths in splits.items()}
    for column in _named_in_parquet(files["train"][0]):
        class_names.pop(column, None)  # the reader has put the names there
    return HubDataset(files, class_names)


def name_classes(labels: pl.Series, names: Sequence[str]) -> pl.Series:
    """Class numbers (String) by the names of the card; -1, which stands for no label, is null."""
    numbers = [str(number) for number in range(len(names))]
    return labels.replace([*numbers, "-1"], [*names, None])


# ---- which tables are which split


def _configs_of_card(card: dict[str, Any], tables: list[str]) -> dict[str, Splits]:
    """What `configs:` says: a name, and either patterns for each split or one for all of them."""
    configs = {}
    for entry in card.get("configs") or []:
        folder = str(entry.get("data_dir") or "").removeprefix("./").strip("/")
        inside = [file for file in tables if not folder or file.startswith(folder + "/")]
        wanted = entry.get("data_files") or "**"
        wanted = wanted if isinstance(wanted, list) else [wanted]
        if isinstance(wanted[0], dict):
            splits = {
                str(part["split"]): _matching(inside, folder, part["path"]) for part in wanted
            }
        else:
            splits = _splits_of_names(_matching(inside, folder, wanted))
        splits = {split: files for split, files in splits.items() if files}
        if splits:
            configs[str(entry["config_name"])] = splits
    return configs


def _matching(files: list[str], folder: str, patterns: str | list[str]) -> list[str]:
    """The files that one of the patterns names: `*` inside a folder, `**` through folders."""
    expressions = []
    for pattern in [patterns] if isinstance(patterns, str) else patterns:
        path = f"{folder}/{pattern.removeprefix('./')}".lstrip("/")
        pieces = re.split(r"(\*\*/|\*\*|\*|\?|\[[^\]]+\])", path)
        meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
        expressions.append(
            "".join(
                piece.replace("[!", "[^")
                if piece.startswith("[")
                else meaning.get(piece, re.escape(piece))
                for piece in pieces
            )
        )
    return [file for file in files if any(re.fullmatch(one, file) for one in expressions)]


def _configs_of_names(tables: list[str]) -> dict[str, Splits]:
    """Without a word in the card, a folder whose name is no split's is a configuration."""
    files: dict[str, list[str]] = {}
    for table in tables:
        folders = table.removeprefix("data/").split("/")[:-1]
        config = folders[0] if folders and not _split_in(folders[0]) else "default"
        files.setdefault(config, []).append(table)
    return {config: _splits_of_names(of_config) for config, of_config in files.items()}


def _splits_of_names(tables: list[str]) -> Splits:
    """The split of each table by its file's name, else by its folder's. If no name says one, all
    are for training; if some do, each of the others is by itself, under its own name."""
    splits: Splits = {}
    for table in tables:
        found = [split for part in reversed(table.split("/")) if (split := _split_in(part))]
        splits.setdefault(found[0] if found else table, []).append(table)
    return splits if splits.keys() & set(_WORDS.values()) else {"train": tables}


def _split_in(name: str) -> str | None:
    """`imdb_train-00000-of-00001.parquet` -> "train"; None if no word of the name is a split's."""
    words = re.split("[^a-z]+", name.lower())
    return next((_WORDS[word] for word in words if word in _WORDS), None)


def _variants(config: str, splits: Splits) -> dict[str, Splits]:
    """The configuration with splits of our names. Without `train`, but with `train_sft`,
    `test_sft`, `train_gen` and `test_gen`, these are two configurations, `sft` and `gen`."""
    named: Splits = {}
    for split, files in splits.items():
        named.setdefault(_WORDS.get(split.lower(), split), []).extend(files)
    if "train" in named or not named:
        return {config: named}
    if len(named) == 1:  # whatever it is called, it is all there is
        return {config: {"train": next(iter(named.values()))}}
    variants: dict[str, Splits] = {}
    for split, files in named.items():
        word, _, rest = split.partition("_")
        if word in _WORDS and rest:
            variant = rest if config == "default" else f"{config}.{rest}"
            variants.setdefault(variant, {})[_WORDS[word]] = files
    with_train = {variant: found for variant, found in variants.items() if "train" in found}
    return with_train or {config: named}


def _one_format(splits: Splits) -> Splits:
    """The tables of one format, so that no row is read from two; the others by themselves."""
    for suffixes in _FORMATS:
        kept = {
            split: [file for file in files if table_suffix(Path(file)) in suffixes]
            for split, files in splits.items()
        }
        if kept.get("train"):
            left = [f for split, files in splits.items() for f in files if f not in kept[split]]
            kept = {split: files for split, files in kept.items() if files}
            return kept | {file: [file] for file in left}
    return splits


def _choose_config(
    data: str, wanted: str | None, configs: dict[str, Splits], card: dict[str, Any]
) -> str:
    if not configs:
        repository = hub_name(data)["repository"]
        raise UserError(
            f"--data {data}: has no Parquet, CSV or JSON files; the hub may have converted them: "
            f"--data {repository}@refs/convert/parquet"
        )
    if wanted:
        if wanted not in configs:
            raise UserError(f"--data {data}: has no configuration {wanted}, but {_list(configs)}")
        return wanted
    if len(configs) == 1:
        return next(iter(configs))
    for entry in card.get("configs") or []:
        if (entry.get("default") or entry["config_name"] == "default") and (
            entry["config_name"] in configs
        ):
            return entry["config_name"]
    raise UserError(
        f"--data {data}: has several configurations, {_list(configs)}; name one: "
        f"--data {hub_name(data)['repository']}:{next(iter(configs))}"
    )


def _list(names: Iterable[str], most: int = 20) -> str:
    names = list(names)
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


# ---- the card, and what the classes are called


def _read_card(repository: str, commit: str, notes: list[str]) -> dict[str, Any]:
    """The YAML at the beginning of README.md."""
    (path,) = download_dataset(repository, ["README.md"], commit)
    try:
        return metadata_load(path) or {}
    except Exception as error:  # of the YAML library, which is not ours
        reason = str(error).splitlines()[0]
        notes.append(f"its card cannot be read ({reason}); the splits are as the files' names say")
        return {}


def _class_names_of_card(card: dict[str, Any], config: str) -> dict[str, list[str]]:
    """{column: names of its classes} from `dataset_info:`, one entry or one a configuration."""
    entries = card.get("dataset_info") or []
    entries = entries if isinstance(entries, list) else [entries]
    if len(entries) > 1:
        entries = [entry for entry in entries if entry.get("config_name") == config]
    found = {}
    for feature in (feature for entry in entries for feature in entry.get("features") or []):
        kind = feature.get("dtype")
        if isinstance(kind, dict) and "class_label" in kind:
            names = kind["class_label"]["names"]  # a list, or {"0": name, "1": name}
            ordered = sorted(names, key=int) if isinstance(names, dict) else range(len(names))
            found[feature["name"]] = [str(names[number]) for number in ordered]
    return found


def _named_in_parquet(file: Path) -> list[str]:
    """The columns whose classes a Parquet file itself names, as the datasets library writes it."""
    if file.suffix != ".parquet":
        return []
    try:
        features = json.loads(pl.read_parquet_metadata(file)["huggingface"])["info"]["features"]
    except Exception:  # written by others, or damaged, which the reader will say
        return []
    return [name for name, kind in features.items() if kind.get("_type") == "ClassLabel"]
