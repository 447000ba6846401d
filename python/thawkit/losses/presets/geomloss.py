"""Stand-in for geomloss's ``SamplesLoss``: its kernel norms, ``1/2 |a - b|_k^2`` of weighted samples.

Sinkhorn divergences and the Hausdorff loss are refused. What differs: values are exact whatever the backend,
so that ``multiscale``, which truncates kernels, is refused too; potentials have the shape of the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from thawkit.errors import ThawkitError
from thawkit.losses.presets.unsupported import only
from thawkit.ops import checks
from thawkit.ops.pairwise import mmd
from thawkit.ops.pairwise.common import full_precision, lifted
from thawkit.ops.pairwise.panels import in_panels
from thawkit.ops.pairwise.reference.kernels import Kernel
from thawkit.ops.pairwise.reference.mmd import Sample, Weights

KERNELS = ("gaussian", "laplacian", "energy")
_SMALLEST_SQUARE = 1e-8  # of a distance, below which geomloss does not go before it takes the root


class SamplesLoss(nn.Module):
    """``geomloss.SamplesLoss`` for ``gaussian``, ``laplacian`` and ``energy``.

    ``1/2 sum a_i a_j k(x_i, x_j) + 1/2 sum b_i b_j k(y_i, y_j) - sum a_i b_j k(x_i, y_j)`` with
    ``k = exp(-d^2 / (2 blur^2))``, ``exp(-d / blur)`` or ``-d``. The Gaussian one runs on the engine of
    :func:`thawkit.losses.functional.mmd` unless weights need a gradient. The others, whose distances end at
    1e-4 as there, and potentials are plain PyTorch, some rows of the matrix of pairs at a time, which take
    about 32 MiB and are computed anew in the backward pass.

    Args:
        loss: which of them; there is no default, as geomloss's is ``sinkhorn``.
        p, reach, diameter, scaling, truncate, cost, cluster_scale, debias, verbose: without effect on kernel
            norms, as there.
        blur: the kernel's bandwidth.
        kernel: None only.
        potentials: return the two functions ``k * (a - b)`` on x and ``k * (b - a)`` on y instead.
        backend: ``auto``, ``tensorized`` or ``online``, without effect.
    """

    def __init__(
        self,
        loss: str = "sinkhorn",
        p: int = 2,
        blur: float = 0.05,
        reach: float | None = None,
        diameter: float | None = None,
        scaling: float = 0.5,
        truncate: float | None = 5,
        cost: object = None,
        kernel: object = None,
        cluster_scale: float | None = None,
        debias: bool = True,
        potentials: bool = False,
        verbose: bool = False,
        backend: str = "auto",
    ):
        super().__init__()
        checks.one_of("loss", loss, KERNELS)
        checks.positive_scalar("blur", blur)
        only(None, kernel=kernel)
        checks.boolean("potentials", potentials)
        checks.one_of("backend", backend, ("auto", "tensorized", "online"))
        self.loss = loss
        self.blur = blur
        self.potentials = potentials
        self.backend = backend

    def forward(self, *args: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """Return the loss of ``(x, y)``, ``(a, x, b, y)`` or ``(None, a, x, None, b, y)``.

        x is (N, D) and y (M, D), with weights a and b (N,) and (M,) or (N, 1) and (M, 1), and the loss a
        scalar; or all have another dimension in front, and the loss is (B,).
        """
        a, x, b, y = self._arguments(args)
        with full_precision(x):
            x, y = lifted(x), lifted(y)
            weights = [
                sample.new_full(sample.shape[:-1], 1 / sample.shape[-2])
                if weight is None
                else weight.to(sample.dtype).reshape(sample.shape[:-1])
                for weight, sample in ((a, x), (b, y))
            ]
            if self.potentials:
                on_x = self._times(x, x, weights[0]) - self._times(x, y, weights[1])
                on_y = self._times(y, y, weights[1]) - self._times(y, x, weights[0])
                return on_x, on_y
            learned = torch.is_grad_enabled() and any(w.requires_grad for w in weights)
            if self.loss != "gaussian" or learned:
                return self._norm(x, y, *weights)
            if x.dim() == 2:
                return self._gaussian(x, y, *weights)
            norms = [self._gaussian(*of_batch) for of_batch in zip(x, y, *weights, strict=True)]
            return torch.stack(norms) if norms else x.new_zeros(0)

    def _arguments(self, args: tuple) -> tuple[Tensor | None, Tensor, Tensor | None, Tensor]:
        if len(args) == 6:
            only(None, l_x=args[0])
            only(None, l_y=args[3])
            args = args[1:3] + args[4:]
        if len(args) == 2:
            args = None, args[0], None, args[1]
        if len(args) != 4:
            raise ThawkitError(
                f"a loss takes (x, y), (a, x, b, y) or (l_x, a, x, l_y, b, y), got {len(args)} arguments"
            )
        a, x, b, y = args
        checks.floating("x", x)
        checks.floating("y", y)
        checks.same_device("y", y, "x", x)
        fits = x.dim() == y.dim() and x.shape[:-2] == y.shape[:-2] and x.shape[-1:] == y.shape[-1:]
        if x.dim() not in (2, 3) or not fits or x.dtype != y.dtype:
            raise ThawkitError(
                "x and y must have shapes (N, D) and (M, D), or (B, N, D) and (B, M, D), and one dtype, "
                f"got {tuple(x.shape)} {x.dtype} and {tuple(y.shape)} {y.dtype}"
            )
        for name, sample in (("x", x), ("y", y)):
            if sample.shape[-2] == 0:
                raise ThawkitError(f"{name} must have at least 1 row, got none")
        for name, weight, sample in (("a", a, x), ("b", b, y)):
            if weight is None:
                continue
            checks.floating(name, weight)
            if weight.shape not in (sample.shape[:-1], (*sample.shape[:-1], 1)):
                raise ThawkitError(
                    f"{name} must have one weight a row, {tuple(sample.shape[:-1])}, "
                    f"got {tuple(weight.shape)}"
                )
        return a, x, b, y

    def _norm(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        within_x = (a * self._times(x, x, a)).sum(-1)
        within_y = (b * self._times(y, y, b)).sum(-1)
        return within_x / 2 + within_y / 2 - (a * self._times(x, y, b)).sum(-1)

    def _gaussian(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        rates = x.new_full((1,), self.blur, dtype=torch.float64).square().reciprocal()
        return mmd([Sample(x, y, Kernel("rbf"), rates)], Weights(a, -b)) / 2

    def _times(self, u: Tensor, v: Tensor, weights: Tensor) -> Tensor:
        """(..., N) kernel values of rows u with all rows v, times the weights of these."""
        scale = 1.0 if self.loss == "energy" else self.blur
        middle = v.detach().mean(-2, keepdim=True)  # distances do not see it, rounding does
        rows, columns = (u - middle) / scale, (v - middle) / scale
        own = torch.arange(u.shape[-2], device=u.device) if u is v else None

        def of_rows(top: int, bottom: int) -> Tensor:
            part = rows[..., top:bottom, :]
            squares = part.square().sum(-1, keepdim=True) + columns.square().sum(-1).unsqueeze(-2)
            squares = squares - 2 * part @ columns.transpose(-1, -2)
            if own is not None:  # the root would make much of rounding
                squares = squares.masked_fill(own == own[top:bottom, None], 0)
            return (self._kernel(squares) @ weights.unsqueeze(-1)).squeeze(-1).movedim(-1, 0)

        return in_panels(of_rows, u.shape[-2], columns.shape[:-1].numel()).movedim(0, -1)

    def _kernel(self, squares: Tensor) -> Tensor:
        if self.loss == "gaussian":
            return torch.exp(-squares.clamp_min(0) / 2)
        distances = squares.clamp_min(_SMALLEST_SQUARE).sqrt()
        return -distances if self.loss == "energy" else torch.exp(-distances)
