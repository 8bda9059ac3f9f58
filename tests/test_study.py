"""The study: rows after each run, nothing twice, a change of settings or code is noticed."""

import argparse

import pandas as pd
import pytest
import record
import study
from conftest import data_args
from study import Study, Task
from variants import EPS, VARIANTS

from kit.files import UserError

SMALL = "--dataset mnist --train-steps 2 --batch-size 4 --samples 30"


@pytest.fixture
def small(monkeypatch, tmp_path):
    studies = {"mnist": Study(("cvae",), (0, 1), SMALL), "other": Study(("cvae",), (0,), SMALL)}
    studies["again"] = Study(("cvae",), (0,), SMALL, of="mnist")
    monkeypatch.setattr(study, "STUDIES", studies)
    for name, path in (("PLACE", "runs"), ("DATA", "."), ("RESULTS", ".")):
        monkeypatch.setattr(study, name, tmp_path / path)
    (tmp_path / "study").symlink_to(data_args().data_dir)  # where other tests have measured
    return studies


def rows(name="study"):
    table = pd.read_csv(study.RESULTS / f"{name}.csv")
    return table[table["study"] == "mnist"]


def test_a_run_leaves_its_rows_and_is_not_made_again(small, capfd, monkeypatch):
    study.main(["mnist", "--seeds", "1"])
    assert "mnist, cvae, seed 0" not in capfd.readouterr().err
    first, asked = rows(), rows("asked")
    assert {*first["model"]} == {"cvae", "real images", "noise"} and {*first["seed"]} == {1}
    assert {*first["kind"]} == {"trained", "held-out"}
    assert {*first["script"]} == {*asked["model"]} == {"cvae"} and len(asked) == 9
    known = pd.read_csv(study.ROOT / "docs" / "results" / "study.csv").columns
    assert {*known} - {*first} <= {"least_of_real", "least_class"}, "what the published rows have"
    for column in "extractor judge_crc32 hardware date git_revision n fid accuracy".split():
        assert first[first["model"] == "cvae"][column].notna().all(), column
    monkeypatch.setattr(Task, "run", lambda task: pytest.fail("it is there already"))
    study.main(["mnist", "--seeds", "1"])
    assert "mnist, cvae, seed 1: its rows are there" in capfd.readouterr().err
    assert rows().equals(first)


def test_rows_replace_earlier_ones_of_the_same_run_alone(small):
    for name, seed, value in [("mnist", 0, 1), ("mnist", 1, 2), ("other", 0, 3), ("mnist", 0, 4)]:
        made = pd.DataFrame([{"study": name, "script": "cvae", "seed": seed, "fid": value}])
        study.save("study", made, Task(name, "cvae", seed))
    assert [*rows()["fid"]] == [4, 2]


def test_the_key_covers_settings_and_code_but_not_comments(small, monkeypatch, tmp_path):
    task = Task("mnist", "cvae", 0)
    key, text = task.key(), task.file().read_text()
    file = tmp_path / "cvae.py"
    monkeypatch.setattr(Task, "file", lambda task: file)
    file.write_text("# a comment\n" + text.replace("CVAE: the third", "CVAE: another"))
    assert task.key() == key
    file.write_text(text.replace("2 * model.decoder(z, text)", "3 * model.decoder(z, text)"))
    assert task.key() != key
    file.write_text(text)
    small["mnist"].flags += " --beta 7"
    assert Task("mnist", "cvae", 0).key() != key
    monkeypatch.undo()
    monkeypatch.setattr(study, "PLACE", tmp_path)
    ours = Task("mnist", "a0_uncond", 0).file().read_text().splitlines()
    theirs = Task("eps", "a0_eps", 0).file().read_text().splitlines()
    assert sum(one != other for one, other in zip(ours, theirs, strict=True)) == len(EPS)
    assert Task("eps", "a0_eps", 0).key() != Task("mnist", "a0_uncond", 0).key()


def test_a_run_of_other_settings_starts_over_and_a_killed_one_resumes(small, monkeypatch):
    task, called, done = Task("mnist", "cvae", 0), [], argparse.Namespace(returncode=0)
    monkeypatch.setattr(study.subprocess, "run", lambda x, **_: called.append(x) or done)
    with pytest.raises(UserError, match="again, cvae, seed 0 needs .*trained by this code"):
        Task("again", "cvae", 0).run()
    task.run()
    (task.folder / "checkpoints").mkdir(parents=True)
    task.run()
    assert (task.folder / "checkpoints").exists() and "--clip" in called[0]
    Task("again", "cvae", 0).run()
    assert (Task("again", "cvae", 0).folder / "checkpoints").exists(), "copied"
    small["mnist"].flags += " --beta 7"
    Task("mnist", "cvae", 0).run()
    assert not task.folder.exists() and len(called) == 4
    done.returncode = 2
    with pytest.raises(UserError, match="mnist, cvae, seed 0 is not complete"):
        Task("mnist", "cvae", 0).run()


def test_the_last_two_lines_of_each_goal_are_trained_anew_and_in_turns(small, monkeypatch):
    small |= {f"record_{x}": small["mnist"] for x in ("a0", "a1", "a2", "b0")}
    done = []
    Task("record_a2", "a4_full", 4).folder.mkdir(parents=True)
    monkeypatch.setattr(Task, "run", lambda x: done.append((x.name, x.seed, x.folder.exists())))
    monkeypatch.setattr(Task, "measure", lambda x: {})
    record.main()
    turns = [(f"record_a{i}", seed, False) for seed in range(5) for i in (1, 2)]
    assert done == turns + [("record_b0", seed, False) for seed in range(5)]


def test_every_variant_can_be_made(small):
    for name in VARIANTS:
        compile(Task("mnist", name, 0).file().read_text(encoding="utf-8"), name, "exec")
