"""A batch whose ground truth has no row at all, not even one of padding, is one without objects."""

import torch

from trunkline.heads.detection.losses import dense_box_loss, dense_class_loss
from trunkline.heads.detection.matching import Matcher


def cut(targets, rows):
    for name in ("boxes", "labels", "crowd"):
        setattr(targets, name, getattr(targets, name)[:, :rows])
    return targets


def test_no_row_and_a_row_of_padding_cost_the_same(make_targets, make_head, make_features, place):
    anchors = torch.rand(6, 4) + torch.tensor([0.0, 0.0, 1.0, 1.0])
    logits, deltas, features, head = torch.randn(2, 6, 3), torch.randn(2, 6, 4), make_features(), make_head()
    found = []
    for rows in (0, 1):
        targets = cut(make_targets([[], []]), rows)
        matches = Matcher(0.5, 0.4, 0.5, low_quality=True)(anchors[None], targets)
        assert matches.negative.all() and not matches.positive.any()
        torch.manual_seed(1)
        losses = head.losses(head(features, (128, 192)), targets)
        found.append(
            [
                dense_class_loss(logits, matches, targets),
                dense_box_loss(deltas, anchors, matches, targets),
                *losses.values(),
            ]
        )
    torch.testing.assert_close(found[0], found[1])
    assert found[0][0] > 0 and found[0][1] == 0
