"""Chapter 6, is it really better? What test rows and tasks can tell of before and after."""

from __future__ import annotations

from typing import Any

import numpy as np

from gpt2.support.intervals import RESAMPLES, mcnemar, perplexity_difference, wilson_interval
from instruction.tasks import TASKS


def weigh_evidence(
    before: dict[str, Any],
    after: dict[str, Any],
    split: str,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict[str, Any]:
    """The part of results.json on what is luck: the difference of the perplexities with the 95 %
    interval of the paired bootstrap over the rows of `split`, the interval of each share of tasks
    (Wilson) and McNemar's exact p of the tasks. `before` and `after` have "row_losses" of each
    split, the "losses" and "targets" of its rows, and "tasks", the answers to `TASKS`."""
    found: dict[str, Any] = {}
    if "row_losses" in before:  # older runs kept none
        of_rows = [look["row_losses"][split] for look in (before, after)]
        losses = [np.array(found["losses"]) for found in of_rows]
        targets = np.array(of_rows[1]["targets"])
        difference = perplexity_difference(*losses, targets, resamples, seed)
        found["perplexity"] = vars(difference)
    solved = [
        np.array([task.solved_by(text) for task, text in zip(TASKS, look["tasks"], strict=True)])
        for look in (before, after)
    ]
    found["tasks"] = {
        "before": wilson_interval(int(solved[0].sum()), len(TASKS)),
        "after": wilson_interval(int(solved[1].sum()), len(TASKS)),
        "only_before": int((solved[0] & ~solved[1]).sum()),
        "only_after": int((solved[1] & ~solved[0]).sum()),
    }
    found["tasks"]["p"] = mcnemar(found["tasks"]["only_before"], found["tasks"]["only_after"])
    return found


def describe_evidence(evidence: dict[str, Any]) -> list[str]:
    """Two sentences for people."""
    sentences = []
    if "perplexity" in evidence:
        found = evidence["perplexity"]
        sentences.append(
            f"perplexity after against before: {found['value']:+.1f} ({found['low']:.1f} to "
            f"{found['high']:.1f})"
        )
    tasks = evidence["tasks"]
    low, high = (100 * bound for bound in tasks["after"])
    sentences.append(
        f"tasks solved after: {low:.0f} to {high:.0f} % (95 %, {len(TASKS)} tasks); "
        f"{tasks['only_after']} are solved only after, {tasks['only_before']} only before, "
        f"p = {tasks['p']:.2f}"
    )
    return sentences
