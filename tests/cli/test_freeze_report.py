"""``thawkit freeze-report``: a model's name and a policy in, bytes out."""

from __future__ import annotations

import json

import pytest
import torch

import thawkit
from thawkit.cli import main
from thawkit.select import create_model


def test_tables(capsys):
    small = ["--batch=16", "--image-size=64", "--memory=1"]
    assert main(["freeze-report", "torchvision:resnet18", "--train", "bias", *small]) == 0
    said = capsys.readouterr().out
    assert said.startswith("torchvision:resnet18, random weights, images of 64x64\n")
    assert "train='bias' trains " in said
    assert "forecast for a batch of 16" in said
    assert "exact minimum without recomputation" in said
    assert "\nlargest batch in 1 GiB: " in said


@pytest.mark.parametrize("policy", ["bias", "all", "channels:0.5"])
def test_json_is_what_a_step_of_that_batch_saves(policy, capsys):
    assert main(["freeze-report", "lenet", "--train", policy, "--batch=20", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    network = create_model("lenet", 10, pretrained=False).module
    report = thawkit.freeze(network, policy, example=torch.zeros(20, 3, 28, 28))
    assert told["saved_bytes"] == pytest.approx(report.saved_bytes, rel=0.001)
    assert told["saved_bytes_before"] == report.saved_bytes_before
    if report.minimum_bytes is None:
        assert told["minimum_bytes"] is None
    else:
        assert told["minimum_bytes"] == pytest.approx(report.minimum_bytes, rel=0.001)
    assert told["trainable"] == report.trainable
    assert sum(told["by_module"].values()) == pytest.approx(report.saved_bytes, rel=0.001)
    assert [row["kind"] for row in told["rows"]] == [row.kind for row in report.rows]
    assert (told["model"], told["batch_size"], told["image_size"]) == ("lenet", 20, 28)
    assert told["largest_batch"] == report.largest_batch(told["memory_bytes"])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["resnet"], "unknown model 'resnet'"),
        (["torchvision:resnet"], "has no classification model 'resnet'; did you mean"),
        (["lenet", "--train=last:9"], "train: expected last:K"),
        (["lenet", "--train=*.biass"], "matches no parameter"),
        (["lenet", "--batch=0"], "--batch must be at least 1, got 0"),
        (["lenet", "--memory=-1"], "--memory must be a number of GiB above 0, got -1.0"),
        (["lenet", "--memory=nan"], "--memory must be a number of GiB above 0, got nan"),
        (["lenet", "--classes=1"], "num_classes must be at least 2"),
        (["torchvision:vit_b_16", "--image-size=64"], "does not take images of 64x64"),
    ],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments, says, capsys):
    assert main(["freeze-report", *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("thawkit freeze-report: error: ")
    assert says in error
    assert error.count("\n") == 1
