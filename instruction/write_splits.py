"""Write the splits of instruction tuning into files: train.jsonl, validation.jsonl, test.jsonl.

For whatever must see the training rows and nothing of the others, such as pre-training before an
instruction tuning whose test is meant to be new to the model:

    python instruction/write_splits.py --data alpaca --out splits/alpaca
    python instruction/write_splits.py --data alpaca --form text --out splits/alpaca-texts
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

from dataclasses import dataclass

import polars as pl

from gpt2.support.errors import UserError
from gpt2.support.flags import flag, parse_flags
from gpt2.support.script import run_script
from gpt2.tokenizer import get_encoding
from instruction.data import load_splits, print_splits
from instruction.sources import DataSettings
from instruction.template import Template


@dataclass
class OutputSettings:
    """Output"""

    out: str = flag("", "new folder that gets the three files")
    form: str = flag(
        "columns", "columns: instruction, input and output; text: one text, with the template's "
        "words around them, as instruction tuning shows it to the model",
        choices=("columns", "text"),
    )  # fmt: skip


def main() -> None:
    data, output = parse_flags([DataSettings, OutputSettings], __doc__.splitlines()[0])
    if not output.out:
        raise UserError("--out is missing: name the folder that gets the files")
    folder = Path(output.out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--out {folder}: is there already; name a new folder")
    template = Template()
    splits = load_splits(data, template, get_encoding("mini"), data.split_seed)
    print_splits(splits)
    folder.mkdir(parents=True, exist_ok=True)
    for split, frame in splits.items():
        if output.form == "text":
            rows = frame.select("instruction", "input", "output").rows()
            texts = [template.prompt(asked, given) + answer for asked, given, answer in rows]
            frame = pl.DataFrame({"text": texts}, schema={"text": pl.String})
        frame.write_ndjson(folder / f"{split}.jsonl")
        print(f"{folder / f'{split}.jsonl'}: {len(frame):,} rows")


if __name__ == "__main__":
    run_script(main)
