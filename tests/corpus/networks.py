"""All families: importing the files files them."""

from tests.corpus import (
    convolutional,
    detection_and_segmentation,
    generators,
    language,
    sequences_points_tables,
    speech,
    vision_transformers,
)
from tests.corpus.family import FAMILIES

FILES = (
    convolutional,
    detection_and_segmentation,
    vision_transformers,
    language,
    speech,
    generators,
    sequences_points_tables,
)

__all__ = ["FAMILIES", "FILES"]
