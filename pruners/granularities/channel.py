"""A unit is a channel, or the channels that cannot go one without the other."""

from collections.abc import Mapping

import torch
from torch import Tensor

from pruners.granularities import granularities
from pruners.graph import ChannelGroup
from pruners.statistics import Statistics
from pruners.view import UnitView, per_unit, producers, rows, scales


class Channel:
    """Units are those of the channel group itself."""

    def view(self, group: ChannelGroup, tensors: Mapping[str, Tensor], statistics: Statistics) -> UnitView:
        """One row per unit of the group, float64 on the CPU; the tensors stay as they are."""
        dense = {
            m.tensor: tensors[m.tensor].detach().to("cpu", torch.float64)
            for m in group.members
            if m.role in ("out", "norm")
        }
        made_by = [rows(dense[m.tensor], m) for m in producers(group, {n: t.shape for n, t in dense.items()})]
        scaled_by = [per_unit(dense[m.tensor].abs(), m) for m in scales(group)]
        return UnitView(
            weight=torch.cat(made_by, dim=1) if made_by else torch.zeros(group.units, 0, dtype=torch.float64),
            gate_gradient=statistics.gate_gradient.get(group.name),
            activation=statistics.activation.get(group.name),
            norm_scale=torch.stack(scaled_by).sum(dim=0) if scaled_by else None,
        )


granularities.register("channel")(Channel())
