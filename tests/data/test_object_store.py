"""Data in an object store as S3 has it, by a server on this machine."""

import logging
import multiprocessing

import fsspec
import pytest
import torch

from trunkline.data.classification.module import ImageClassification
from trunkline.data.detection.module import CocoDetection
from trunkline.data.multitask.module import CocoDetectionAndMasks
from trunkline.data.segmentation.module import ImageSegmentation
from trunkline.data.shared import objects
from trunkline.data.shared.io import ImageError, image_size, read_image
from trunkline.data.shared.objects import StorageError
from trunkline.data.shared.storage import located

from .test_addresses import BOXES, CLASSES, MASKS, batches_of, same, shards_of, uploaded

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def store():
    """The address of a bucket; credentials and the server come from the environment, as users give them."""
    from moto.server import ThreadedMotoServer

    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AWS_ACCESS_KEY_ID", "testing")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        # As FSSPEC_S3_ENDPOINT_URL does, which fsspec reads when it is imported.
        patch.setitem(fsspec.config.conf, "s3", {"endpoint_url": f"http://{host}:{port}"})
        fsspec.filesystem("s3").mkdir("bucket")
        yield "s3://bucket"
        fsspec.filesystem("s3").clear_instance_cache()
    server.stop()


def test_all_kinds_of_labels_read_from_a_bucket(
    store, shapes, masked_shapes, class_folders, shapes_with_masks
):
    for number, (make, folder, settings) in enumerate(
        [
            (CocoDetection, shapes, BOXES),
            (ImageSegmentation, masked_shapes, MASKS),
            (ImageClassification, class_folders, CLASSES),
            (CocoDetectionAndMasks, shapes_with_masks, BOXES),
        ]
    ):
        local = batches_of(make(root=str(folder), **settings))
        address = uploaded(folder, f"{store}/kind{number}")
        assert same(local, batches_of(make(root=address, **settings)))


@pytest.mark.parametrize("kind", ["files", "shards"])
def test_forked_loader_processes_read_a_bucket_that_this_process_read_before(store, shapes, tmp_path, kind):
    if kind == "files":
        place = uploaded(shapes / "images" / "val", f"{store}/val")
    else:
        uploaded(shards_of(shapes / "images" / "val", tmp_path / "tars").rpartition("/")[0], f"{store}/tars")
        place = f"{store}/tars/part-{{000..001}}.tar"
    data = CocoDetection(str(shapes), val_images=place, **BOXES)
    data.prepare_data()
    data.setup("validate")
    expected = list(data.val_dataloader())
    loader = data.val_dataloader()
    loader.num_workers, loader.prefetch_factor = 2, 2
    loader.multiprocessing_context = multiprocessing.get_context("fork")
    assert same(expected, list(loader)) and same(expected, list(loader))


def test_metrics_of_a_bucket_are_those_of_the_disk(store, class_folders, tmp_path, trainer):
    from trunkline.backbones.resnet import ResNet
    from trunkline.heads.classification import Classifier
    from trunkline.tasks.classification.task import Classification

    torch.manual_seed(0)
    classes = len(list((class_folders / "train").iterdir()))
    task = Classification(backbone=ResNet(depth=18), head=lambda levels: Classifier(levels, classes))
    places = [str(class_folders), uploaded(class_folders, f"{store}/metrics")]
    found = [
        trainer().validate(task, ImageClassification(place, **CLASSES), verbose=False) for place in places
    ]
    assert found[0] == found[1] and found[0][0]


def test_missing_forbidden_empty_and_large_objects(store, shapes):
    with pytest.raises(ImageError, match=f"{store}/none.jpg: no such file"):
        read_image(f"{store}/none.jpg")
    assert not located("s3://no-such-bucket/a").exists()
    fsspec.filesystem("s3").pipe("bucket/empty.jpg", b"")
    for read in (read_image, image_size):
        with pytest.raises(ImageError, match="empty.jpg: is no image"):
            read(f"{store}/empty.jpg")


def test_a_server_that_does_not_answer_is_named(monkeypatch):
    monkeypatch.setattr(objects, "ATTEMPTS", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setitem(fsspec.config.conf, "s3", {"endpoint_url": "http://127.0.0.1:9"})
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "testing")
    with pytest.raises(
        StorageError, match=r"s3://bucket/a.jpg: could not be read in 1 .*FSSPEC_S3_ENDPOINT_URL"
    ):
        read_image("s3://bucket/a.jpg")
