"""The made-up tickets: what docs/own-task.md says of them, and the same ones each time."""

import polars as pl
from conftest import refused

from classification.make_tickets import SHARES, make_tickets

MAKE = "classification/make_tickets.py"


def test_tickets_are_lopsided_and_have_copies_and_empty_texts():
    tickets = make_tickets(600, seed=1)
    assert tickets.columns == ["text", "queue", "summary"] and len(tickets) == 600
    counts = dict(tickets["queue"].value_counts().rows())
    assert set(counts) == set(SHARES)
    assert counts["technical"] > 3 * counts["returns"] > 60
    assert 0 < (tickets["text"] == "").sum() <= 4
    assert 5 < len(tickets) - tickets["text"].n_unique() < 30
    assert not any("{" in text for column in ("text", "summary") for text in tickets[column])


def test_the_same_seed_makes_the_same_file(call_script, tmp_path):
    for name in ("a.csv", "b.csv"):
        done = call_script(MAKE, name, "--rows", 60)
        assert done.returncode == 0 and "60 tickets" in done.stdout, done.stderr
    assert (tmp_path / "a.csv").read_bytes() == (tmp_path / "b.csv").read_bytes()
    assert len(pl.read_csv(tmp_path / "a.csv")) == 60
    assert not make_tickets(60, seed=2).equals(make_tickets(60, seed=1))
    refused(call_script(MAKE, "a.csv"), "a.csv", "is there already")
