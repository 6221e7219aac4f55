"""Files of which no more is asked than they have; deep pixels in pieces."""

import io

import numpy as np
import pytest

from trunkline.data.shared import deep
from trunkline.data.shared.bounded import BoundedFile


def test_a_file_is_asked_for_what_is_left_of_it(tmp_path, monkeypatch):
    asked = []
    read = io.BufferedReader.read

    class Watched(BoundedFile):
        def tell(self):
            asked.append(super().tell())
            return asked[-1]

    (tmp_path / "a").write_bytes(b"0123456789")
    with Watched(tmp_path / "a") as file:
        assert file.read(4) == read(io.BufferedReader(io.BytesIO(b"0123")), 4)
        assert file.read(1 << 60) == b"456789"  # no machine has memory for so many bytes
        assert file.read(1 << 60) == b"" and asked == [0, 4, 10]
        file.seek(8)
        assert file.read() == b"89"
        file.seek(9)
        assert file.read(None) == b"9" and file.read(-1) == b""


@pytest.mark.parametrize("kind", [np.int8, np.uint16, np.int32, np.float32])
@pytest.mark.parametrize("black_white", [None, (0, 100), (-5.0, 7.0)])
def test_pieces_of_deep_images_are_the_whole(kind, black_white, monkeypatch):
    values = (np.random.default_rng(0).integers(-100, 100, (37, 11)) * 3).astype(kind)
    whole = deep.to_bytes(values, black_white)
    monkeypatch.setattr(deep, "_AT_ONCE", 40)
    assert np.array_equal(deep.to_bytes(values, black_white), whole)
    low, high = black_white or (0, 65535 if kind == np.float32 else 65536)
    expected = (values.astype(np.float64) - low) * (
        (255 if black_white or kind == np.float32 else 256) / (high - low)
    )
    expected = np.rint(expected) if black_white or kind == np.float32 else np.floor(expected)
    assert np.array_equal(whole, expected.clip(0, 255))
