"""Fine-tuning on 🤗 Trainer: methods, metrics, runs that survive being killed, a baseline."""

from thawkit.tune.config import TuneConfig
from thawkit.tune.evaluate import evaluate, predict
from thawkit.tune.fit import check_start, fit
from thawkit.tune.method import Method, Supervised
from thawkit.tune.metrics import classification_metrics
from thawkit.tune.probe import linear_probe
from thawkit.tune.run import Run, RunResult, load_run

__all__ = [
    "Method",
    "Run",
    "RunResult",
    "Supervised",
    "TuneConfig",
    "check_start",
    "classification_metrics",
    "evaluate",
    "fit",
    "linear_probe",
    "load_run",
    "predict",
]
