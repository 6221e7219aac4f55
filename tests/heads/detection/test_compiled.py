"""The detector under torch.compile, torch.export and fake tensors: whole graphs, equal to eager."""

import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._subclasses.fake_tensor import FakeTensorMode

from trunkline.heads.detection import nms_keep

OBJECTS = [[(20, 20, 60, 70, 0), (100, 10, 150, 110, 1)], [(5, 40, 80, 69, 2)]]
SIZES = [(128, 192), (70, 90)]


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def keep_inputs(device="cpu"):
    torch.manual_seed(0)
    corner = torch.rand(2, 60, 2) * 60
    boxes = torch.cat([corner, corner + 1 + torch.rand(2, 60, 2) * 30], dim=-1)
    inputs = boxes, torch.rand(2, 60), torch.randint(3, (2, 60)), torch.rand(2, 60) > 0.2
    return [x.to(device) for x in inputs]


@pytest.mark.parametrize("names", [("scores", "groups"), ()])
def test_suppression_is_a_sound_operator(names):
    boxes, scores, groups, valid = keep_inputs()
    optional = (scores, groups) if names else (None, None)
    torch.library.opcheck(torch.ops.trunkline.nms_keep.default, (boxes, *optional, valid, 0.4))


def test_suppression_under_autocast_compares_in_float32(place):
    boxes, *rest = keep_inputs()
    expected = nms_keep(boxes, *rest, 0.4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(nms_keep(boxes, *rest, 0.4), expected)


def test_suppression_of_fake_tensors_has_fixed_shapes():
    with FakeTensorMode():
        boxes = torch.empty(2, 60, 4, device="cuda")
        valid = torch.empty(2, 60, dtype=torch.bool, device="cuda")
        kept = nms_keep(boxes, None, None, valid, 0.4)
    assert kept.shape == (2, 60) and kept.dtype == torch.bool and kept.device.type == "cuda"


def loss_of(head):
    def loss(features, image_sizes, boxes, labels, crowd, kind):
        targets = kind(image_sizes, boxes, labels, crowd)
        return sum(head.losses(head(features, (128, 192)), targets).values())

    return loss


@pytest.mark.slow
def test_losses_compile_whole_with_gradients_equal_to_eager(make_head, make_features, make_targets):
    head = make_head()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(loss_of(head), backend=counter, fullgraph=True, dynamic=False)
    for height, width in ((128, 192), (128, 192), (192, 256), (128, 192)):
        torch.manual_seed(height)
        features = make_features(height=height, width=width)
        targets = make_targets(OBJECTS, SIZES)
        found = []
        for run in (loss_of(head), compiled):
            maps = [feature.clone().requires_grad_() for feature in features]
            torch.manual_seed(1)
            total = run(maps, *vars(targets).values(), type(targets))
            total.backward()
            found.append((total.detach(), [m.grad for m in maps]))
        torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)
    # One graph per canvas; nothing new for a batch of a shape seen before.
    assert counter.frame_count == 2


@pytest.mark.slow
def test_predictions_compile_whole_and_export(make_head, make_features):
    head = make_head()

    class Inference(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.head = head

        def forward(self, features, image_sizes):
            with torch.no_grad():
                return self.head.predict(self.head(features, (128, 192)), image_sizes)

    network, sizes = Inference().eval(), torch.tensor(SIZES)
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(network, backend=counter, fullgraph=True, dynamic=False)
    torch.manual_seed(0)
    exported = torch.export.export(network, (make_features(), sizes)).module()
    for seed in range(2):
        torch.manual_seed(seed)
        features = make_features()
        expected = network(features, sizes)
        for found in (compiled(features, sizes), exported(features, sizes)):
            assert torch.equal(found.count, expected.count) and torch.equal(found.labels, expected.labels)
            torch.testing.assert_close(found.scores, expected.scores, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.boxes, expected.boxes, rtol=1e-4, atol=1e-2)
    assert counter.frame_count == 1
