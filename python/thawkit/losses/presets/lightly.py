"""Stand-in for lightly's ``NTXentLoss`` (``lightly.loss``), its memory bank included."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from thawkit.errors import ThawkitError
from thawkit.losses import distributed as across_ranks
from thawkit.losses import functional as F
from thawkit.losses.distributed.exchange import gather
from thawkit.losses.distributed.ranks import UNTRACED, Ranks, meet, prepared
from thawkit.losses.presets import own_rows
from thawkit.ops import checks


class NTXentLoss(nn.Module):
    """``lightly.loss.NTXentLoss``: SimCLR's loss, or with a memory bank that of MoCo.

    Args:
        temperature: positive; a parameter is learned with the model.
        memory_bank_size: 0: no bank; (rows, features): of so many earlier ``out1``.
        gather_distributed: the rows of all ranks are negatives, by :mod:`thawkit.losses.distributed`, and the
            loss is the mean of this rank's. With a memory bank: all ranks' rows go into it.
    """

    def __init__(
        self,
        temperature: Tensor | float = 0.5,
        memory_bank_size: int | Sequence[int] = 0,
        gather_distributed: bool = False,
    ):
        super().__init__()
        checks.positive_scalar("temperature", temperature)
        self.memory_bank = MemoryBankModule(memory_bank_size, gather_distributed)
        self.temperature = temperature
        self.gather_distributed = gather_distributed

    def forward(self, out0: Tensor, out1: Tensor) -> Tensor:
        """Return the mean loss of two views (N, D), which need not be normalized.

        With a memory bank the negatives of each ``out0`` are the bank's rows; then ``out1`` takes the place
        of its oldest ones, if ``out0`` needs a gradient.
        """
        if not self.memory_bank.size[0]:
            if not self.gather_distributed:
                return F.nt_xent(out0, out1, temperature=self.temperature)
            rows = across_ranks.nt_xent(out0, out1, temperature=self.temperature, reduction="none")
            return own_rows.mean(rows)
        return self._against_bank(out0, out1)

    def _against_bank(self, out0: Tensor, out1: Tensor) -> Tensor:
        # without a gradient the bank stays as it is, and the ranks need not meet
        update = torch.is_grad_enabled() and getattr(out0, "requires_grad", True)
        mode = "gather" if update and self.gather_distributed else None

        def check() -> None:
            checks.positive_scalar("temperature", self.temperature)  # it may have been learned
            checks.matrix("out0", out0)
            checks.twin("out1", out1, "out0", out0)
            self.memory_bank.check(out1)

        prepared(None, mode, check)
        keys, bank = self.memory_bank(normalize(out1, dim=1), update=update)
        rows = F.info_nce(
            normalize(out0, dim=1),
            keys,
            negatives=bank.to(out0),
            in_batch=False,
            logit_scale=1 / self.temperature,
            normalize=False,
            reduction="none" if self.gather_distributed else "mean",
        )
        return own_rows.mean(rows) if self.gather_distributed else rows


class MemoryBankModule(nn.Module):
    """lightly's ring of earlier rows, at first random ones of norm 1.

    Unlike those of :class:`~thawkit.losses.NegativeQueue` its rows are not in ``state_dict``, and what does
    not fit behind the last row is dropped.

    Args:
        size: 0, or (rows, features).
        gather_distributed: keep the rows of all ranks.
    """

    bank: Tensor
    bank_ptr: Tensor

    def __init__(self, size: int | Sequence[int], gather_distributed: bool = False):
        super().__init__()
        self.gather_distributed = gather_distributed
        self.size = (size,) if isinstance(size, int) else tuple(size)
        if self.size != (0,) and (len(self.size) != 2 or min(self.size) < 0):
            raise ThawkitError(f"memory_bank_size must be 0 or (rows, features), got {size!r}")
        rows = torch.empty(0) if len(self.size) == 1 else normalize(torch.randn(self.size).float(), dim=-1)
        self.register_buffer("bank", rows, persistent=False)
        self.register_buffer("bank_ptr", torch.zeros(1, dtype=torch.int64), persistent=False)

    def forward(self, output: Tensor, update: bool = False) -> tuple[Tensor, Tensor]:
        """Return ``output`` (N, features) and the rows (rows, features) as they are before an update."""
        self.check(output)
        rows = self.bank.clone()
        if update:
            self._enqueue(output)
        return output, rows

    def check(self, output: Tensor) -> None:
        """Require rows of the bank's number of features."""
        if output.shape[1] != self.size[1]:
            raise ThawkitError(
                f"out0 and out1 must have the features of the memory bank, {self.size[1]}, "
                f"got {output.shape[1]}"
            )

    @torch.compiler.disable(reason=UNTRACED)
    @torch.no_grad()
    def _enqueue(self, output: Tensor) -> None:
        ranks = Ranks.of(None, "gather") if self.gather_distributed else None
        if ranks is not None:
            (rows,) = meet(ranks, "MemoryBankModule", {"output": output}, {}, {}, ["output"], lambda: None)
            output = gather(output, rows)
        start = int(self.bank_ptr)
        end = start + len(output)
        self.bank[start:end] = output[: self.size[0] - start].to(self.bank)
        self.bank_ptr.fill_(0 if end >= self.size[0] else end)
