"""Stand-ins for other libraries' losses: their names, arguments, defaults and values, on this engine.

One module a library::

    from thawkit.losses.presets.open_clip import ClipLoss, SigLipLoss
    from thawkit.losses.presets.pytorch_metric_learning import NTXentLoss, SupConLoss, TripletMarginLoss
    from thawkit.losses.presets.lightly import NTXentLoss
    from thawkit.losses.presets.sentence_transformers import MultipleNegativesRankingLoss
    from thawkit.losses.presets.supcontrast import SupConLoss
    from thawkit.losses.presets.pytorch import LinearCrossEntropyLoss
    from thawkit.losses.presets.tllib import MultipleKernelMaximumMeanDiscrepancy, CorrelationAlignmentLoss
    from thawkit.losses.presets.deepda import CORAL, LMMDLoss, MMDLoss
    from thawkit.losses.presets.pytorch_adapt import CORALLoss, MMDBatchedLoss, MMDLoss
    from thawkit.losses.presets.geomloss import SamplesLoss
    from thawkit.losses.presets.torchvision import sigmoid_focal_loss
    from thawkit.losses.presets.mmcv import SigmoidFocalLoss, SoftmaxFocalLoss
    from thawkit.losses.presets.apex import focal_loss
    from thawkit.losses.presets.kornia import BinaryFocalLossWithLogits, FocalLoss
    from thawkit.losses.presets.adeelh import FocalLoss

None of them imports its library. What differs from it everywhere: half-precision embeddings give a float32
loss, and a bad argument raises :class:`~thawkit.errors.ThawkitError`. An argument without a counterpart here
is taken at its default only; any other value raises an error that says so.
"""
