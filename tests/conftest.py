"""Settings for every test."""

import os

from hypothesis import settings

# A busy machine is no bug, so no example has a time limit. In CI hypothesis has a profile of its own, which repeats.
settings.register_profile("unhurried", deadline=None)
if not os.environ.get("CI"):
    settings.load_profile("unhurried")
