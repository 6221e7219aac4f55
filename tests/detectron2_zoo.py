"""A small Faster R-CNN with the names of detectron2's model zoo, and trunks with those of Caffe2."""

import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import roi_align

from trunkline.heads.detection import level_of_box

WIDTH, CHANNELS, HIDDEN, CLASSES = 8, 8, 16, 3
BGR_MEAN = [103.53, 116.28, 123.675]


class ConvNorm(nn.Conv2d):
    """A convolution that owns its norm, as detectron2's do."""

    def __init__(self, inputs, outputs, kernel, stride=1, norm=True):
        super().__init__(inputs, outputs, kernel, stride, kernel // 2, bias=not norm)
        self.norm = nn.BatchNorm2d(outputs) if norm else nn.Identity()

    def forward(self, x):
        return self.norm(super().forward(x))


class Block(nn.Module):
    def __init__(self, inputs, width, stride):
        super().__init__()
        if inputs != 4 * width or stride > 1:
            self.shortcut = ConvNorm(inputs, 4 * width, 1, stride)
        self.conv1 = ConvNorm(inputs, width, 1, stride)
        self.conv2 = ConvNorm(width, width, 3)
        self.conv3 = ConvNorm(width, 4 * width, 1)

    def forward(self, x):
        out = self.conv3(self.conv2(self.conv1(x).relu()).relu())
        return (out + (self.shortcut(x) if hasattr(self, "shortcut") else x)).relu()


class Trunk(nn.Module):
    """ResNet-50 in detectron2's names, the stride in the first 1x1 convolution."""

    def __init__(self):
        super().__init__()
        self.stem = nn.ModuleDict({"conv1": ConvNorm(3, WIDTH, 7, 2)})
        inputs = WIDTH
        for index, count in enumerate((3, 4, 6, 3)):
            width, blocks = WIDTH * 2**index, []
            for number in range(count):
                blocks.append(Block(inputs, width, 2 if index and not number else 1))
                inputs = 4 * width
            self.add_module(f"res{index + 2}", nn.Sequential(*blocks))

    def forward(self, image):
        x = F.max_pool2d(self.stem["conv1"](image).relu(), 3, 2, 1)
        maps = []
        for index in range(2, 6):
            x = self.get_submodule(f"res{index}")(x)
            maps.append(x)
        return maps


class Pyramid(nn.Module):
    def __init__(self):
        super().__init__()
        for index in range(2, 6):
            self.add_module(f"fpn_lateral{index}", nn.Conv2d(4 * WIDTH * 2 ** (index - 2), CHANNELS, 1))
            self.add_module(f"fpn_output{index}", nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1))
        self.bottom_up = Trunk()

    def forward(self, image):
        maps, coarser, found = self.bottom_up(image), None, []
        for index in range(5, 1, -1):
            x = self.get_submodule(f"fpn_lateral{index}")(maps[index - 2])
            coarser = x if coarser is None else x + F.interpolate(coarser, scale_factor=2.0)
            found.insert(0, self.get_submodule(f"fpn_output{index}")(coarser))
        return [*found, F.max_pool2d(found[-1], 1, 2)]


class Zoo(nn.Module):
    """Faster R-CNN in detectron2's names; computes what comes before any choice of boxes."""

    def __init__(self):
        super().__init__()
        self.backbone = Pyramid()
        head = {"conv": nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)}
        head |= {"objectness_logits": nn.Conv2d(CHANNELS, 3, 1), "anchor_deltas": nn.Conv2d(CHANNELS, 12, 1)}
        self.proposal_generator = nn.ModuleDict({"rpn_head": nn.ModuleDict(head)})
        box = {"fc1": nn.Linear(CHANNELS * 49, HIDDEN), "fc2": nn.Linear(HIDDEN, HIDDEN)}
        predictor = {"cls_score": nn.Linear(HIDDEN, CLASSES + 1), "bbox_pred": nn.Linear(HIDDEN, 4 * CLASSES)}
        self.roi_heads = nn.ModuleDict(
            {"box_head": nn.ModuleDict(box), "box_predictor": nn.ModuleDict(predictor)}
        )

    def features(self, rgb):
        """From uint8 RGB images, which it turns to BGR, on the scale 0..255."""
        return self.backbone(rgb.flip(1).float() - torch.tensor(BGR_MEAN).view(3, 1, 1))

    def rpn(self, features):
        head = self.proposal_generator["rpn_head"]
        hidden = [head["conv"](x).relu() for x in features]
        scores = [head["objectness_logits"](x).permute(0, 2, 3, 1).flatten(1) for x in hidden]
        deltas = [head["anchor_deltas"](x).permute(0, 2, 3, 1).reshape(len(x), -1, 4) for x in hidden]
        return torch.cat(scores, 1), torch.cat(deltas, 1)

    def boxes(self, features, boxes):
        level = level_of_box(boxes, 4, 4, 224, 4)[0]
        pooled = [
            roi_align(features[index], [box[None]], 7, 1 / (4 * 2**index), 0, True)
            for index, box in zip(level.tolist(), boxes[0], strict=True)
        ]
        head, predictor = self.roi_heads["box_head"], self.roi_heads["box_predictor"]
        hidden = head["fc2"](head["fc1"](torch.cat(pooled).flatten(1)).relu()).relu()
        return predictor["cls_score"](hidden), predictor["bbox_pred"](hidden)


def caffe2(trunk, affine):
    """A trunk under the names of Caffe2's files."""
    words = {"weight": "s", "bias": "b"} if affine else {"weight": "gamma", "bias": "beta"}
    layers = {"shortcut": "branch1", "conv1": "branch2a", "conv2": "branch2b", "conv3": "branch2c"}
    state = {}
    for name, value in trunk.state_dict().items():
        *place, last = name.split(".")
        norm = place[-1] == "norm"
        place = place[:-1] if norm else place
        if place[0] == "stem":
            base = "res_conv1_bn" if norm else "conv1"
        else:
            base = "_".join([*place[:2], layers[place[2]]]) + ("_bn" if norm else "")
        if norm and last.startswith("running") and affine:
            continue
        state[f"{base}_{words.get(last, last) if norm else 'w'}"] = value
    return state | {"fc1000_w": torch.zeros(2, 2), "fc1000_b": torch.zeros(2)}
