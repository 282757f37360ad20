"""Search spaces, candidates, fronts and searchers. Knows numpy, scipy and moocore: no torch, Ray, MLflow or boto3.

The package can be called: `prunefront.search("study.toml")` runs a study and returns its front (`door.search`).
"""

import sys
from types import ModuleType
from typing import Any


class _Search(ModuleType):
    """This package as the verb of the front door: `prunefront.search(study)`."""

    def __call__(self, study: Any, **options: Any) -> Any:
        """Runs a study and returns its front; see `door.search` for the options."""
        from prunefront.door import search

        return search(study, **options)


sys.modules[__name__].__class__ = _Search
