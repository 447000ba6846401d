import errno
import json
import os
import stat
from collections.abc import Callable

import numpy as np
import onnx
import pytest
import torch
import torchvision
from torch import nn

import thawkit
from thawkit.data import Preprocess
from thawkit.deploy import Bundle, ParityError, export, verify
from thawkit.deploy.folder import new_folder
from thawkit.deploy.parity import Samples, compare
from thawkit.errors import ThawkitError

from .conftest import CLASSES, picture, small_cnn


def torch_logits(network: nn.Module, preprocess: Preprocess, images: torch.Tensor) -> np.ndarray:
    with torch.no_grad():
        return network(preprocess(images)).numpy()


class Flat(nn.Module):
    """Logits from the mean colour, and a hook to make the exported graph another function."""

    def __init__(self, exported_bias: float = 0.0) -> None:
        super().__init__()
        self.linear = nn.Linear(3, len(CLASSES))
        self.exported_bias = exported_bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[2:] != (32, 32):  # vision transformers ask this of their input
            raise ValueError(f"expected 32x32 pixels, got {x.shape}")
        logits = self.linear(x.mean((2, 3)))
        if torch.compiler.is_exporting():
            logits = logits + self.exported_bias * torch.arange(len(CLASSES))
        return logits


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (2, 300, 401), (5, 36, 36), (1, 1, 1), (3, 37, 3000), (1, 1025, 768)]
)
def test_bundle_equals_torch_at_any_size_and_batch(exported, network, preprocess, shape):
    count, height, width = shape
    images = torch.stack(
        [picture(max(height, 3), max(width, 4), seed)[:, :height, :width] for seed in range(count)]
    )
    got = Bundle(exported[1], threads=1).logits(images.permute(0, 2, 3, 1).numpy())
    want = torch_logits(network, preprocess, images)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert np.ptp(want) > 0.1


def test_report_and_manifest_say_what_was_checked(exported):
    report, folder = exported
    manifest = json.loads((folder / "manifest.json").read_text())
    assert (report.name, report.classes, report.folder) == ("pets", CLASSES, folder)
    assert report.notes == ()
    # five samples, and per probe size one and three; sizes: 3 of the samples and 4 probes
    assert (report.parity.images, report.parity.sizes, report.parity.largest_batch) == (5 + 4 * 4, 7, 3)
    assert 0 < report.parity.max_difference < 1e-5
    assert manifest["parity"]["max_difference"] == report.parity.max_difference
    assert manifest["classes"] == list(CLASSES)
    assert Preprocess(32, 36).config().items() <= manifest["preprocess"].items()
    assert set(manifest["tools"]) >= {"thawkit", "torch", "onnx", "python"}
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert files == {"manifest.json", *manifest["files"]}
    assert report.bytes == sum((folder / name).stat().st_size for name in files)


def test_graph_is_self_contained_and_dynamic(exported):
    model = onnx.load(exported[1] / "model.onnx", load_external_data=False)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 18)]
    dims = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*model.graph.input, *model.graph.output)
    }
    assert dims == {"image": ["N", "H", "W", 3], "logits": ["N", 3], "probabilities": ["N", 3]}
    assert model.graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert all(t.data_location == onnx.TensorProto.DEFAULT for t in model.graph.initializer)
    assert {"Resize", "Conv"} <= {node.op_type for node in model.graph.node}


def test_export_is_quiet_repeatable_and_leaves_the_module_alone(
    tmp_path, exported, preprocess, samples, capfd, recwarn
):
    network = small_cnn().train()
    before = {key: value.clone() for key, value in network.state_dict().items()}
    report = export(network, preprocess, CLASSES, tmp_path / "pets", samples=samples)
    assert capfd.readouterr() == ("", "")
    assert [str(w.message) for w in recwarn] == []
    assert network.training
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert report.notes == ("the module was in training mode; it was exported in evaluation mode",)
    assert (tmp_path / "pets" / "manifest.json").read_bytes() == (exported[1] / "manifest.json").read_bytes()


def test_torchvision_network_and_plain_tensors(tmp_path, preprocess):
    torch.manual_seed(0)
    network = torchvision.models.ResNet(
        torchvision.models.resnet.BasicBlock, [1, 1, 1, 1], num_classes=3
    ).eval()
    images = torch.stack([picture(50, 70, seed) for seed in range(3)])
    report = export(network, preprocess, CLASSES, tmp_path / "b", samples=list(images))
    got = Bundle(tmp_path / "b").logits(images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(got, torch_logits(network, preprocess, images), rtol=0, atol=1e-5)
    assert report.parity.max_difference < 1e-5
    assert report.parity.accuracy is None


def test_frozen_network_exports_and_stays_frozen(tmp_path, samples, preprocess):
    network = small_cnn(2)
    images = torch.stack([picture(50, 70, seed) for seed in range(3)])
    want = torch_logits(network, preprocess, images)
    thawkit.freeze(network, "bias")
    kinds = [type(m) for m in network.modules()]
    export(network, preprocess, CLASSES, tmp_path / "b", samples=samples)
    got = Bundle(tmp_path / "b").logits(images.permute(0, 2, 3, 1).numpy())
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5)
    assert [type(m) for m in network.modules()] == kinds


def test_accuracy_is_that_of_the_labels(exported, samples):
    assert exported[0].parity.accuracy == pytest.approx(4 / 5)
    figures = verify(exported[1], dataset=samples, threads=1).dataset
    assert (figures.name, figures.images, figures.accuracy) == ("pets", 5, pytest.approx(4 / 5))
    assert 0 < figures.p50_ms <= figures.p95_ms


def shifted(by: float, row: int = 0) -> Callable[[np.ndarray], np.ndarray]:
    def candidate(batch: np.ndarray) -> np.ndarray:
        logits = mean_colour(batch)
        logits[min(row, len(logits) - 1), 2] += by
        return logits

    return candidate


def mean_colour(batch: np.ndarray) -> np.ndarray:
    return batch.mean((1, 2)).astype(np.float32)


@pytest.mark.parametrize(
    ("by", "tolerance", "says"),
    [
        (
            2e-3,
            1e-3,
            r"differ from torch by up to 2.0e-03 on sample 0 \(52x40 pixels, batch of 1\), tolerance 1e-03",
        ),
        (-2e-3, 1e-3, "differ from torch by up to 2.0e-03"),
        (400.0, 500.0, "top-1 differs on [1-9]"),
        (float("nan"), 500.0, "by up to inf on sample 0"),
        (float("inf"), 500.0, "by up to inf on sample 0"),
    ],
)
def test_parity_fails_on_a_single_wrong_logit(samples, by, tolerance, says):
    with pytest.raises(ParityError, match=says):
        compare(Samples(samples), mean_colour, shifted(by), tolerance)


def test_parity_sees_rows_of_a_batch_and_counts(samples):
    with pytest.raises(
        ParityError, match=r"on sample 2 \(52x40 pixels, batch of 2\).* top-1 differs on 0 of 21"
    ):
        compare(Samples(samples), mean_colour, lambda b: shifted(2e-3 if len(b) == 2 else 0, 1)(b), 1e-3)
    assert compare(Samples(samples), mean_colour, shifted(5e-4), 1e-3).max_difference == pytest.approx(
        5e-4, rel=0.1
    )
    with pytest.raises(ThawkitError, match="NaN or infinite"):
        compare(Samples(samples), shifted(float("nan")), mean_colour, 1e-3)


def test_parity_runs_every_sample_once_in_batches_of_up_to_16():
    rows = [picture(8, 9, seed) for seed in range(20)]
    seen: list[np.ndarray] = []

    def candidate(batch: np.ndarray) -> np.ndarray:
        seen.append(batch)
        return mean_colour(batch)

    found = compare(Samples(rows), mean_colour, candidate, 0.0)
    assert [len(batch) for batch in seen[:3]] == [1, 16, 3]
    np.testing.assert_array_equal(np.concatenate(seen[:3]), torch.stack(rows).permute(0, 2, 3, 1).numpy())
    assert (found.largest_batch, found.images, found.max_difference) == (16, 20 + 4 * 4, 0.0)


def test_graph_that_differs_from_torch_is_not_published(bundle, preprocess, samples):
    before = (bundle / "manifest.json").read_bytes()
    with pytest.raises(ParityError, match=r"parity check failed: .* by up to 2.0e-03 .* tolerance 1e-04"):
        export(Flat(1e-3), preprocess, CLASSES, bundle, samples=samples, overwrite=True)
    assert os.listdir(bundle.parent) == [bundle.name]
    assert (bundle / "manifest.json").read_bytes() == before
    verify(bundle)


def test_overwrite_replaces_a_bundle_and_nothing_else(bundle, preprocess, samples):
    with pytest.raises(ThawkitError, match="already exists"):
        export(Flat(), preprocess, CLASSES, bundle, samples=samples)
    export(Flat(), preprocess, CLASSES, bundle, samples=samples, overwrite=True, name="flat")
    assert verify(bundle).name == "flat"
    assert os.listdir(bundle.parent) == [bundle.name]
    assert stat.S_IMODE(bundle.stat().st_mode) == stat.S_IMODE((bundle / "samples").stat().st_mode)
    (bundle / "manifest.json").unlink()
    with pytest.raises(ThawkitError, match="not a bundle"):
        export(Flat(), preprocess, CLASSES, bundle, samples=samples, overwrite=True)
    assert (bundle / "model.onnx").exists()


def test_interrupted_write_leaves_nothing(tmp_path):
    output = tmp_path / "deep" / "b"

    def interrupted() -> None:
        with new_folder(output, overwrite=False) as work:
            (work / "model.onnx").write_bytes(b"half")
            assert not output.exists()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert os.listdir(output.parent) == []


def test_full_disk_is_one_line_and_leaves_nothing(tmp_path):
    def full() -> None:
        with new_folder(tmp_path / "b", overwrite=False) as work:
            (work / "model.onnx").write_bytes(b"half")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(ThawkitError, match=r"output: cannot write .*b: No space left on device$"):
        full()
    assert os.listdir(tmp_path) == []


def nan_network() -> nn.Module:
    network = Flat()
    nn.init.constant_(network.linear.bias, float("nan"))
    return network


class Tupled(Flat):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        logits = super().forward(x)
        return logits, logits


class Untraceable(Flat):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float(np.float64(x.sum().item() > 0))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": ("cat", "dog")}, "classes has 2 names, but module gives 3 logits"),
        ({"classes": ("cat", "cat", "owl")}, "classes must all differ"),
        ({"classes": "cat"}, "classes must be a sequence"),
        ({"tolerance": -1.0}, "tolerance must be"),
        ({"tolerance": float("nan")}, "tolerance must be"),
        ({"samples": []}, "samples: at least one image"),
        (
            {"samples": [torch.zeros(3, 8, 8)]},
            r"samples: image 0 must be a uint8 tensor .* got torch.float32",
        ),
        ({"samples": [torch.zeros(8, 8, 3, dtype=torch.uint8)]}, "samples: image 0 must be"),
        ({"module": nan_network()}, "NaN or infinite"),
        ({"module": Tupled()}, "must give a tensor of logits .* got tuple"),
        ({"module": Untraceable()}, "cannot export Untraceable to ONNX"),
        ({"output": "a_file"}, "is a file"),
        ({"output": "a_file/b"}, "cannot write in"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_bad_arguments_are_named_in_one_line(tmp_path, monkeypatch, preprocess, samples, change, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a_file").write_text("kept")
    arguments = {"module": Flat(), "classes": CLASSES, "output": "b", "samples": samples, **change}
    module, classes, output = (arguments.pop(key) for key in ("module", "classes", "output"))
    with pytest.raises(ThawkitError, match=says) as caught:
        export(module, preprocess, classes, output, **arguments)
    assert "\n" not in str(caught.value)
    assert os.listdir(tmp_path) == ["a_file"]
    assert (tmp_path / "a_file").read_text() == "kept"
