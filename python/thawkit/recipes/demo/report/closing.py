"""What the page says about the bundle, the times, and how to do it again."""

from __future__ import annotations

import shlex
import textwrap
from html import escape

from thawkit.recipes.demo import settings as fixed
from thawkit.recipes.demo.report.charts import bars_chart
from thawkit.recipes.demo.report.page import FORMATS, Values, table


def device_table(values: Values) -> str:
    """Size, speed and accuracy, torch against the bundle."""

    def row(title: str, size: str, engine: str, accuracy: str) -> list[str]:
        speed = values.row("bundle", (f"{engine}_p50_ms", f"{engine}_p95_ms"), "ms")
        return [title, values(size, "mb"), *speed, values(accuracy, "percent")]

    return table(
        ("", "model file", "median", "95th percentile", "test accuracy"),
        [
            row("torch", "bundle.torch_bytes", "torch", "xray.tuned.test.accuracy"),
            row("bundle, onnxruntime", "bundle.onnx_bytes", "onnxruntime", "bundle.accuracy"),
        ],
        caption=f"One image at a time, from pixels to logits; threads: {values('machine.threads')}",
        emphasis=1,
    )


def time_chart(values: Values) -> str:
    """Wall time of every stage."""
    return bars_chart(
        [(row["name"], row["seconds"]) for row in values.get("stages")],
        title="Wall time by stage",
        description="Seconds that each stage of the demo took.",
        value_format=FORMATS["seconds"],
        size=(940, 26),
    )


def commands(values: Values) -> str:
    """The command that makes this page again, and those that take the same steps one by one."""
    settings, seed = values.get("settings"), values.get("seed")
    train = (
        f"thawkit train --data pneumoniamnist --model efficientnet_lite0 --image-size {fixed.XRAY_SIZE} "
        f"--train {fixed.XRAY_POLICY} --balanced --epochs {settings['xray_epochs']} "
        f"--batch-size {settings['xray_batch']} --learning-rate {fixed.XRAY_LEARNING_RATE} "
        f"--weight-decay {fixed.XRAY_WEIGHT_DECAY} --augment {fixed.XRAY_AUGMENT} --seed {seed} "
        "--output xray-run"
    )
    adapt = (
        f"thawkit adapt --source {fixed.SOURCE} --target {fixed.TARGET} --test {fixed.TARGET_TEST} "
        f"--epochs {settings['digit_epochs']} --batch-size {settings['digit_batch']} "
        f"--learning-rate {fixed.DIGIT_LEARNING_RATE} --augment {fixed.DIGIT_AUGMENT} --baseline "
        f"--seed {seed} --output digits-run"
    )
    whole = ["# this page", values.get("command")]
    if values.get("quick"):
        whole += ["", "# the full form", shlex.join(["thawkit", "demo"])]
    steps = [
        "# step by step, on the full data (digits: the first seed)",
        _wrapped(train),
        _wrapped(adapt),
        "thawkit export xray-run --output bundle",
        "thawkit verify bundle --data pneumoniamnist",
        "python bundle/run.py IMAGE.png",
    ]
    return f"<pre><code>{escape(chr(10).join([*whole, '', *steps]))}</code></pre>"


def _wrapped(line: str) -> str:
    """Break a command into lines that a shell joins again."""
    parts = textwrap.wrap(line, 92, break_on_hyphens=False, break_long_words=False)
    return " \\\n    ".join(parts)


def versions(values: Values) -> str:
    """What the figures depend on."""
    found = values.get("machine.versions").items()
    return escape(", ".join([*(f"{name} {number}" for name, number in found), values.get("machine.system")]))
