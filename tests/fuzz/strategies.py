"""Inputs drawn by hypothesis: valid files, and JSON files of which parts are replaced."""

from __future__ import annotations

import json
import random
from typing import Any

from hypothesis import strategies as st

from .mutate import mutate_json
from .target import Target

_KEYS = st.sampled_from(
    [
        "id",
        "image_id",
        "category_id",
        "bbox",
        "area",
        "iscrowd",
        "segmentation",
        "counts",
        "size",
        "keypoints",
        "name",
        "file_name",
        "height",
        "width",
        "0",
        "",
    ]
)
_LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from([0, 1, 2, 7, 10, 16, 12]),
)
VALUES: st.SearchStrategy[Any] = st.recursive(
    _LEAVES,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=4),
    max_leaves=8,
)


def inputs(target: Target) -> st.SearchStrategy[bytes]:
    """Return the strategy of a target: mutations of its seeds, or parts of them replaced."""
    seeds = list(target.seeds())

    @st.composite
    def mutated(draw: Any) -> bytes:
        data, rng = draw(st.sampled_from(seeds)), random.Random(draw(st.integers(0, 2**64 - 1)))
        for _ in range(draw(st.integers(1, 3))):
            data = target.mutate(data, rng)
        return data

    return st.one_of(mutated(), replaced(seeds)) if target.mutate is mutate_json else mutated()


@st.composite
def replaced(draw: Any, seeds: list[bytes]) -> bytes:
    """Return a JSON file of which some values are drawn."""
    content = json.loads(draw(st.sampled_from(seeds)))
    for _ in range(draw(st.integers(1, 4))):
        holder, key = content, None
        while isinstance(holder, dict | list) and holder and (key is None or draw(st.booleans())):
            place = draw(
                st.sampled_from(sorted(holder) if isinstance(holder, dict) else list(range(len(holder))))
            )
            if isinstance(holder[place], dict | list) and holder[place] and draw(st.booleans()):
                holder, key = holder[place], None
                continue
            holder[place] = key = draw(VALUES)
            break
    return json.dumps(content).encode()
