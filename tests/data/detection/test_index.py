"""Reading COCO instances: the numbers survive; every defect is an error with file, record id and remedy."""

import copy
import io
import json
import logging
from multiprocessing.reduction import ForkingPickler

import numpy as np
import pytest
import torch
from PIL import Image

from trunkline.data.detection.index import check_images, index_of_files, read_coco
from trunkline.data.shared.coco.fields import AnnotationError
from trunkline.data.shared.io import ImageError
from trunkline.data.shared.labels.classes import LabelClass


def annotation(number, image, category, bbox, **more):
    return {"id": number, "image_id": image, "category_id": category, "bbox": bbox, **more}


CONTENT = {
    "info": {"year": 2020},
    "images": [
        {"id": 40, "file_name": "wide.jpg", "height": 60, "width": 100},
        {"id": 7, "file_name": "sub/tall ä.png", "height": 90, "width": 50},
        {"id": 12, "file_name": "none.jpg", "height": 10, "width": 20},
    ],
    # Ids start at 0, are out of order, and images alternate.
    "annotations": [
        annotation(5, 7, 90, [1.25, 2.5, 10.1, 20.3], area=77.5, iscrowd=1, segmentation={"counts": [1]}),
        annotation(0, 40, 3, [0, 0, 100, 60], area=12, iscrowd=0, segmentation=[[0, 0, 1, 1, 2, 2]]),
        annotation(9, 7, 3, [10, 10, 1, 1], iscrowd=0),
        annotation(2, 40, 18, [99.5, 59.25, 0.5, 0.75], area=3),
    ],
    "categories": [
        {"id": 90, "name": "cup", "supercategory": "kitchen"},
        {"id": 3, "name": "cat"},
        {"id": 18, "name": "dog"},
    ],
}


@pytest.fixture
def content():
    return copy.deepcopy(CONTENT)


@pytest.fixture
def read(tmp_path):
    def read_content(content, **options):
        path = tmp_path / "boxes.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return read_coco(path, tmp_path / "pictures", **options)

    return read_content


def test_labels_are_contiguous_in_id_order(read, content):
    index = read(content)
    assert index.categories == (LabelClass(3, "cat"), LabelClass(18, "dog"), LabelClass(90, "cup"))
    assert index.image_ids.tolist() == [40, 7, 12]
    assert index.sizes.tolist() == [[60, 100], [90, 50], [10, 20]]
    assert index.offsets.tolist() == [0, 2, 4, 4]
    assert index.labels.tolist() == [0, 1, 2, 0]
    assert index.crowd.tolist() == [False, False, True, False]
    assert index.annotation_ids.tolist() == [0, 2, 5, 9]
    assert index.area.tolist() == [12, 3, 77.5, 1]  # the last has no area: width times height
    expected = [[0, 0, 100, 60], [99.5, 59.25, 100, 60], [1.25, 2.5, 11.35, 22.8], [10, 10, 11, 11]]
    torch.testing.assert_close(index.boxes, torch.tensor(expected))


def test_file_names_survive_the_byte_buffer(read, content, tmp_path):
    index = read(content)
    assert [index.file_name(i) for i in range(3)] == ["wide.jpg", "sub/tall ä.png", "none.jpg"]
    assert index.path(1) == tmp_path / "pictures" / "sub" / "tall ä.png"
    assert index.labels[index.rows(1)].tolist() == [2, 0] and len(index.boxes[index.rows(2)]) == 0


def test_as_coco_gives_back_the_file(read, content):
    back = read(content).as_coco()
    assert sorted(back["images"], key=lambda r: r["id"]) == sorted(content["images"], key=lambda r: r["id"])
    assert back["categories"] == [
        {"id": 3, "name": "cat"},
        {"id": 18, "name": "dog"},
        {"id": 90, "name": "cup"},
    ]
    assert [record["id"] for record in back["annotations"]] == [1, 2, 3, 4]

    def plain(record):
        area = record.get("area", record["bbox"][2] * record["bbox"][3])
        return (record["image_id"], record["category_id"], *record["bbox"], area, record.get("iscrowd", 0))

    assert sorted(map(plain, back["annotations"])) == sorted(map(plain, content["annotations"]))


def test_nothing_grows_by_python_objects_and_pickling_shares(read):
    images = [{"id": i, "file_name": f"{i:012d}.jpg", "height": 100, "width": 100} for i in range(3000)]
    annotations = [annotation(i, i % 3000, 1, [1, 2, 3, 4]) for i in range(9000)]
    index = read({"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "a"}]})
    held = sum(value.nbytes for value in vars(index).values() if torch.is_tensor(value))
    assert held > 700_000
    buffer = io.BytesIO()
    ForkingPickler(buffer).dump(index)  # what a spawned worker is sent
    assert buffer.tell() < 10_000
    assert all(value.is_shared() for value in vars(index).values() if torch.is_tensor(value))


def test_with_boxes_keeps_images_that_have_a_single_object(read, content):
    content["annotations"] = [record for record in content["annotations"] if record["id"] in (5, 0)]
    index = read(content).with_boxes()  # image 7 has only a crowd region, image 12 nothing
    assert index.image_ids.tolist() == [40] and index.file_name(0) == "wide.jpg"
    assert index.offsets.tolist() == [0, 1] and index.boxes.tolist() == [[0, 0, 100, 60]]
    assert index.sizes.tolist() == [[60, 100]] and index.annotation_ids.tolist() == [0]


def test_images_without_annotations_can_be_read_alone(read, content):
    del content["annotations"]
    index = read(content, boxes=False)
    assert len(index) == 3 and len(index.boxes) == 0 and index.offsets.tolist() == [0, 0, 0, 0]
    with pytest.raises(AnnotationError, match="no list annotations"):
        read(content)


def test_no_annotations_at_all_is_legal(read, content):
    content["annotations"] = []
    assert read(content).offsets.tolist() == [0, 0, 0, 0]


BROKEN = {
    "garbled": (lambda c: '{"images": [', ["boxes.json", "not readable as JSON", "line 1"]),
    "a list": (lambda c: [1], ["holds a list", "results file"]),
    "no images key": (lambda c: c.pop("images"), ["no list images"]),
    "no images": (lambda c: c["images"].clear(), ["dataset is empty", "no images"]),
    "no categories": (lambda c: c["categories"].clear(), ["dataset is empty", "no categories"]),
    "twice the image": (
        lambda c: c["images"].append(c["images"][1]),
        ["image id 7 occurs 2 times", "renumber"],
    ),
    "twice the box": (
        lambda c: c["annotations"].append(c["annotations"][1]),
        ["annotation id 0 occurs 2 times", "renumber"],
    ),
    "twice the category": (
        lambda c: c["categories"].append({"id": 3, "name": "other"}),
        ["category id 3 occurs 2 times"],
    ),
    "unknown image": (
        lambda c: c["annotations"].append(annotation(33, 999, 3, [0, 0, 1, 1])),
        ["annotation id 33: image_id 999", "add the images"],
    ),
    "unknown category": (
        lambda c: c["annotations"].append(annotation(33, 7, 4, [0, 0, 1, 1])),
        ["annotation id 33: category_id 4", "it has 3, 18, 90", "add the categories"],
    ),
    "three numbers": (
        lambda c: c["annotations"].append(annotation(33, 7, 3, [0, 0, 1])),
        ["annotation id 33: bbox [0, 0, 1]", "four numbers"],
    ),
    "words": (
        lambda c: c["annotations"].append(annotation(33, 7, 3, [0, 0, 1, "wide"])),
        ["annotation id 33", "four numbers"],
    ),
    "no bbox": (lambda c: c["annotations"][0].pop("bbox"), ["annotation id 5: bbox is missing"]),
    "null bbox": (lambda c: c["annotations"][0].update(bbox=None), ["annotation id 5: bbox is None"]),
    "no height": (lambda c: c["images"][1].pop("height"), ["image id 7: height is missing"]),
    "zero width": (lambda c: c["images"][1].update(width=0), ["image id 7", "90x0"]),
    "text id": (lambda c: c["images"][1].update(id="7"), ["id is '7'", "id (int)"]),
    "text area": (
        lambda c: c["annotations"][0].update(area="large"),
        ["annotation id 5: area 'large'", "correct or remove it"],
    ),
    "id too long": (lambda c: c["images"][1].update(id=2**70), ["id is 1180591620717411303424"]),
    "no object": (lambda c: c["images"].append(3), ["image number 3: is no object"]),
}


@pytest.mark.parametrize("defect", BROKEN)
def test_defect_is_named_with_file_and_record(read, content, defect):
    breaking, words = BROKEN[defect]
    result = breaking(content)
    with pytest.raises(AnnotationError) as caught:
        read(result if defect in ("garbled", "a list") else content)
    for word in ["boxes.json", *words]:
        assert word in str(caught.value)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(AnnotationError, match="nowhere.json: no such annotation file"):
        read_coco(tmp_path / "nowhere.json", tmp_path)


BAD_BOXES = {
    "flat": ([5, 5, 0, 10], "width or height <= 0"),
    "negative": ([5, 5, 10, -1], "width or height <= 0"),
    "nan": ([5, 5, float("nan"), 10], "not finite"),
    "infinite": ([5, 5, float("inf"), 10], "not finite"),
    "half outside": ([90, 10, 20, 20], "leaves the image"),
    "far outside": ([200, 10, 20, 20], "leaves the image"),
    "left of it": ([-3, 10, 20, 20], "leaves the image"),
    "sliver on the edge": ([100, 10, 0.5, 20], "leaves the image"),
    "too thin for float32": ([50, 10, 1e-7, 20], "leaves the image"),
}


@pytest.mark.parametrize("kind", BAD_BOXES)
def test_bad_box_is_an_error_that_names_its_image(read, content, kind):
    box, reason = BAD_BOXES[kind]
    content["annotations"].append(annotation(77, 40, 3, box))
    with pytest.raises(AnnotationError) as caught:
        read(content)
    for word in (
        "boxes.json",
        "annotation id 77",
        "image id 40 (wide.jpg",
        reason,
        "on_bad_box to clip or drop",
    ):
        assert word in str(caught.value)


@pytest.mark.parametrize("kind", BAD_BOXES)
def test_dropping_removes_bad_boxes_alone(read, content, kind, caplog):
    content["annotations"].insert(1, annotation(77, 40, 3, BAD_BOXES[kind][0]))
    with caplog.at_level(logging.WARNING, "trunkline"):
        index = read(content, on_bad_box="drop")
    assert sorted(index.annotation_ids.tolist()) == [0, 2, 5, 9]
    assert "1 bad boxes of 5: 0 clipped to their image, 1 dropped" in caplog.text


@pytest.mark.parametrize("kind", BAD_BOXES)
def test_clipping_keeps_what_is_inside(read, content, kind, caplog):
    content["annotations"].insert(1, annotation(77, 40, 3, BAD_BOXES[kind][0], area=400.0))
    with caplog.at_level(logging.WARNING, "trunkline"):
        index = read(content, on_bad_box="clip")
    expected = {"half outside": [90, 10, 100, 30], "left of it": [0, 10, 17, 30]}.get(kind)
    at = (index.annotation_ids == 77).nonzero().flatten().tolist()
    assert index.boxes[at].tolist() == ([] if expected is None else [expected])
    counts = "1 clipped to their image, 0 dropped" if expected else "0 clipped to their image, 1 dropped"
    assert counts in caplog.text


@pytest.mark.parametrize("on_bad_box", ["error", "clip", "drop"])
def test_overshoot_of_a_pixel_is_rounding(read, content, on_bad_box, caplog):
    content["annotations"].append(annotation(77, 40, 3, [90, -1, 11, 30]))
    with caplog.at_level(logging.INFO, "trunkline"):
        index = read(content, on_bad_box=on_bad_box)
    row = (index.annotation_ids == 77).nonzero().item()
    assert index.boxes[row].tolist() == [90, 0, 100, 29]
    assert "1 boxes left their image by 1 pixel or less" in caplog.text


def test_twenty_offenders_are_listed_and_the_rest_counted(read, content):
    content["annotations"] = [annotation(1000 + i, 40, 3, [0, 0, 0, 1]) for i in range(25)]
    with pytest.raises(AnnotationError) as caught:
        read(content)
    assert "annotation id 1019" in str(caught.value) and "annotation id 1020" not in str(caught.value)
    assert "(25 in all)" in str(caught.value) and "... and 5 more" in str(caught.value)


@pytest.fixture
def pictures(tmp_path):
    """An index of 30 images, all on disk and correct."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = np.random.default_rng(0).integers(0, 256, size=(40, 30, 3), dtype=np.uint8)
    images = []
    for i in range(30):
        Image.fromarray(noise).save(folder / f"{i}.png")
        images.append({"id": 100 + i, "file_name": f"{i}.png", "height": 40, "width": 30})
    path = tmp_path / "boxes.json"
    path.write_text(json.dumps({"images": images, "annotations": [], "categories": [{"id": 1, "name": "a"}]}))
    return folder, read_coco(path, folder)


def test_images_that_fit_pass(pictures):
    for mode in ("header", "decode", "off"):
        check_images(pictures[1], mode)


def test_many_images_are_checked_with_a_progress_bar(pictures, monkeypatch, capsys):
    check_images(pictures[1])
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("trunkline.data.shared.common._SHOW_PROGRESS_FROM", 30)
    check_images(pictures[1])
    assert "checking images" in capsys.readouterr().err


def test_missing_and_broken_images_are_listed_at_once(pictures):
    folder, index = pictures
    for i in range(25):
        (folder / f"{i}.png").unlink()
    (folder / "28.png").write_text("no image")
    with pytest.raises(ImageError) as caught:
        check_images(index)
    message = str(caught.value)
    assert "26 of 30 images" in message and "... and 6 more" in message
    assert f"image id 119: {folder / '19.png'}: no such file" in message and "image id 120" not in message
    check_images(index, "off")


def test_only_decoding_finds_a_truncated_image(pictures):
    folder, index = pictures
    (folder / "3.png").write_bytes((folder / "3.png").read_bytes()[:1500])
    check_images(index, "header")
    with pytest.raises(ImageError, match="image id 103: .*3.png: damaged"):
        check_images(index, "decode")


def test_other_size_is_reported_with_both(pictures):
    folder, index = pictures
    Image.new("RGB", (20, 40)).save(folder / "3.png")
    with pytest.raises(
        ImageError, match=r"image id 103: .*is 20x40 pixels .* the annotations say 30x40; correct"
    ):
        check_images(index)


def test_size_before_turning_has_its_own_explanation(pictures):
    folder, index = pictures
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (30, 40)).save(folder / "3.png", exif=exif)  # stored 30x40 as annotated, upright 40x30
    with pytest.raises(ImageError, match=r"is 40x30 .* say 30x40: its EXIF orientation .* remove the tag"):
        check_images(index)


def test_files_are_numbered_and_measured(pictures, tmp_path):
    folder, _ = pictures
    index, failed = index_of_files([folder / "5.png", folder / "2.png"])
    assert not failed
    assert index.image_ids.tolist() == [1, 2] and index.sizes.tolist() == [[40, 30], [40, 30]]
    assert index.path(1) == folder / "2.png" and len(index.boxes) == 0
    gone = tmp_path / "gone.png"
    index, failed = index_of_files([gone, folder / "5.png"])
    assert index.image_ids.tolist() == [1] and index.path(0) == folder / "5.png"
    assert [(image.image_id, image.file_name) for image in failed] == [(2, str(gone))]
    assert "gone.png: no such file" in failed[0].error
    with pytest.raises(ImageError, match="1 of 1 image cannot be used:\n  .*gone.png: no such file"):
        index_of_files([gone])
