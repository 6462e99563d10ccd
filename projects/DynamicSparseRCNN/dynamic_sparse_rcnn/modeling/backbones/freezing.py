"""Freezes parts of a backbone."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_up_to(model: nn.Module, last: str) -> list[str]:
    """Freezes all modules up to one, in the order in which they are registered (and run).

    Args:
        model: to be frozen in part.
        last: the name of the last module to freeze, with all of its submodules.

    Returns:
        The names of the modules that are frozen as a whole.
    """
    names = [name for name, _ in model.named_modules()]
    end = max(index for index, name in enumerate(names) if name == last or name.startswith(f"{last}."))
    frozen_names, learning = set(names[: end + 1]), names[end + 1 :]
    frozen = []
    for name, module in model.named_modules():
        if name not in frozen_names:
            continue
        for parameter in module.parameters(recurse=False):
            parameter.requires_grad_(False)
        if not any(name == "" or other.startswith(f"{name}.") for other in learning):
            frozen.append(name)
    return frozen


class KeptInEval:
    """Modules that stay in evaluation mode while the rest of a model trains."""

    def __init__(
        self, model: nn.Module, frozen: Iterable[str], *, norm_eval: bool = False, norm_frozen: bool = False
    ) -> None:
        """
        Args:
            model: that trains.
            frozen: names of the modules that stay in evaluation mode, with all of their submodules.
            norm_eval: whether all batch norms stay in evaluation mode, and so keep their statistics.
            norm_frozen: whether their scale and shift get no gradients.
        """
        self._model, self._frozen, self._norm_eval = model, tuple(frozen), norm_eval
        if norm_frozen:
            for norm in self._norms():
                norm.requires_grad_(False)

    def apply(self) -> None:
        """Call this after the model was set to training mode."""
        # Looked up each time: a conversion to synchronized batch norms puts other modules in their places.
        for name in self._frozen:
            self._model.get_submodule(name).eval()
        for norm in self._norms() if self._norm_eval else ():
            norm.eval()

    def _norms(self) -> list[nn.Module]:
        return [module for module in self._model.modules() if isinstance(module, _BatchNorm)]
