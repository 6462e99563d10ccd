"""Which parts of a backbone do not learn."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_up_to(model: nn.Module, last: str) -> list[str]:
    """Takes the gradients from all modules up to one, in the order in which they are registered (and run).

    Args:
        model: whose modules these are.
        last: the name of the last frozen one; all within it are frozen too.

    Returns:
        The names of the modules frozen whole.
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
            model: whose modules these are.
            frozen: names of those that stay in evaluation mode, with all of their submodules.
            norm_eval: so do all batch norms: they keep their statistics.
            norm_frozen: their scale and shift get no gradients.
        """
        self._model, self._frozen, self._norm_eval = model, tuple(frozen), norm_eval
        if norm_frozen:
            for norm in self._norms():
                norm.requires_grad_(False)

    def apply(self) -> None:
        """To be called after the model was set to training mode."""
        # Looked up each time: a conversion to synchronised batch norms puts other modules in their places.
        for name in self._frozen:
            self._model.get_submodule(name).eval()
        for norm in self._norms() if self._norm_eval else ():
            norm.eval()

    def _norms(self) -> list[nn.Module]:
        return [module for module in self._model.modules() if isinstance(module, _BatchNorm)]
