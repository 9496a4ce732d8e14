"""The average of a network's weights over its training, by torch's AveragedModel."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn, update_bn


class Average:
    """``ema``: moving average over the steps, BatchNorm statistics included; ``swa``: mean over the ends of epochs."""

    def __init__(self, model: nn.Module, kind: str, epochs: int, options: Mapping[str, Any]) -> None:
        self._model, self._moving = model, kind == "ema"
        self._start = math.floor(options.get("start", 0.75) * epochs)
        average = get_ema_multi_avg_fn(options.get("decay", 0.999)) if self._moving else None
        self._network = AveragedModel(model, multi_avg_fn=average, use_buffers=self._moving)
        self.state_dict, self.load_state_dict = self._network.state_dict, self._network.load_state_dict

    def end_step(self, *_: object) -> None:
        """Called after every step of the optimizer."""
        if self._moving:
            self._network.update_parameters(self._model)

    def end_epoch(self, number: int) -> None:
        """Called after every epoch, with the number of those that are over."""
        if not self._moving and number > self._start:
            self._network.update_parameters(self._model)

    def install(self, images: Iterable[Tensor] | None, through: nn.Module) -> None:
        """Put the average in place of the weights; a mean over epochs takes BatchNorm statistics from the images."""
        # Through the state, so that an attached mask keeps its zeros.
        self._model.load_state_dict(self._network.module.state_dict())
        if not self._moving and images is not None:
            update_bn(images, through)
