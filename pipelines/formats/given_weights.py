"""Loads the trained weights that a study file names, from a file or a library's folder."""

from torch import nn

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import ModelSection
from prunefront.pipelines.formats.weights import load_weights
from prunefront.pipelines.models.libraries import library_of


def load_given(model: nn.Module, section: ModelSection) -> str:
    """Loads the trained weights that a study file names; returns what was found in the file, "" for plain weights."""
    if section.weights is None:
        return ""
    if section.weights.is_dir():
        found = library_of(section.factory)
        if found is None or found[0].load is None:
            raise PrunefrontError(
                f"model.weights = {str(section.weights)!r} is a folder, which only networks of transformers have "
                "(model.factory = 'hf:FOLDER'); give a file"
            )
        return found[0].load(model, section.weights)
    return load_weights(model, section.weights, key=section.weights_key, setting="model.weights_key")
