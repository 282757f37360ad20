"""Units that are channels, or sets of channels that must be dropped together."""

from collections.abc import Mapping

import torch
from torch import Tensor

from prunefront.pruners.granularities import granularities
from prunefront.pruners.graph.channel_graph import ChannelGroup
from prunefront.pruners.statistics import Statistics
from prunefront.pruners.units.view import (
    MEASURED,
    UnitView,
    consumers,
    per_unit,
    producers,
    rows,
    scales,
    shifts,
)


class Channel:
    """The units of the channel group itself."""

    def view(self, group: ChannelGroup, tensors: Mapping[str, Tensor], statistics: Statistics) -> UnitView:
        """Returns one row per unit of the group, float64 on the CPU; the tensors stay as they are."""
        dense = {
            m.tensor: tensors[m.tensor].detach().to("cpu", torch.float64)
            for m in group.members
            if m.role in ("out", "norm", "in")
        }
        made_by = [rows(dense[m.tensor], m) for m in producers(group, {n: t.shape for n, t in dense.items()})]
        read_by = [rows(dense[m.tensor], m) for m in consumers(group)]
        scaled_by = [(dense[m.tensor], m) for m in scales(group)]
        shifted_by = [(dense[m.tensor], m) for m in shifts(group)]
        return UnitView(
            weight=torch.cat(made_by, dim=1) if made_by else torch.zeros(group.units, 0, dtype=torch.float64),
            outgoing=torch.cat(read_by, dim=1) if read_by else None,
            norm_scale=_sum([per_unit(t.abs(), m) for t, m in scaled_by]),
            norm_shift=_sum([per_unit(t, m) for t, m in shifted_by]) if scaled_by else None,
            norm_variance=_sum([per_unit(t.square(), m) for t, m in scaled_by]),
            **{name: statistics.get(name, group.name) for name in MEASURED},
        )


def _sum(parts: list[Tensor]) -> Tensor | None:
    return torch.stack(parts).sum(dim=0) if parts else None


granularities.register("channel")(Channel())
