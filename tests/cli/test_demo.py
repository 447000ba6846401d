import subprocess
import sys
from dataclasses import replace

import pytest

from thawkit.cli import main
from thawkit.deploy import ParityError
from thawkit.recipes import demo
from thawkit.recipes.demo import Check, DemoResult


def test_help_is_there_without_torch():
    code = "import sys, thawkit.cli.demo; sys.exit('torch' in sys.modules or 'rich' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_folder_in_use_is_refused_in_one_line(tmp_path, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["demo", "--quick", "--output", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "notes.txt" in error
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_a_negative_seed_is_refused(tmp_path, capsys):
    assert main(["demo", "--seed", "-1", "--output", str(tmp_path / "demo")]) == 2
    assert "--seed" in capsys.readouterr().err
    assert not (tmp_path / "demo").exists()


BAD, GOOD = Check("Gains", False, "by -1 points"), Check("Agrees", True, "to 1e-6")


@pytest.mark.parametrize(
    ("quick", "checks", "status"),
    [
        (False, (GOOD, GOOD, GOOD), 0),
        (False, (GOOD, BAD, GOOD), 1),
        (True, (BAD, BAD, GOOD), 0),
        (True, (GOOD, GOOD, BAD), 1),
    ],
)
def test_the_exit_status_follows_the_checks(tmp_path, capsys, monkeypatch, quick, checks, status):
    asked = {}

    def finished(output, **options):
        asked.update(options, output=output)
        return DemoResult(tmp_path, tmp_path / "report.html", {}, checks, quick)

    monkeypatch.setattr(demo, "run", finished)
    arguments = ["demo", "--seed", "7", "-o", "here", *(["--quick"] if quick else [])]
    assert main(arguments) == status
    assert asked == {"output": "here", "quick": quick, "seed": 7}
    failed = [line for line in capsys.readouterr().err.splitlines() if "check failed: Gains: by -1" in line]
    assert len(failed) == status


def test_a_bundle_that_disagrees_is_a_failed_check(capsys, monkeypatch):
    def disagrees(output, **options):
        raise ParityError("logits differ")

    monkeypatch.setattr(demo, "run", disagrees)
    assert main(["demo"]) == 1
    assert "check failed: logits differ" in capsys.readouterr().err


def test_only_the_quick_form_forgives():
    result = DemoResult(None, None, {}, (BAD, GOOD, GOOD), quick=True)
    assert result.failed == ()
    assert replace(result, quick=False).failed == (BAD,)
