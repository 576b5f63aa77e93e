"""Flags made from dataclass fields.

Each dataclass of settings is one heading of `--help`; each of its fields is one flag:

    @dataclass
    class Settings:
        '''Reading'''
        max_length: int = flag(512, "tokens kept of each text; longer rows cost time", at_least=1)
"""

from __future__ import annotations

import argparse
import dataclasses
import difflib
import json
import math
import os
import shlex
import sys
import typing
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from gpt2.support.errors import UserError


def flag(
    default: Any,
    help: str,
    choices: Sequence[str] | None = None,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    may_change: bool = False,
    names: Sequence[str] | None = None,
    in_older_runs: Any = None,
) -> Any:
    """A dataclass field that is a flag as well. `help` gives the unit and why one would change it;
    the bounds (inclusive, but for `above`) are checked when flags are read. A flag that
    `may_change` may have another value in a resumed run. One with `names` is one of them or else a
    path, which a resumed run finds from any folder. `in_older_runs` is what runs did before there
    was this flag, where that is not the default: resumed, they go on with it."""
    bounds = {"at_least": at_least, "above": above, "at_most": at_most}
    return dataclasses.field(
        default=default,
        metadata={"help": help, "choices": choices, "bounds": bounds, "may_change": may_change,
                  "names": names,
                  "in_older_runs": default if in_older_runs is None else in_older_runs},
    )  # fmt: skip


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """argparse prints the whole usage before its error; here the error is the only line."""
        raise UserError(f"{message} (see --help)")


def parse_flags(
    settings_classes: Sequence[type],
    description: str,
    argv: Sequence[str] | None = None,
    add_arguments: Callable[[argparse.ArgumentParser], None] | None = None,
) -> list[Any]:
    """One instance of each dataclass in `settings_classes`, filled from the command line.

    With `add_arguments`, which may add positional arguments to the parser, the argparse namespace
    that holds them is appended to the result.

    If one of the flags is `--resume`, what is not given comes from that run's config.json.

    Raises UserError for an unknown flag, a value of the wrong type or out of its bounds, or one
    that contradicts the run to resume.
    """
    parser = _Parser(description=description, allow_abbrev=False, formatter_class=_HelpFormatter)
    if any("resume" in cls.__dataclass_fields__ for cls in settings_classes):
        parser.epilog = "(*) may change when a run is resumed; everything else stays as it began"
    if add_arguments:
        add_arguments(parser)
    for cls in settings_classes:
        group = parser.add_argument_group(cls.__doc__.splitlines()[0].rstrip("."))
        types = typing.get_type_hints(cls)
        for field in dataclasses.fields(cls):
            _add_flag(group, field, types[field.name])

    # Intermixed, so that `RUN --json TEXT` finds both positionals.
    namespace, unknown = parser.parse_known_intermixed_args(argv)
    if unknown:
        known = list(parser._option_string_actions)
        close = difflib.get_close_matches(unknown[0].split("=")[0], known, n=1)
        hint = f"; did you mean {close[0]}?" if close else " (see --help)"
        raise UserError(f"unknown argument '{unknown[0]}'{hint}")

    fields = {field.name: field for cls in settings_classes for field in dataclasses.fields(cls)}
    # argparse gives a list where a flag has several values; the dataclasses have tuples.
    values = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in vars(namespace).items()
        if name in fields
    }
    for name, value in values.items():
        for one in value if isinstance(value, tuple) else [value]:
            _check_bounds(fields[name], one)
    if values.get("resume"):
        values = _settings_to_resume(values, fields)
    instances = []
    for cls in settings_classes:
        names = [field.name for field in dataclasses.fields(cls)]
        instances.append(cls(**{name: values[name] for name in names if name in values}))
    return [*instances, namespace] if add_arguments else instances


def flag_name(field_name: str) -> str:
    """`max_length` -> `--max-length`."""
    return "--" + field_name.replace("_", "-")


def _settings_to_resume(
    given: dict[str, Any], fields: dict[str, dataclasses.Field]
) -> dict[str, Any]:
    """The settings of the run that `--resume` names, changed where a given flag may change them."""
    if given.get("overwrite"):
        raise UserError("--overwrite would remove the run that --resume goes on with; give one")
    if given["resume"] == "auto" and not given.get("out"):
        raise UserError("--resume auto needs --out RUN, the folder where it looks for the run")
    folder = Path(given["out"] if given["resume"] == "auto" else given["resume"])
    file = folder / "config.json"
    if not file.is_file():
        if given["resume"] == "auto":
            return given | {"resume": ""}
        raise UserError(f"--resume {folder}: is not a run folder (no config.json in it)")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        saved = {name: value for group in config["settings"].values() for name, value in
                 group.items()}  # fmt: skip
        script = os.path.basename(config["command"][0])
        started_in = folder_of_last_start(config)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise UserError(
            f"--resume {folder}: {file} is not a run's ({error!r}); name the run folder, not what "
            "is in it"
        ) from None
    if script != os.path.basename(sys.argv[0]):
        raise UserError(f"--resume {folder}: is a run of {script}; resume it with that script")

    # What the run's code did not know yet, it did as `in_older_runs` of the flag says.
    saved = {name: field.metadata["in_older_runs"] for name, field in fields.items()} | saved
    # JSON has no tuples; a flag with several values is one, as it was when the run began.
    saved = {name: tuple(v) if isinstance(v, list) else v for name, v in saved.items()}
    paths = {name for name, field in fields.items() if field.metadata["names"] is not None}
    for name in paths:
        saved[name] = path_from_here(saved[name], started_in, fields[name].metadata["names"])

    place = {"resume": str(folder), "out": str(folder), "overwrite": False}
    if Path(given.get("out", folder)).resolve() != folder.resolve():
        raise UserError(f"--out {given['out']}: a resumed run stays in its folder, {folder}")
    changed = {
        name: value
        for name, value in given.items()
        if name not in place and name in saved and value != saved[name]
        and not (name in paths and _same_path(value, saved[name]))
    }  # fmt: skip
    for name, value in changed.items():
        if not fields[name].metadata["may_change"]:
            raise UserError(
                f"{flag_name(name)} {value} contradicts the run in {folder}, which has "
                f"{saved[name]}; leave it out to go on with that run, or start a new one"
            )
    longer = {"epochs", "max_steps", "patience"}
    if (folder / "results.json").is_file() and not changed.keys() & longer:
        asked = given.get("export")
        if asked and not (asked == saved["export"] and Path(asked).is_dir()):
            raise UserError(
                f"{folder}: this run is complete; to export it: python -m gpt2.weights.export "
                f"{shlex.quote(str(folder))} {shlex.quote(asked)}"
            )
        print(
            f"{folder}: this run is complete; with more --epochs, or another --max-steps or "
            "--patience where that ended it, it goes on"
        )
        raise SystemExit(0)
    known = {name: value for name, value in saved.items() if name in fields}
    return known | given | place


def folder_of_last_start(config: dict[str, Any]) -> str:
    """Where a run was started or last resumed, as its config.json says; "" for older runs."""
    return [config, *config.get("resumed", [])][-1].get("folder", "")


def path_from_here(value: Any, started_in: str, names: Sequence[str]) -> Any:
    """A path, or several, as given in the folder `started_in`: so that it means the same here. One
    of the `names`, and what is not there (any more), stays as it is: it may be here, or a name of
    the hub."""
    if isinstance(value, (list, tuple)):
        return tuple(path_from_here(one, started_in, names) for one in value)
    path = value.split(":")[0]  # what follows names columns
    elsewhere = Path(started_in).resolve() != Path.cwd()
    if elsewhere and value and value not in names and Path(started_in, path).exists():
        return str(Path(started_in, value))
    return value


def _same_path(one: Any, other: Any) -> bool:
    return isinstance(one, str) and os.path.realpath(one) == os.path.realpath(other)


def _add_flag(group: argparse._ArgumentGroup, field: dataclasses.Field, annotation: Any) -> None:
    shown = "" if field.default in (None, "", ()) else f" [{_plain(field.default)}]"
    may_change = field.metadata["may_change"]
    mark = " (*)" if may_change else ""
    options: dict[str, Any] = {
        "dest": field.name,
        "default": argparse.SUPPRESS,  # so that what is given can be told from defaults
        "help": (field.metadata["help"] + shown + mark).replace("%", "%%"),
    }
    if annotation is bool:
        # --no-FLAG too: a resumed run may have to switch off what it began with.
        options["action"] = argparse.BooleanOptionalAction if may_change else "store_true"
        options["help"] = field.metadata["help"] + mark
    else:
        optional = [kind for kind in typing.get_args(annotation) if kind is not type(None)]
        options["type"] = optional[0] if optional else annotation
        options["choices"] = field.metadata["choices"]
        if typing.get_origin(annotation) is tuple:  # tuple[str, ...]: one or several values
            options |= {"type": typing.get_args(annotation)[0], "nargs": "+"}
        if options["choices"] is None:
            options["metavar"] = {int: "N", float: "X"}.get(options["type"], "TEXT")
    group.add_argument(flag_name(field.name), **options)


def _plain(value: Any) -> str:
    if isinstance(value, tuple):
        return " ".join(map(_plain, value))
    return f"{value:g}" if isinstance(value, float) else str(value)


class _HelpFormatter(argparse.HelpFormatter):
    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=28, width=100)


def _check_bounds(field: dataclasses.Field, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    if not math.isfinite(value):
        raise UserError(f"{flag_name(field.name)} is {value}, but must be a finite number")
    bounds = field.metadata["bounds"]
    if not (
        (bounds["at_least"] is None or value >= bounds["at_least"])
        and (bounds["above"] is None or value > bounds["above"])
        and (bounds["at_most"] is None or value <= bounds["at_most"])
    ):
        wanted = " and ".join(
            f"{name.replace('_', ' ')} {_plain(bound)}"
            for name, bound in bounds.items()
            if bound is not None
        )
        raise UserError(f"{flag_name(field.name)} is {_plain(value)}, but must be {wanted}")
