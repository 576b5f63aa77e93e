"""The plot of how time and memory grow measures each point once, and refuses what cannot be."""

import json

from conftest import refused

SCRIPT = "benchmarks/scaling.py"


def test_each_point_is_measured_once(tmp_path, call_script):
    done = call_script(
        SCRIPT, "--model", "mini", "--models", "mini", "--lengths", 8, 512, "--max-length", 8,
        "--batch-sizes", 2, "--batch-size", 2, "--steps", 2, "--out", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    points = json.loads((tmp_path / "scaling.json").read_text())["points"]
    shapes = [(point["model"], point["max_length"], point["batch_size"]) for point in points]
    assert shapes == [("mini", 8, 2), ("mini", 512, 2)]
    short, long = points
    # each of 7 million parameters takes 16 bytes, each token 25 kB in all blocks together
    assert 110e6 < short["peak_memory"] < long["peak_memory"] - 20e6
    assert short["seconds"] > 0 and long["seconds"] > 0
    assert (tmp_path / "scaling.png").read_bytes().startswith(b"\x89PNG")
    assert len((tmp_path / "scaling.md").read_text().splitlines()) == 2 + 2


def test_rows_beyond_the_context_are_refused_before_anything_is_measured(tmp_path, call_script):
    done = call_script(SCRIPT, "--model", "mini", "--out", tmp_path)
    refused(done, "--lengths and --max-length: 1024 tokens do not fit in mini's context of 512")
    assert not any(tmp_path.iterdir())
