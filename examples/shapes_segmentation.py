"""A small U-Net for shapes_segmentation.toml. Quick: python examples/shapes_segmentation.py --quick"""

import torch
from torch import nn


def twice(inputs, outputs):
    layers = []
    for width in (inputs, outputs):
        layers += [nn.Conv2d(width, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers)


class UNet(nn.Module):
    """Images (b, 3, h, w) to logits (b, 4, h, w): background, circle, square, triangle. Sides are multiples of 4."""

    def __init__(self, width=8):
        super().__init__()
        self.down1, self.down2 = twice(3, width), twice(width, 2 * width)
        self.bottom = twice(2 * width, 4 * width)
        self.rise2, self.rise1 = (nn.ConvTranspose2d(2 * w, w, 2, stride=2) for w in (2 * width, width))
        self.up2, self.up1 = twice(4 * width, 2 * width), twice(2 * width, width)
        self.head = nn.Conv2d(width, 4, 1)
        self.halve = nn.MaxPool2d(2)

    def forward(self, x):
        whole = self.down1(x)
        half = self.down2(self.halve(whole))
        low = self.bottom(self.halve(half))
        half = self.up2(torch.cat([half, self.rise2(low)], 1))
        return self.head(self.up1(torch.cat([whole, self.rise1(half)], 1)))


if __name__ == "__main__":
    from drawn_shapes import search

    search("shapes_segmentation.toml", quick_size=24)
