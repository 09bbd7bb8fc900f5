"""When two names of a model are one, and what a name is from everywhere."""

import pytest
from subtested import as_subtests

from penstock.engine.data.hub_names import is_same, settled, why_missing


@as_subtests(
    "one, other, same",
    [
        ("org/encoder", "org/encoder", True),
        ("org/encoder", "org/another", False),
        ("enc/tiny", "/project/enc/tiny", True),
        ("./enc/tiny/", "/project/enc/tiny", True),
        ("enc/tiny", "/project/enc/tiny2", False),
        ("enc/tiny", "/project/more-enc/tiny", False),
        ("/project/enc/tiny", "/project/other/../enc/tiny", True),
        ("/project/enc/tiny", "/moved/enc/tiny", False),
        ("a/b/c/enc", "/enc", False),
        ("../models/enc", "/project/models/enc", True),
        ("../../models/enc", "/project/other/enc", False),
        ("enc/../tiny", "/project/tiny", True),
        ("..", "/project/enc", False),
        ("roberta-base", "someone/roberta-base", False),
        ("~nobody-here/enc", "/home/nobody-here/enc", False),
    ],
)
def test_names_of_one_model(one, other, same):
    assert is_same(one, other) == is_same(other, one) == same


@pytest.mark.parametrize("given", ["enc", "./enc", "ABSOLUTE/enc", "~/enc", "link"])
def test_a_folder_is_settled_by_its_absolute_path(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "enc").mkdir()
    (tmp_path / "link").symlink_to("enc")
    given = given.replace("ABSOLUTE", str(tmp_path))
    assert settled(given) == str(tmp_path / ("link" if given == "link" else "enc"))
    assert is_same(settled(given), given)
    assert is_same(str(tmp_path / "enc"), given)
    (tmp_path / "link").unlink()
    (tmp_path / "enc").rmdir()
    assert is_same(str(tmp_path / ("link" if given == "link" else "enc")), given)


@pytest.mark.parametrize("given", ["encoder", "org/encoder"])
def test_a_name_on_the_hub_stays(tmp_path, monkeypatch, given):
    monkeypatch.chdir(tmp_path)
    assert settled(given) == given


def test_a_home_that_is_not_there_is_no_folder():
    assert settled("~nobody-here/enc") == "~nobody-here/enc"
    assert why_missing("~nobody-here/enc") == "no such folder or file"
