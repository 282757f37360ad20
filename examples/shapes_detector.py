"""A small detector without anchors for shapes_detector.toml. Quick: python examples/shapes_detector.py --quick"""

import torch
import torch.nn.functional as F
from torch import nn

STRIDE = 4
"""Pixels from one cell of the outputs to the next."""

SHAPES = 3
"""Classes: circle, square, triangle."""


def layer(inputs, outputs, stride=1):
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class Residual(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.one, self.two = layer(width, width), nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(width)

    def forward(self, x):
        return torch.relu(x + self.norm(self.two(self.one(x))))


class Detector(nn.Module):
    """Images (b, 3, h, w) to logits of each shape's centre (b, SHAPES, h/4, w/4) and distances to four edges (b, 4, …).

    Distances are logarithms of numbers of cells. Features of two resolutions are added up before the heads. Sides are
    multiples of 8.
    """

    def __init__(self, width=16):
        super().__init__()
        self.stem = nn.Sequential(layer(3, width // 2, 2), layer(width // 2, width, 2), Residual(width))
        self.deep = nn.Sequential(layer(width, 2 * width, 2), Residual(2 * width), Residual(2 * width))
        self.lateral, self.rise = nn.Conv2d(width, width, 1), nn.Conv2d(2 * width, width, 1)
        self.centres = nn.Sequential(layer(width, width), nn.Conv2d(width, SHAPES, 1))
        self.edges = nn.Sequential(layer(width, width), nn.Conv2d(width, 4, 1))
        nn.init.constant_(self.centres[-1].bias, -3.0)  # few cells are centres (focal loss)

    def forward(self, x):
        fine = self.stem(x)
        coarse = F.interpolate(self.rise(self.deep(fine)), scale_factor=2.0)
        both = torch.relu(self.lateral(fine) + coarse)
        return self.centres(both), self.edges(both)


def middles(edges):
    """Returns the pixel in the middle of each cell: x (1, w) and y (h, 1)."""
    h, w = edges.shape[-2:]
    return (torch.arange(w)[None] + 0.5) * STRIDE, (torch.arange(h)[:, None] + 0.5) * STRIDE


def decode(outputs, most=12):
    """Returns boxes, scores and labels of each image: cells whose score is the highest among their neighbours'."""
    centres, edges = outputs
    scores = centres.sigmoid()
    scores = scores * (scores == F.max_pool2d(scores, 3, 1, padding=1))
    best, place = scores.flatten(1).topk(most)
    label, cell = place // edges[0, 0].numel(), place % edges[0, 0].numel()
    x, y = middles(edges)
    left, up, right, down = (STRIDE * edges.clamp(max=4).exp()).unbind(1)
    boxes = torch.stack([x - left, y - up, x + right, y + down], -1).flatten(1, 2)
    boxes = boxes.gather(1, cell[..., None].expand(-1, -1, 4))
    return [{"boxes": b, "scores": s, "labels": k} for b, s, k in zip(boxes, best, label, strict=True)]


def loss(outputs, targets):
    """Returns the focal loss of centres (CornerNet, eq. 1) and the smooth distance of edges near them.

    targets (b, n, 5): x1, y1, x2, y2, shape; shape -1 = no box.
    """
    centres, edges = outputs
    x, y = middles(edges)
    cells = ((targets[..., :2] + targets[..., 2:4]) / 2).div(STRIDE, rounding_mode="floor")
    far = (x / STRIDE - 0.5 - cells[..., :1, None]) ** 2 + (y / STRIDE - 0.5 - cells[..., 1:2, None]) ** 2
    near = (
        torch.exp(-far / 2) * (targets[..., 4] >= 0)[..., None, None]
    )  # (b, n, h, w), 1 in the middle of a box
    kind = F.one_hot(targets[..., 4].long().clamp(min=0), SHAPES)[..., None, None]
    wanted = (near[:, :, None] * kind).amax(1)
    score, is_centre = centres.sigmoid(), wanted == 1
    focal = torch.where(
        is_centre,
        (1 - score) ** 2 * F.logsigmoid(centres),
        (1 - wanted) ** 4 * score**2 * F.logsigmoid(-centres),
    )
    closest, owner = near.max(1)
    box = (
        targets[..., :4]
        .gather(1, owner.flatten(1)[..., None].expand(-1, -1, 4))
        .unflatten(1, owner.shape[1:])
    )
    true = torch.stack([x - box[..., 0], y - box[..., 1], box[..., 2] - x, box[..., 3] - y], 1)
    off = F.smooth_l1_loss(edges, true.clamp(min=1).div(STRIDE).log(), reduction="none", beta=0.1).sum(1)
    return -focal.sum() / is_centre.sum().clamp(min=1) + off[closest > 0.5].mean()


if __name__ == "__main__":
    from drawn_shapes import search

    search("shapes_detector.toml", quick_size=32)
