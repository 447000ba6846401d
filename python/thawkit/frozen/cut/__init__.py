"""Where the frozen prefix of a model ends, and running what is before or after that alone.

:func:`find_cut` records one forward pass (:mod:`~.trace`). What is not tainted there is the prefix: whole
modules where nothing in them is tainted, else single calls of torch functions in the code of a module that
holds both (:mod:`~.plan`). The values of the prefix that the rest uses are the *features*. Running the rest
is running the model's own ``forward``, in which modules of the prefix are not called and functions of the
prefix not computed (:mod:`~.run`): they return the features, or placeholders of the right shape that nobody
can read. So hooks, modes, dropout and autocast of the rest act as always, and no graph is rewritten.

A cut is taken only if it is right where it can be seen (:mod:`~.verify`): on two batches of different size
and content the rest must give, from the features, the very bits that the whole model gives, in training mode
with all gradients, and in evaluation mode the same but for rounding; and the features of a sample must not
depend on the other samples of its batch.
"""

from __future__ import annotations

from thawkit.frozen.cut.cut import Cut, Feature
from thawkit.frozen.cut.find import find_cut
from thawkit.frozen.cut.plan import NoCutError
from thawkit.frozen.cut.run import training

__all__ = ["Cut", "Feature", "NoCutError", "find_cut", "training"]
