"""What may synchronise the device, and why; everything else is a failure.

Waits are written as the recorder counts them: ``what @ file:line function``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from .runs import Step

# By stage: a pattern of waits, and how many of them a step may have.
# A scan may be larger than the device, so its windows go there one after the other, and its labels come back.
ANY = 10**9
WINDOWS = [
    (r"copy to device @ tasks/volumes/inference\.py:\d+ sweep", ANY),
    (r"copy to host @ data/scans/prepare/restore\.py:\d+ write", ANY),
]
ALLOWED: dict[str, list[tuple[str, int]]] = {
    "train": [
        # The scaler of float16 reads once whether a gradient overflowed, and then leaves the step out.
        (r"item @ pytorch_lightning/plugins/precision/amp\.py", 1),
        # The loss of the step before, which is copied while this one is prepared.
        (r"synchronise @ tasks/base/losses\.py", 1),
    ],
    # Metrics are computed on the host: the results of a batch are copied at once, and waited for once.
    "validate": [
        (r"(copy to host|synchronise) @ (tasks|evaluation)/", 1),
        # The table of counts goes to where the masks are, once an evaluation.
        (r"copy to device @ evaluation/segmentation/evaluator\.py:\d+ add", 1),
        *WINDOWS,
    ],
    # Predictions go to files.
    "predict": [(r"(copy to host|synchronise) @ tasks/", 1), *WINDOWS],
}
ONCE = ("start", "metrics", "optimised")  # stages that come once in a run or an evaluation


def forbidden(steps: Sequence[Step], branches: int = 1) -> Iterator[str]:
    """Yield the waits that no rule allows, with stage and canvas.

    Args:
        steps: of a run.
        branches: heads with predictions of their own, each of which is allowed what the rules say of one.
    """
    for step in steps:
        if step.stage in ONCE:
            continue
        stage = "validate" if step.stage == "sanity" else step.stage
        heads = 1 if stage == "train" else branches
        left: list[list] = [[pattern, number * heads] for pattern, number in ALLOWED.get(stage, [])]
        for wait, number in step.waits.items():
            for rule in left:
                if re.match(rule[0], wait):
                    taken = min(number, rule[1])
                    rule[1], number = rule[1] - taken, number - taken
            if number:
                yield f"{step.stage} {'x'.join(map(str, step.canvas))}: {number} x {wait}"
