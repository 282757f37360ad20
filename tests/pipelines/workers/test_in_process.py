"""The study's own process as its worker refuses what one process cannot do."""

import pytest
import torch

from prunefront.errors import PrunefrontError
from prunefront.pipelines.config.sections import ClusterSection
from prunefront.pipelines.workers.in_process import in_process


@pytest.mark.parametrize(
    ("asked", "said"),
    [({"workers": 2}, "workers = 2 asks for several"), ({"gpus_per_worker": 1}, "torch sees no CUDA GPU")],
)
def test_what_one_process_cannot_do_is_refused(
    monkeypatch: pytest.MonkeyPatch, asked: dict[str, int], said: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(PrunefrontError, match=said), in_process(ClusterSection(**asked)):
        raise AssertionError("it was not refused")
