"""Hook that trains weights for a small bit width."""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from prunefront.choice import Quantisation
from prunefront.pruners.bits.bit_width import Levels, quantise, weights_to_quantise
from prunefront.pruners.procedures.hook import Hook, Progress
from prunefront.pruners.quantisers import quantisers


class QuantisedWeights(Hook):
    """The network computes with quantised weights, and float weights are trained (Hwang & Sung 2014).

    Scales are fitted again as often as the quantiser asks: before each step, or at the first of each epoch. The
    quantiser also says which gradient the float weights get, and to which values they are clipped.
    """

    def __init__(self, model: nn.Module, bits: Mapping[str, int], quantisation: Quantisation) -> None:
        """model: holds the float weights that are trained. bits, and the errors raised: as in `quantise`."""
        self.model, self.bits, self.quantisation = model, dict(bits), quantisation
        self.quantiser = quantisers[quantisation.quantiser]
        self._float: dict[str, Tensor] = {}
        self._levels: dict[str, Levels] = {}
        self._epoch = -1
        list(self._weights())  # raises at once where the bit widths are impossible

    @torch.no_grad()
    def install(self, run: Progress) -> None:
        epoch = run.step // run.per_epoch
        fit = self.quantiser.every == "step" or epoch != self._epoch
        self._epoch = epoch
        for name, weight in self._weights():
            if fit:
                self._levels[name] = Levels.of(
                    weight, self.quantiser, self.bits[name], self.quantisation.per_channel
                )
            self._float[name] = weight.detach().clone()
            weight.copy_(self._levels[name].quantised(weight))

    @torch.no_grad()
    def restore(self, run: Progress) -> None:
        for name, weight in self._weights():
            weight.copy_(self._float.pop(name))

    @torch.no_grad()
    def use_gradients(self, run: Progress) -> bool:
        for name, weight in self._weights():
            if weight.grad is not None:
                weight.grad.copy_(self._levels[name].gradient(weight, weight.grad))
        return True

    @torch.no_grad()
    def after_step(self, run: Progress) -> None:
        for _, weight in self._weights():
            weight.copy_(self.quantiser.constrain(weight))

    def finish(self, run: Progress) -> None:
        """Makes quantised weights, with scales fitted to the present float weights, the network's own."""
        quantise(self.model, self.bits, self.quantisation)

    def _weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        return weights_to_quantise(self.model, self.bits, self.quantiser)
