"""Beside GPT-2: fine-tune a pre-trained encoder (DistilBERT, BERT, RoBERTa) on the same rows.

    python baselines/train_encoder.py                       # DistilBERT, which it downloads
    python baselines/train_encoder.py --model bert-base-uncased --data imdb --epochs 3
    python baselines/train_encoder.py --model FOLDER --data mine.csv

Splits, batches, loop, metrics, report and run folder are those of classification/train_gpt.py; so
are its flags, but for the two that only GPT-2 has, --pooling and --zero-shot. An encoder sees what
stands on both sides of a word, and its first token has read the whole text: that is what it knows
more than a GPT-2 of its size when it classifies. It cannot write. It needs the extra `encoder`
(pip install -e '.[encoder]').
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # the code that lies here runs, whatever else is installed
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch: idle threads sleep

from classification.calibration import check_threshold
from classification.data import load_splits
from classification.sources import BUILT_IN, DataSettings
from classification.train_gpt import ClassificationSettings, fine_tune
from gpt2.batching import check_batch_size
from gpt2.one_run import begin_encoder
from gpt2.optimization import TrainingConfig
from gpt2.support.errors import UserError
from gpt2.support.flags import parse_flags
from gpt2.support.run_folder import RunSettings
from gpt2.support.script import run_script
from gpt2.support.splits import data_name
from gpt2.tokenizer import tokens_around
from gpt2.weights.building import check_max_length
from gpt2.weights.encoders import EncoderSettings
from gpt2.weights.licences import with_licences_of_data

SETTINGS = [DataSettings, EncoderSettings, ClassificationSettings, TrainingConfig, RunSettings]


def main() -> None:
    data, model_settings, task, config, run_settings = parse_flags(
        SETTINGS, "Fine-tune a pre-trained encoder to classify texts, as train_gpt.py does GPT-2."
    )
    name = f"classification-{data_name(data.data, BUILT_IN)}"
    run = begin_encoder(name, model_settings, config, run_settings)
    check_max_length(task.max_length, run.config)
    least = 1 + sum(map(len, tokens_around(run.encoding)))
    if task.max_length < least:
        raise UserError(
            f"--max-length {task.max_length}: leaves nothing of a text between the encoder's own "
            f"tokens; at least {least}"
        )

    # ---- chapter 1: data
    splits = load_splits(data, data.split_seed)
    data.revision = splits.revision  # recorded, so that a resumed run reads the same rows
    check_batch_size(data.data, len(splits.train), config.batch_size)
    check_threshold(task.threshold, len(splits.labels))

    # ---- chapter 2: model
    model, origin = run.build_encoder(splits.labels)

    # ---- chapters 3 to 6, as GPT-2 goes through them
    settings = {"data": data, "model": model_settings, "task": task, "training": config,
                "run": run_settings}  # fmt: skip
    trained_on = with_licences_of_data(run.start.learnt_from, [data.data], data.revision)
    fine_tune(run, splits, model, origin, settings, trained_on)


if __name__ == "__main__":
    run_script(main)
