"""A study whose families need no encoder asks for none."""

import dataclasses
import importlib.util
import itertools

import pytest
from command_line import penstock

from penstock.engine.data.prepare import prepare
from penstock.engine.data.reviews import generate_reviews
from penstock.engine.data.store import Store
from penstock.engine.errors import ModelError, RunError
from penstock.engine.study import settings as settings_module
from penstock.engine.study.costs import Cost
from penstock.engine.study.directory import read_study
from penstock.engine.study.families import FAMILIES
from penstock.engine.study.report import write_report
from penstock.engine.study.settings import StudySettings, usual_encoder
from penstock.engine.study.sizes import parse_seeds, parse_sizes
from penstock.engine.study.study import run_study

NEEDY = [name for name, family in FAMILIES.items() if family.needs_encoder]


@pytest.fixture
def uninstalled(monkeypatch):
    plain = importlib.util.find_spec
    monkeypatch.setattr(
        settings_module.importlib.util,
        "find_spec",
        lambda name, *rest: None if name == settings_module.PACKAGED_ENCODER else plain(name, *rest),
    )


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sources")
    for name, seed in (("train", 0), ("test", 1)):
        lines = ["text,label", *(f'"{text}",{label}' for text, label in generate_reviews(60, seed=seed))]
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return folder


def study_of(folder, families, encoder=None, ending=".csv"):
    return StudySettings(
        train=(str(folder / f"train{ending}"),),
        test=(str(folder / f"test{ending}"),),
        encoder=encoder,
        sizes=parse_sizes("20"),
        seeds=parse_seeds("1"),
        max_sizes={},
        families=tuple(families),
    )


def start(study, out):
    cost = lambda family, *_: Cost(family, 1, 1, 1, {1: 1.0, 32: 1.0}, {1: 1, 32: 1}, "CPU", 1)  # noqa: E731
    return run_study(study, out, progress=False, measure=cost)


@pytest.mark.parametrize(
    "families", [[name] for name in FAMILIES] + list(map(list, itertools.pairwise(FAMILIES))), ids="-".join
)
def test_one_is_wanted_exactly_where_a_family_needs_it(uninstalled, families):
    if set(families) & set(NEEDY):
        with pytest.raises(ModelError, match="no encoder: give --encoder"):
            usual_encoder(families)
    else:
        assert usual_encoder(families) is None


@pytest.mark.slow
def test_sources_get_a_tokenizer_of_their_own(uninstalled, sources, tmp_path):
    results = start(study_of(sources, ["majority", "linear"]), tmp_path / "study")
    assert [result.status for result in results] == ["done", "done"]
    store = Store.open(tmp_path / "study" / "data" / "train")
    assert store.num_examples == 60
    assert (
        Store.open(tmp_path / "study" / "data" / "test").manifest.tokenizer.fingerprint
        == store.manifest.tokenizer.fingerprint
    )
    assert read_study(tmp_path / "study")["identity"]["encoder"] is None
    write_report(tmp_path / "study")
    assert "No family needs an encoder" in (tmp_path / "study" / "report.md").read_text()


def test_stores_bring_theirs(uninstalled, sources, tmp_path):
    made = prepare(str(sources / "train.csv"), tmp_path / "train", tokenizer="train:bpe:300", progress=False)
    prepare(str(sources / "test.csv"), tmp_path / "test", like=made.path, progress=False)
    start(study_of(tmp_path, ["majority", "linear"], ending=""), tmp_path / "study")


@pytest.mark.parametrize("family", NEEDY)
def test_a_family_that_needs_one_says_so(sources, tmp_path, family):
    with pytest.raises(ModelError, match=f"the family {family} needs an encoder: give --encoder"):
        start(study_of(sources, ["lstm", family]), tmp_path / "study")


@pytest.mark.slow
def test_it_goes_on_once_the_package_is_installed(sources, tmp_path, monkeypatch):
    study, out = study_of(sources, ["linear"]), tmp_path / "study"
    start(study, out)
    monkeypatch.setattr(settings_module, "_packaged_folder", lambda: "/packaged")
    more = dataclasses.replace(study, sizes=parse_sizes("20,30"), encoder=usual_encoder(["linear"]))
    assert more.encoder == "/packaged"
    assert len(start(more, out)) == 2
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text("{}")
    with pytest.raises(RunError, match=r"belongs to another study: encoder is None there and '.*other' here"):
        start(dataclasses.replace(more, encoder=str(other)), out)


@pytest.mark.slow
def test_the_command_says_what_it_takes_instead(uninstalled, sources, tmp_path):
    files = ("--train", sources / "train.csv", "--test", sources / "test.csv")
    common = ("study", *files, "--sizes", "20", "--seeds", "1", "--out", tmp_path / "study")
    done = penstock(*common, "--families", "majority,linear")
    assert done.returncode == 0, done.stderr
    assert "the tokenizer is trained on the training texts (train:bpe:30000)" in done.stdout + done.stderr
    done = penstock(*common, "--families", "linear,encoder")
    assert done.returncode == ModelError.exit_code
    assert "no encoder: give --encoder NAME|PATH" in done.stderr
