"""Options of ``fit`` by which runs go on and are saved; see docs/runs.md."""

from __future__ import annotations

from pytorch_lightning.cli import LightningArgumentParser


def add_options(parser: LightningArgumentParser) -> None:
    """Give ``fit`` the options ``--resume`` and ``--save_every``."""
    parser.add_argument(
        "--resume",
        type=str | None,
        default=None,
        help="auto: go on from the newest complete checkpoint of this experiment; begin anew if there is "
        "none, end with status 0 if it is finished. Or a .ckpt of this experiment",
    )
    parser.add_argument(
        "--save_every",
        type=int | str | None,
        default=None,
        help="how often last.ckpt is written besides ends of epochs and validations: a number of optimiser "
        "steps (500) or a time (30s, 10m, 2h)",
    )


def without_option(words: list[str], option: str) -> list[str]:
    """Return words of a command without an option and its value."""
    kept: list[str] = []
    skip = False
    for word in words:
        if not skip and word != f"--{option}" and not word.startswith(f"--{option}="):
            kept.append(word)
        skip = not skip and word == f"--{option}"
    return kept
