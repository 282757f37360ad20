"""Turns stored images into network input, a whole batch at a time."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from prunefront.pipelines.data.splits import Split, Transform


def batches(
    split: Split,
    transform: Transform,
    batch_size: int,
    *,
    augment: np.random.Generator | None = None,
    shuffle: np.random.Generator | None = None,
    device: str | torch.device = "cpu",
    channels_last: bool = False,
    smallest: int = 1,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields (images, labels): float32 (b, c, h, w), normalised, and int64 (b,); every image once.

    augment: draws the transform's augmentation; None leaves images plain. shuffle: draws the order; None keeps it.
    Only these generators decide: a seed fixes the stream, whatever the number of threads or workers. smallest: least
    number of images in the last batch; a smaller rest joins the batch before (batch norm cannot train on one image).
    """
    order = np.arange(len(split)) if shuffle is None else shuffle.permutation(len(split))
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    for start, end in bounds(len(split), batch_size, smallest):
        rows: np.ndarray | slice = slice(start, end) if shuffle is None else order[start:end]
        images = normalise(split.images[rows], transform, device)
        if augment is not None:
            images = augment_images(images, transform, augment)
        labels = torch.tensor(split.labels[rows], device=device)
        yield images.contiguous(memory_format=memory_format), labels


def normalise(images: np.ndarray, transform: Transform, device: str | torch.device = "cpu") -> Tensor:
    """Returns float32 (b, c, h, w) of uint8 or float32 images (b, c, h, w); never shares memory with them."""
    # np.array copies: torch must not be handed read-only memory, which is what Ray's object store returns
    pixels = torch.from_numpy(np.array(images)).to(device).float()  # bytes travel to the device, not floats
    scale = 255.0 if images.dtype == np.uint8 else 1.0
    mean = (torch.tensor(transform.mean) * scale).view(1, -1, 1, 1).to(device)
    factor = (1.0 / (torch.tensor(transform.std) * scale)).view(1, -1, 1, 1).to(device)
    return pixels.sub_(mean).mul_(factor)


def augment_images(images: Tensor, transform: Transform, generator: np.random.Generator) -> Tensor:
    """Returns randomly shifted, and for `crop_flip` mirrored, copies of the normalised images (b, c, h, w)."""
    if transform.augment == "none":
        return images
    count, _, height, width = images.shape
    if transform.padding:
        p = transform.padding
        down, right = torch.from_numpy(generator.integers(0, 2 * p + 1, size=(2, count))).to(images.device)
        # every possible crop as a view (b, c, 2p+1, 2p+1, h, w); indexing copies the one that was drawn
        windows = _on_black(images, transform).unfold(2, height, 1).unfold(3, width, 1)
        images = windows[torch.arange(count, device=images.device), :, down, right]
    if transform.augment == "crop_flip":
        flip = torch.from_numpy(generator.random(count) < 0.5).to(images.device)
        images = torch.where(flip.view(-1, 1, 1, 1), images.flip(3), images)
    return images


def _on_black(images: Tensor, transform: Transform) -> Tensor:
    """Returns the normalised images (b, c, h, w) within a border of black pixels, which are not zero once normalised.

    Padding before normalisation gives the same, and most networks were trained with that. A border of zeros in its
    place cost a ResNet-20 on CIFAR-10 two points when its batch norms were estimated anew.
    """
    p = transform.padding
    count, channels, height, width = images.shape
    black = normalise(np.zeros((1, channels, 1, 1), np.float32), transform).to(images)
    padded = black.repeat(count, 1, height + 2 * p, width + 2 * p)
    padded[:, :, p : p + height, p : p + width] = images
    return padded


def bounds(count: int, batch_size: int, smallest: int) -> list[tuple[int, int]]:
    """Returns (start, end) of each batch, see `batches`."""
    if not count:
        return []
    starts = list(range(0, count, batch_size))
    if len(starts) > 1 and count - starts[-1] < smallest:
        starts.pop()
    return list(zip(starts, [*starts[1:], count], strict=True))
