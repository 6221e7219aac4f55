"""Headers and text of NRRD and MetaImage that damage the memory of ITK are refused before it reads them."""

import pytest

from trunkline.data.scans.formats.files import read_grid, read_scan
from trunkline.data.scans.formats.scan import ScanError

NRRD = "NRRD0004\ntype: short\ndimension: 3\nsizes: 2 3 4\nencoding: {}\n{}"
META = "ObjectType = Image\nNDims = 3\nDimSize = 2 3 4\nElementType = MET_SHORT\nElementDataFile = {}\n"


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.nrrd", NRRD.format("text", "\n" + "1 " * 23 + "9" * 101), "more than 100 characters"),
        ("a.nrrd", NRRD.format("raw", "byte skip " + "9" * 5000 + "\n\n"), "line"),
        ("a.mhd", META.format("s%d.raw 1 4 0"), "file of the voxels"),
        ("a.mhd", META.format("s%99999999d.raw 1 4 1"), "file of the voxels"),
        ("a.mhd", META.format("s%s.raw 1 4 1"), "file of the voxels"),
        ("a.mhd", META.format("s%d%n.raw 1 4 1"), "file of the voxels"),
        ("a.mhd", META.format("LIST " + "9" * 5000 + "\ns.raw"), "file of the voxels"),
        ("a.nhdr", NRRD.format("raw", "data file: s%d%s.raw 1 4 1\n"), "file of the voxels"),
    ],
)
def test_what_damages_itk_is_refused(name, content, said, tmp_path):
    (tmp_path / name).write_text(content)
    for read in (read_grid, read_scan):
        with pytest.raises(ScanError, match=said) as error:
            read(tmp_path / name)
        assert str(tmp_path / name) in str(error.value)


def test_text_in_pieces_is_read(tmp_path, monkeypatch):
    """A number at the end of one piece and the beginning of the next is one number."""
    from trunkline.data.scans.formats import checks

    monkeypatch.setattr(checks, "_BLOCK", 7)
    (tmp_path / "a.nrrd").write_text(NRRD.format("text", "\n" + " ".join(map(str, range(24)))))
    assert read_scan(tmp_path / "a.nrrd").voxels.ravel(order="F").tolist() == list(range(24))
    (tmp_path / "b.nrrd").write_text(NRRD.format("text", "\n" + "1 " * 23 + "9" * 101))
    with pytest.raises(ScanError, match="more than 100 characters"):
        read_scan(tmp_path / "b.nrrd")
