"""Images to predict on: files, folders, zips and CSV files."""

import zipfile

import pytest
from class_files import (
    class_names,
    module,
    packed,
    picture,
    ready,
    table,
)

from trunkline.data.shared.locate import DataNotFoundError


def test_predict_takes_files_folders_and_lists(folders):
    picture(folders / "new/b.png")
    picture(folders / "new/a.jpg")
    (folders / "new/c.txt").write_text("x")
    found = [folders / "new/a.jpg", folders / "new/b.png"]
    made = ready(folders, "predict", predict=str(folders / "new"))
    assert made.prediction_paths() == dict(enumerate(found)) and class_names(made) == ["ant", "cat", "dog"]
    (batch,) = made.predict_dataloader()
    assert batch.label.tolist() == [-1, -1] and batch.image_ids.tolist() == [0, 1]
    made = ready(None, "predict", predict=[str(found[1]), str(folders / "new")])
    assert made.prediction_paths() == {0: found[1], 1: found[0]} and class_names(made) == []


def test_predict_takes_a_zip_and_a_table(folders, tmp_path, pictures):
    target = packed(folders / "val", tmp_path / "new.zip")
    made = ready(None, "predict", predict=str(target))
    assert list(made.prediction_paths().values()) == [target / "cat/2.png", target / "dog/1.png"]
    assert next(iter(made.predict_dataloader())).label.tolist() == [-1, -1]
    listed = table(pictures, "id,path\n1,images/b.png\n2,images/a.png\n")
    made = ready(None, "predict", predict=str(listed))
    assert list(made.prediction_paths().values()) == [pictures / f"images/{name}.png" for name in "ba"]


def test_predict_has_a_row_of_unknown_labels_per_class_if_there_can_be_several(pictures):
    source = table(pictures, "path,split,labels\nimages/a.png,train,dog;cat\nimages/b.png,val,cat\n")
    made = ready(source, "predict", predict=str(pictures / "images/c.png"))
    assert made.multi_label() and next(iter(made.predict_dataloader())).label.tolist() == [[-1.0, -1.0]]


def test_predict_problems_are_named(tmp_path, folders):
    with pytest.raises(DataNotFoundError, match="nothing to predict on"):
        ready(folders, "predict")
    with pytest.raises(DataNotFoundError, match="no such file or folder: .*gone"):
        ready(folders, "predict", predict=str(tmp_path / "gone"))
    with pytest.raises(DataNotFoundError, match=r"no image in .*folders|no image in .*set"):
        ready(None, "predict", predict=str(folders))
    with zipfile.ZipFile(tmp_path / "none.zip", "w") as opened:
        opened.writestr("a.txt", b"")
    with pytest.raises(DataNotFoundError, match="no image in .*none.zip"):
        ready(None, "predict", predict=str(tmp_path / "none.zip"))
    with pytest.raises(RuntimeError, match="call setup"):
        module(folders).predict_dataloader()
    with pytest.raises(RuntimeError, match="call setup"):
        module(folders).label_counts("classification")
