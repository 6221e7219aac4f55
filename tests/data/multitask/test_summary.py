"""What there is to learn from boxes and masks together."""

import json

from trunkline.data.multitask.module import CocoDetectionAndMasks


def ready(root, **options):
    data = CocoDetectionAndMasks(root=str(root), short_side=64, long_side=96, missing="skip", **options)
    data.prepare_data()
    data.setup("fit")
    return data


def test_summaries_count_masks_too(shapes_with_masks):
    """Without boxes there are still labelled pixels to learn."""
    path = shapes_with_masks / "annotations" / "instances_train.json"
    content = json.loads(path.read_text())
    content["annotations"] = []
    path.write_text(json.dumps(content))
    first = content["images"][0]["file_name"]
    (shapes_with_masks / "masks" / "train" / first).with_suffix(".png").unlink()
    data = ready(shapes_with_masks)
    train = data.summaries()["train"]
    assert train.counts["boxes"] == 0 and train.counts["images without mask"] == 1
    assert train.learnable == sum(row["height"] * row["width"] for row in content["images"][1:])
    unchecked = ready(shapes_with_masks, check_masks=False)
    assert unchecked.summaries()["train"].learnable == len(content["images"]) - 1
