import copy

import pytest

PIXEL = "data:image/png;base64,iVBORw0KGgo="


def scores(accuracy, confusion=((3, 1), (1, 5))):
    return {
        "count": 10,
        "loss": 0.3,
        "accuracy": accuracy,
        "balanced_accuracy": accuracy - 0.01,
        "auroc": accuracy + 0.02,
        "macro_f1": accuracy - 0.03,
        "confusion": [list(row) for row in confusion],
    }


def described(name, classes):
    counts = {part: [5] * len(classes) for part in ("train", "val", "test")}
    totals = {part: 5 * len(classes) for part in counts}
    return {"name": name, "classes": list(classes), "counts": counts, "totals": totals}


def digits():
    seeds = [
        {"seed": 0, "source_only": 0.4, "dan": 0.6, "gain": 0.2},
        {"seed": 1, "source_only": 0.5, "dan": 0.65, "gain": 0.15},
    ]
    runs = [
        {
            "method": method,
            "seed": row["seed"],
            "target_accuracy": row[method],
            "source_accuracy": 0.97,
            "history": [{"epoch": e, "target_accuracy": 0.3 + 0.05 * e, "loss": 1 / e} for e in (1, 2)],
            "seconds": 1.0,
        }
        for row in seeds
        for method in ("source_only", "dan")
    ]
    card = {"index": 0, "label": "3", "source_only": "8", "dan": "3", "image": PIXEL}
    return {
        "source": described("mnist", "0123456789"),
        "target": described("optdigits", "0123456789"),
        "runs": runs,
        "seeds": seeds,
        "mean": {"source_only": 0.45, "dan": 0.625, "gain": 0.175},
        "samples": {"source": [PIXEL], "target": [card, {**card, "dan": "8"}]},
    }


def xray():
    card = {"index": 0, "label": "normal", "predicted": "normal", "probability": 0.9, "image": PIXEL}
    row = {
        "kind": "Conv2d",
        "modules": 4,
        "rewritten": 3,
        "trainable": 1000,
        "saved_bytes_before": 2**22,
        "saved_bytes": 2**20,
    }
    return {
        "data": described("pneumoniamnist", ("normal", "pneumonia")),
        "probe": {"val": scores(0.80), "test": scores(0.75), "penalty": 0.1},
        "tuned": {
            "val": scores(0.90),
            "test": scores(0.85),
            "best_epoch": 2,
            "epochs": 2,
            "selection": "best balanced_accuracy on val",
        },
        "history": [
            {"epoch": e, "loss": 1 / e, "val_loss": 1.1 / e, "val_auroc": 0.9, "val_balanced_accuracy": 0.8}
            for e in (1, 2)
        ],
        "freeze": {
            "train": "last:2",
            "trainable": 1000,
            "total": 5000,
            "fixed_statistics": 3,
            "rows": [row],
            "saved_bytes_before": 2**22,
            "saved_bytes": 2**20,
            "images": 8,
            "ratio": 4.0,
        },
        "samples": {
            "random": [card],
            "mistakes": [{**card, "label": "pneumonia", "probability": 0.8}],
            "mistakes_total": 2,
        },
    }


RESULT = {
    "quick": False,
    "seed": 0,
    "command": "thawkit demo --output 'a <folder>' --seed 0",
    "finished": "2026-01-01 12:00",
    "machine": {"cpu": "A CPU", "threads": 2, "system": "Linux x86_64", "versions": {"torch": "2.14.1"}},
    "settings": {"xray_epochs": 2, "xray_batch": 8, "digit_epochs": 2, "digit_batch": 8},
    "xray": xray(),
    "digits": digits(),
    "bundle": {
        "files": 8,
        "bundle_bytes": 14_000_000,
        "onnx_bytes": 13_400_000,
        "torch_bytes": 13_600_000,
        "accuracy": 0.85,
        "onnxruntime_p50_ms": 1.5,
        "onnxruntime_p95_ms": 2.5,
        "torch_p50_ms": 9.5,
        "torch_p95_ms": 11.5,
        "elsewhere": {
            "images": 10,
            "seconds": 1.0,
            "max_difference": 2e-5,
            "same_top1": 10,
            "accuracy": 0.85,
        },
    },
    "stages": [{"name": "The data", "seconds": 1.5}, {"name": "X-rays", "seconds": 60.0}],
    "seconds": 61.5,
    "checks": [
        {"name": "First", "passed": True, "text": "it did"},
        {"name": "Second", "passed": True, "text": "it did too"},
        {"name": "Third", "passed": True, "text": "so did this"},
    ],
}


@pytest.fixture
def result():
    """A demo's result that the test may change; its numbers are made up."""
    return copy.deepcopy(RESULT)
