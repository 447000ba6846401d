"""Contrastive losses of a batch whose rows are spread over ranks: the loss of the whole batch, exactly.

Each rank calls the loss with its own rows, as it would call the function of that name in
:mod:`thawkit.losses.functional`, and they may be of different number, or none::

    from thawkit.losses import distributed as D

    image, text, scale = model(batch)  # DistributedDataParallel(model)
    D.clip(image, text, logit_scale=scale).backward()

With ``reduction="mean"`` or ``"sum"`` every rank gets the loss of the whole batch; the mean is over its rows,
however they are spread. With ``"none"`` each rank gets the losses of its own rows.

**The gradient factor.** A rank's backward pass gives the gradient of the *sum* of what the ranks call
``backward`` on; ``DistributedDataParallel`` (or FSDP) averages over the ranks, which makes it that of their
*mean*. So where all of them hold the loss of the whole batch, the embeddings' gradients are its gradient
times the number of ranks, and the parameters' are, once averaged, exactly its gradient: rescale neither the
loss nor the learning rate. Scalars that all ranks hold alike (``logit_scale``, ``logit_bias``,
``temperature``) get the average at once, so they stay alike outside of the wrapper too.

**Modes.** ``gather``: every rank gathers all keys; one exchange each way, memory for the keys of the whole
batch. ``ring``: keys travel round the ranks, one rank's at a time, the next ones arriving while these are
used, and the gradients of the keys follow them home; memory for the keys of a few ranks, at the price of a
second turn and of computing the scores once more for the gradients (not for SigLIP's sum and mean). Second
derivatives are had with ``gather`` only, and so is ``multiple_negatives_ranking``.

All ranks of the group are to call the loss, and its backward pass, together. Before anything else they tell
each other how many rows they have and whether their arguments agree, numbers up to rounding, so that a
mistake on one rank raises on all. So does one that a module finds before, or a ring at the start of
its backward pass. An error that comes later on one rank, as when memory runs out, leaves the others waiting
until the group's timeout.

Ranks exchange what no graph holds: ``torch.compile`` breaks its graph at these functions and runs them as
they are (with ``fullgraph=True`` it stops and says so), and under a transform of ``torch.func`` they raise.
Where ``torch.distributed`` is not initialized, or has one rank, the losses are those of one process.
"""

from thawkit.losses.distributed.info_nce import info_nce
from thawkit.losses.distributed.pairs import clip, nt_xent, siglip
from thawkit.losses.distributed.ranking import multiple_negatives_ranking
from thawkit.losses.distributed.ranks import MODES
from thawkit.losses.distributed.supcon import supcon

__all__ = ["MODES", "clip", "info_nce", "multiple_negatives_ranking", "nt_xent", "siglip", "supcon"]
