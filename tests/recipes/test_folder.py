import pytest

from thawkit.errors import ThawkitError
from thawkit.recipes.demo import folder


def test_an_earlier_demo_is_replaced(tmp_path):
    place = folder.prepare(tmp_path / "demo")
    (place / folder.REPORT).write_text("old")
    (place / folder.BUNDLE).mkdir()
    (place / folder.BUNDLE / "model.onnx").write_text("old")
    assert folder.prepare(place) == place
    assert [path.name for path in place.iterdir()] == [folder.MARK]


def test_an_empty_folder_is_taken(tmp_path):
    assert (folder.prepare(tmp_path) / folder.MARK).is_file()


@pytest.mark.parametrize("mark", [True, False])
def test_files_of_others_are_left_alone(tmp_path, mark):
    if mark:
        folder.prepare(tmp_path)
        (tmp_path / folder.REPORT).write_text("old")
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ThawkitError, match=r"thesis\.tex.*--output"):
        folder.prepare(tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
    assert (tmp_path / folder.REPORT).exists() is mark


def test_a_report_without_the_mark_is_not_ours(tmp_path):
    (tmp_path / folder.REPORT).write_text("a report of something else")
    with pytest.raises(ThawkitError, match="no demo wrote"):
        folder.prepare(tmp_path)


def test_a_file_is_not_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ThawkitError, match="is a file"):
        folder.prepare(tmp_path / "file")


def test_a_result_reads_back_and_must_be_json(tmp_path):
    assert folder.write_result(tmp_path, {"pair": (1, 2.5)}) == {"pair": [1, 2.5]}
    with pytest.raises(ValueError, match=r"not JSON compliant|Out of range"):
        folder.write_result(tmp_path, {"loss": float("nan")})
