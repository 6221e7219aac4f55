"""What a plan does with the intensities of each channel, and why: CT by its units, others by each scan."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .fingerprint import ChannelFingerprint, Fingerprint
from .shape import rounded

logger = logging.getLogger("trunkline")

MODALITIES = ("ct", "mr", "pet", "us", "other")
_NOT_CT = re.compile(
    r"mri?|t[12].*|flair|pd|dwi|adc|swi|pet|us|ultrasound|red|green|blue|zscore", re.IGNORECASE
)
# Names of channels by which nnU-Net chooses the normalisation.
_SCALED: dict[str, tuple[dict[str, Any], str]] = {
    "nonorm": ({"scale": "none"}, "intensities as they are"),
    "rescale_to_0_1": (
        {"percentiles": [0.0, 100.0], "scale": "unit"},
        "from the lowest to the highest of each scan",
    ),
    "rgb_to_0_1": ({"clip": [0.0, 255.0], "scale": "unit"}, "from 0 to 255"),
}
_AIR = -500  # no modality but CT has whole numbers this low


@dataclass(frozen=True)
class Normalisation:
    """What happens to the intensities of a channel, and why.

    Attributes:
        name: of the channel.
        options: arguments of :class:`.data.scans.prepare.intensity.Intensity`.
        reason: for a reader.
    """

    name: str
    options: dict[str, Any]
    reason: str


def normalisations(
    fingerprint: Fingerprint, modality: Sequence[str] | None, crop: bool
) -> list[Normalisation]:
    """Decide what happens to the intensities of each channel."""
    channels = fingerprint.channels
    if modality is not None:
        wrong = [word for word in modality if word not in MODALITIES]
        if wrong or len(modality) not in (1, len(channels)):
            raise ValueError(
                f"--modality is {' '.join(modality)}; give one of {', '.join(MODALITIES)} for all channels, "
                f"or for each of the {len(channels)} ({', '.join(channel.name for channel in channels)})"
            )
        modality = list(modality) * (len(channels) if len(modality) == 1 else 1)
    found = []
    for number, channel in enumerate(channels):
        asked = None if modality is None else modality[number]
        if asked is None and channel.name.lower() in _SCALED:
            options, why = _SCALED[channel.name.lower()]
            found.append(Normalisation(channel.name, options, f"{why}, by the dataset's name of the channel"))
            continue
        ct, why = _is_ct(channel, asked, pictures=fingerprint.axes == 2)
        found.append(_normalisation(channel, ct, why, crop, fingerprint.foreground))
    return found


def _is_ct(channel: ChannelFingerprint, asked: str | None, pictures: bool) -> tuple[bool, str]:
    """Return whether a channel is CT, and how that is known."""
    if asked is not None:
        return asked == "ct", f"{asked} by --modality"
    if channel.name.lower() == "ct":
        return True, "CT by the dataset's name of the channel"
    if pictures or _NOT_CT.fullmatch(channel.name):
        return False, "a 2D image" if pictures else f"{channel.name}, by the dataset's name of the channel"
    if channel.whole and channel.lowest <= _AIR:
        why = f"guessed to be CT: whole numbers down to {channel.lowest:g}"
        logger.info("channel %s is %s; if it is not, give --modality mr or other", channel.name, why)
        return True, why
    return False, "not CT"


def _normalisation(
    channel: ChannelFingerprint, ct: bool, why: str, crop: bool, foreground: bool
) -> Normalisation:
    voxels = "foreground voxels" if foreground else "labelled voxels"
    low, high, mean, std = (rounded(x) for x in (channel.low, channel.high, channel.mean, channel.std))
    if ct and low < high and std > 0:
        options = {"clip": [low, high], "scale": "zscore", "mean": mean, "std": std}
        return Normalisation(
            channel.name,
            options,
            f"{why}; percentiles 0.5 and 99.5, mean and deviation of the {voxels} of all cases",
        )
    if ct:
        why = f"{why}, but the {voxels} are constant"
    reason = f"{why}: mean and deviation of each scan"
    if not crop:
        return Normalisation(channel.name, {"scale": "zscore"}, reason)
    return Normalisation(
        channel.name,
        {"scale": "zscore", "nonzero": True},
        f"{reason}, of what is not 0, which seems to be masked",
    )
