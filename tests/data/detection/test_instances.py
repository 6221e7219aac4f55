"""Masks and keypoints of a COCO file: what is kept, what goes back, and what is wrong with them."""

import io
import json
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from trunkline.data.detection.index import read_coco
from trunkline.data.shared.coco.annotations import load_instances
from trunkline.data.shared.coco.fields import AnnotationError

BOTH = ("masks", "keypoints")


@pytest.fixture
def read(store):
    """Read a COCO file with masks and keypoints."""
    return lambda content, **options: read_coco(
        path := store(content), path.parent, **{"instances": BOTH, **options}
    )


def test_nothing_is_kept_or_parsed_unless_asked_for(content, store):
    path = store(content)
    index = read_coco(path, path.parent)
    assert index.masks is index.keypoints is index.keypoint_classes is index.instances(1) is None
    parsed = load_instances(path)
    assert not any({"segmentation", "keypoints"} & set(row) for row in parsed["annotations"])
    for row in index.as_coco()["annotations"] + index.as_coco()["categories"]:
        assert not {"segmentation", "keypoints", "skeleton"} & set(row)
    masks = read_coco(path, path.parent, instances=["masks"])
    assert masks.keypoints is None and masks.masks is not None and masks.instances(1).keypoints is None
    points = read_coco(path, path.parent, instances=["keypoints"])
    assert points.masks is None and points.keypoints.shape == (3, 3, 3) and points.instances(1).masks is None
    content["annotations"][0]["segmentation"] = content["annotations"][0]["keypoints"] = "nonsense"
    assert len(read_coco(store(content), path.parent).boxes) == 3


def test_masks_are_those_of_pycocotools(content, read, truth):
    index = read(content)
    assert index.instances(0).masks.shape == (0, 30, 40)
    assert np.array_equal(index.instances(1).masks, truth)


def test_keypoints_by_hand(content, read):
    index = read(content)
    person = [[4.5, 5.5, 2], [6.5, 4.5, 2], [2.5, 4.5, 1]]  # the centre of the first pixel is 0.5
    assert index.keypoints.tolist() == [person, [[0] * 3] * 3, [[0] * 3] * 3]
    assert index.keypoint_classes.names == (("nose", "left_eye", "right_eye"), ())
    assert index.keypoint_classes.skeletons == (((0, 1), (0, 2)), ())
    assert index.keypoint_classes.partners().tolist() == [[0, 2, 1], [0, 1, 2]]
    assert index.instances(1).partners.tolist() == [[0, 2, 1], [0, 2, 1], [0, 1, 2]]


def test_sides_are_known_by_the_beginning_or_the_end_of_names(content, read):
    content["categories"][0]["keypoints"] = [
        "Left Hand",
        "right foot",
        "tail_left",
        "Right Hand",
        "tail_right",
    ]
    content["annotations"][0]["keypoints"] = content["annotations"][1]["keypoints"] = [0] * 15
    index = read(content)
    assert index.keypoint_classes.partners()[0].tolist() == [3, 1, 4, 0, 2]  # there is no left foot


def test_what_is_kept_goes_back_into_coco(content, read, truth, tmp_path):
    rewritten = read(content).as_coco()
    first, second, third = rewritten["annotations"]
    assert first["segmentation"] == content["annotations"][0]["segmentation"]
    assert second["segmentation"] == content["annotations"][1]["segmentation"]
    assert first["keypoints"] == content["annotations"][0]["keypoints"] and first["num_keypoints"] == 3
    assert second["num_keypoints"] == 0 and "keypoints" not in third
    assert rewritten["categories"] == content["categories"]
    path = tmp_path / "again.json"
    path.write_text(json.dumps(rewritten))
    api = COCO(str(path))
    for record, bitmap in zip(api.loadAnns([1, 2, 3]), truth, strict=True):
        assert np.array_equal(api.annToMask(record), bitmap)


def test_rows_stay_aligned_whatever_the_order_and_whatever_is_dropped(content, read, truth):
    bad = {**content["annotations"][0], "id": 30, "bbox": [5, 5, 0, 3]}
    other = {**content["annotations"][2], "id": 34, "image_id": 5}
    content["annotations"] = [other, bad, *content["annotations"][::-1]]
    index = read(content, on_bad_box="drop")
    assert index.annotation_ids.tolist() == [34, 33, 32, 31]
    assert np.array_equal(index.instances(0).masks, truth[[2]])
    assert np.array_equal(index.instances(1).masks, truth[::-1])
    assert index.keypoints[3, 0].tolist() == [4.5, 5.5, 2] and not index.keypoints[:3].any()
    content["images"].insert(1, {**content["images"][0], "id": 6, "file_name": "other.png"})
    kept = read(content, on_bad_box="drop").with_boxes()
    assert kept.image_ids.tolist() == [5, 7] and np.array_equal(kept.instances(1).masks, truth[::-1])
    del content["annotations"][0]
    kept = read(content, on_bad_box="drop").with_boxes()
    assert kept.image_ids.tolist() == [7] and np.array_equal(kept.instances(0).masks, truth[::-1])
    assert kept.keypoints[2, 0].tolist() == [4.5, 5.5, 2]


@pytest.mark.parametrize(
    ("row", "field", "value", "words"),
    [
        (0, "segmentation", [[1, 2, 3, 4, 5, 6, 7]], "annotation id 31: a polygon is no list of x and y"),
        (0, "segmentation", [["a", 2, 3, 4, 5, 6]], "annotation id 31: a polygon is no list of x and y"),
        (0, "segmentation", [[1, 2, 3, 4, 5, 1e9]], "annotation id 31: a polygon is no list of x and y"),
        (0, "segmentation", [[1, 2, 3, 4]], "annotation id 31: no polygon has three corners"),
        (0, "segmentation", [], "annotation id 31: no segmentation"),
        (0, "segmentation", None, "annotation id 31: no segmentation"),
        (1, "segmentation", {"size": [40, 30], "counts": [1200]}, r"id 32: run lengths of size \[40, 30\]"),
        (2, "segmentation", {"size": [30, 40], "counts": [5, 5]}, "id 33: run lengths without a size"),
        (0, "keypoints", [1, 2, 2], "id 31: keypoints has 3 numbers, its category has 3 keypoints of 3"),
        (2, "keypoints", [1, 2, 2], "id 33: keypoints has 3 numbers, its category has 0 keypoints"),
        (0, "keypoints", [4, 5, 3, 6, 4, 2, 2, 4, 1], "id 31: visibility 3 of a keypoint; it is 0, 1 or 2"),
        (0, "keypoints", [4, 5, 1.5, 6, 4, 2, 2, 4, 1], "id 31: visibility 1.5 of a keypoint"),
        (0, "keypoints", [4, float("nan"), 1, 6, 4, 2, 2, 4, 1], "id 31: a keypoint is not finite"),
        (0, "keypoints", {"nose": 1}, "id 31: keypoints is no list of numbers"),
    ],
)
def test_wrong_masks_and_keypoints_are_named_or_dropped(
    row, field, value, words, content, read, truth, caplog
):
    content["annotations"][row][field] = value
    for mode in ("error", "clip"):
        with pytest.raises(AnnotationError, match=rf"(?s)instances.json: 1 of 3 annotations .*{words}"):
            read(content, on_bad_box=mode)
    with caplog.at_level("WARNING", "trunkline"):
        index = read(content, on_bad_box="drop")
    assert "dropped 1 of 3 annotations with a wrong mask" in caplog.text
    rest = [n for n in range(3) if n != row]
    assert index.annotation_ids.tolist() == [31 + n for n in rest]
    assert np.array_equal(index.instances(1).masks, truth[rest])


def test_wrong_ones_do_not_matter_unless_asked_for(content, read):
    content["annotations"][0]["segmentation"] = [[1, 2, 3]]
    assert len(read(content, instances=["keypoints"]).boxes) == 3
    content["annotations"][1]["keypoints"] = [1]
    assert len(read(content, instances=[]).boxes) == 3


def test_polygons_of_too_few_corners_are_left_out_and_said(content, read, truth, caplog):
    content["annotations"][0]["segmentation"].append([1, 2, 3, 4])
    with caplog.at_level("WARNING", "trunkline"):
        index = read(content)
    assert "left out 1 polygon of fewer than three corners" in caplog.text
    assert np.array_equal(index.instances(1).masks, truth)


def test_keypoints_that_an_annotation_lacks_are_not_labelled(content, read):
    del content["annotations"][0]["keypoints"]
    assert not read(content).keypoints.any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"keypoints": ["nose", "nose", "eye"]},
            r"category id 1 \(person\): two keypoints have the same name",
        ),
        ({"keypoints": "nose"}, "keypoints is 'nose', no list of names"),
        ({"keypoints": [1, 2, 3]}, "no list of names"),
        ({"skeleton": [[1, 4]]}, r"skeleton has \[1, 4\], no pair of keypoints counted from 1"),
        ({"skeleton": [[0, 1]]}, r"skeleton has \[0, 1\]"),
        ({"skeleton": [1, 2]}, "skeleton has 1, no pair"),
        ({"keypoints": []}, "no category lists keypoints"),
    ],
)
def test_wrong_keypoints_of_categories_are_named(change, words, content, read):
    content["categories"][0] |= {"skeleton": [], **change}
    with pytest.raises(AnnotationError, match=rf"instances.json: [\s\S]*{words}"):
        read(content)


@pytest.mark.parametrize("counts", ["", "PPPP0", "3", "ab", "P" * 30, "0\u00e9"])
def test_damaged_run_lengths_name_the_annotation(counts, content, read):
    """pycocotools would draw what memory happens to hold."""
    content["annotations"][1]["segmentation"]["counts"] = counts
    with pytest.raises(AnnotationError, match="annotation id 32: run lengths without a size that they fill"):
        read(content)


def test_run_lengths_of_any_bitmap_are_taken(content, read):
    rng = np.random.default_rng(0)
    content["images"][1] |= {"height": 700, "width": 900}
    del content["annotations"][:2]
    for density in (0, 0.003, 0.05, 0.5, 1):
        bitmap = (rng.random((700, 900)) < density).astype(np.uint8)
        content["annotations"][0]["segmentation"] = {"size": [700, 900], "counts": counts_of(bitmap)}
        assert np.array_equal(read(content, instances=["masks"]).instances(1).masks[0], bitmap)


def counts_of(bitmap):
    return coco_mask.encode(np.asfortranarray(bitmap))["counts"].decode()


def test_everything_kept_is_shared_with_worker_processes(content, read):
    index = read(content)
    tensors = [*vars(index.masks).values(), index.keypoints]
    assert all(isinstance(tensor, torch.Tensor) for tensor in tensors)
    ForkingPickler(io.BytesIO()).dump(index)
    assert all(tensor.is_shared() for tensor in tensors)
