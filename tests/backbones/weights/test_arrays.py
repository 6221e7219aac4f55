"""Arrays out of pickles: what NumPy writes is read, what it would believe is refused."""

import pickle
import pickletools

import numpy as np
import pytest

from trunkline.backbones.weights.arrays import require_whole
from trunkline.backbones.weights.files import open_file

VALUES = {
    "matrix": np.arange(6.0).reshape(2, 3),
    "by_column": np.asfortranarray(np.arange(6, dtype=">f4").reshape(2, 3)),
    "flags": np.ones(3, bool),
    "number": np.float64(3.5),
    "whole": np.int64(-3),
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_those_of_numpy(protocol, tmp_path):
    path = tmp_path / "a.pkl"
    path.write_bytes(
        pickle.dumps({**VALUES, "inside": [VALUES["matrix"]], "text": np.array(["x"])}, protocol)
    )
    read = open_file(path)
    for name, value in VALUES.items():
        assert np.array_equal(read[name], value) and read[name].dtype == value.dtype, name
        assert type(read[name]) is type(value)
    assert np.array_equal(read["inside"][0], VALUES["matrix"])
    assert read["text"] is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"K\x02K\x03\x86", b"K\x02K\x04\x86"),  # a shape of more numbers than there are
        (b"K\x02K\x03\x86", b"J\xff\xff\xff\xffK\x03\x86"),
        (b"K\x02K\x03\x86", b"NK\x03\x86"),
    ],
)
def test_a_shape_that_does_not_fit_is_refused(old, new, tmp_path):
    content = pickle.dumps({"a": VALUES["matrix"]}, 2)
    assert content.count(old) == 1
    (tmp_path / "a.pkl").write_bytes(content.replace(old, new))
    with pytest.raises(ValueError, match="cannot be read as weights.*shape"):
        open_file(tmp_path / "a.pkl")


def test_a_place_that_no_value_can_have_is_refused():
    content = pickle.dumps({"a": 1}, 2)
    require_whole(content)
    place = content.replace(b"q\x00", b"r\xff\xff\xff\x7f", 1)
    assert any(op.name == "LONG_BINPUT" for op, _, _ in pickletools.genops(place))
    with pytest.raises(pickle.UnpicklingError, match="place 2,147,483,647"):
        require_whole(place)


def test_bytes_that_are_not_there_are_refused():
    with pytest.raises(ValueError, match="expected 2147483647 bytes"):
        require_whole(b"\x80\x02B\xff\xff\xff\x7fabc.")
