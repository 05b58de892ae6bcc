"""The model's table against the one on record, and what changed since when."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from benchmarks.gpu_model import __main__ as command
from benchmarks.gpu_model import changes, tools
from benchmarks.gpu_model.table import (
    HEADINGS,
    MET,
    MICROSECONDS,
    Evaluation,
    markdown,
    read_markdown,
    regression,
    row,
)
from benchmarks.gpu_model.targets import TARGETS, Part, Target

needs_git = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
RECORD = tools.ROOT / "docs" / "gpu.md"
TARGET = Target(
    "loss, forward", "upsample_cross_entropy", "pixel", (Part("LossTile", "MUFU", threads=128),),
    instructions=6, microseconds=150,
)  # fmt: skip


def cells(microseconds=100.0, instructions=5.0, spilled_bytes=0, target=TARGET):
    evaluation = Evaluation(90, spilled_bytes, instructions, microseconds, "issue")
    return row(target, [evaluation])


def record_of(*rows):
    return read_markdown("# Page\n\n" + markdown(rows) + "\n\nText | with a bar.\n")


def test_a_table_is_read_as_it_was_written():
    other = cells(None, target=Target("other", "focal_pool", "warp", TARGET.parts))
    assert record_of(cells(), other) == {"loss, forward": cells(), "other": other}


def test_a_page_without_a_table_is_refused():
    with pytest.raises(ValueError, match=r"no table with the headings kernel \| unit of work"):
        read_markdown("# Page\n")
    broken = "\n".join(markdown([cells()]).splitlines()[:2]) + "\n| loss | pixel |\n"
    with pytest.raises(ValueError, match=r"a row has 2 cells for 10 headings: \['loss', 'pixel'\]"):
        read_markdown(broken)


def test_a_row_that_meets_its_targets_is_fine_whatever_the_record():
    assert regression(cells(), record_of()) is None
    assert regression(cells(149), record_of(cells(100))) is None
    assert regression(cells(), record_of(cells(200))) is None


@pytest.mark.parametrize(
    ("now", "before", "problem"),
    [
        (cells(151), cells(), "loss, forward: misses its targets, which it met"),
        (cells(spilled_bytes=8), cells(), "misses its targets, which it met"),
        (cells(151), None, "misses its targets, and is not on record"),
        (cells(200), cells(190), "simulated us 200, up from 190"),
        (cells(None), cells(190), "simulated us -, up from 190"),
        (cells(160, instructions=8), cells(190, instructions=7), "a unit 8.0, up from 7"),
        (cells(spilled_bytes=16), cells(spilled_bytes=8), "spilled bytes 16, up from 8"),
        (cells(200.4), cells(200), None),  # as it is printed
        (cells(190), cells(200), None),
        (cells(190), cells(None), None),
    ],
)  # fmt: skip
def test_a_row_that_misses_them_may_not_get_worse(now, before, problem):
    found = regression(now, record_of() if before is None else record_of(before))
    assert (found is None) if problem is None else (found is not None and problem in found)


def test_what_has_no_target_may_grow():
    timed = Target("timed", "focal_pool", "warp", TARGET.parts, microseconds=25)
    before, now = cells(40, 1000, target=timed), cells(39, 2000, target=timed)
    assert regression(now, record_of(before)) is None


def test_every_target_is_on_record():
    recorded = read_markdown(RECORD.read_text())
    assert list(recorded) == [target.name for target in TARGETS]
    for target in TARGETS:
        expected = row(target, [Evaluation(0, 0, 0.0, 0.0, "")])
        for place in (HEADINGS.index("unit of work"), 5, 7):
            assert recorded[target.name][place] == expected[place], target.name
        missed = float(recorded[target.name][MICROSECONDS]) > (target.microseconds or 1e9)
        assert not (missed and recorded[target.name][MET] == "yes"), target.name


@pytest.fixture
def modelled(monkeypatch, tmp_path):
    """Replaces the compiler and the model; returns a page and a function that sets the time."""
    monkeypatch.setattr(command, "TARGETS", [TARGET])
    monkeypatch.setattr(command, "CUBINS", tmp_path)
    monkeypatch.setattr(command, "find_tool", lambda name: name)
    monkeypatch.setattr(command, "compile_cubin", lambda *_: (tmp_path / "a.cubin", ""))

    def set_time(microseconds):
        evaluation = Evaluation(90, 0, 5.0, microseconds, "issue")
        monkeypatch.setattr(command, "evaluate", lambda *_: evaluation)

    return tmp_path / "page.md", set_time


@pytest.mark.parametrize(
    ("before", "now", "status", "said"),
    [
        (140, 140, 0, "No row is worse than on record."),
        (140, 145, 0, "loss, forward: not as on record; give"),
        (140, 151, 1, "loss, forward: misses its targets, which it met"),
        (160, 159, 0, "1 of 1 targets are missed."),
        (160, 161, 1, "loss, forward: simulated us 161, up from 160"),
    ],
)
def test_the_exit_status_says_whether_a_row_is_worse(
    before, now, status, said, modelled, capsys, monkeypatch
):
    page, set_time = modelled
    page.write_text(markdown([cells(before)]))
    set_time(now)
    monkeypatch.setattr("sys.argv", ["gpu_model", "--record", str(page)])
    assert command.main() == status
    assert said in capsys.readouterr().out


def test_without_nvcc_nothing_is_compared(modelled, capsys, monkeypatch):
    def missing(name):
        raise tools.ToolError(f"{name} was not found")

    monkeypatch.setattr(command, "find_tool", missing)
    monkeypatch.setattr("sys.argv", ["gpu_model", "--only", "changed", "--record", str(RECORD)])
    assert command.main() == 0
    assert "nvcc was not found" in capsys.readouterr().out


def test_a_record_that_is_not_there_is_an_error(modelled, capsys, monkeypatch):
    page, _ = modelled
    monkeypatch.setattr("sys.argv", ["gpu_model", "--record", str(page)])
    assert command.main() == 2
    assert "page.md" in capsys.readouterr().err


def test_all_rows_are_modelled_where_the_model_changed_or_git_cannot_tell(monkeypatch, tmp_path):
    monkeypatch.setattr(command, "CUBINS", tmp_path)
    model = tools.ROOT / "benchmarks" / "gpu_model"
    monkeypatch.setattr(command, "changed_files", lambda base: {model / "issue.py"})
    assert command.select("changed", "HEAD") == list(TARGETS)
    monkeypatch.setattr(command, "changed_files", lambda base: {model / "nvcc_check.py"})
    assert command.select("changed", "HEAD") == []
    monkeypatch.setattr(command, "default_base", lambda: None)
    assert command.select("changed", None) == list(TARGETS)


def git(folder, *arguments):
    settings = ["-c", "user.name=Some One", "-c", "user.email=one@example.org"]
    done = subprocess.run(
        ["git", *settings, *arguments], cwd=folder, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def commit(folder, count=1):
    for _ in range(count):
        git(folder, "commit", "--quiet", "--allow-empty", "--message", "A step")
    return git(folder, "rev-parse", "HEAD")


@pytest.fixture
def checkout(monkeypatch, tmp_path):
    """Returns a function that clones a repository of 30 commits, as the checkout that is asked."""
    monkeypatch.delenv(changes.BASE_VARIABLE, raising=False)
    origin = tmp_path / "origin"
    git(tmp_path, "init", "--quiet", "--initial-branch", "main", str(origin))
    commit(origin, 30)

    def clone(*options):
        folder = tmp_path / "clone"
        git(tmp_path, "clone", "--quiet", *options, origin.as_uri(), str(folder))
        monkeypatch.setattr(changes, "ROOT", folder)
        return folder

    return clone


@needs_git
def test_a_branch_is_compared_with_where_it_left_the_main_branch(checkout):
    folder = checkout()
    left = git(folder, "rev-parse", "HEAD")
    git(folder, "checkout", "--quiet", "-b", "faster")
    commit(folder, 3)
    assert changes.default_base() == left


@needs_git
def test_the_main_branch_is_compared_with_itself_some_commits_ago(checkout):
    folder = checkout()
    expected = git(folder, "rev-parse", f"HEAD~{changes.RECENT_COMMITS}")
    assert changes.default_base() == expected
    git(folder, "remote", "remove", "origin")
    assert changes.default_base() == expected


@needs_git
def test_a_clone_that_is_too_shallow_cannot_tell(checkout):
    folder = checkout("--depth", "1")
    assert changes.default_base() is None
    git(folder, "fetch", "--quiet", "--unshallow")
    assert changes.default_base() is not None


@needs_git
def test_what_is_not_under_git_cannot_tell(monkeypatch, tmp_path):
    monkeypatch.delenv(changes.BASE_VARIABLE, raising=False)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.setattr(changes, "ROOT", tmp_path)
    assert changes.default_base() is None
    with pytest.raises(tools.ToolError, match="git cannot say what changed since HEAD"):
        changes.changed_files("HEAD")


@needs_git
def test_the_variable_names_the_commit(checkout, monkeypatch):
    folder = checkout()
    monkeypatch.setenv(changes.BASE_VARIABLE, "HEAD~2")
    assert changes.default_base() == git(folder, "rev-parse", "HEAD~2")
    monkeypatch.setenv(changes.BASE_VARIABLE, "no-such-branch")
    with pytest.raises(tools.ToolError, match="VSS_GPU_MODEL_BASE=no-such-branch names no commit"):
        changes.default_base()


@needs_git
def test_changed_files_are_committed_ones_and_new_ones(checkout):
    folder = checkout()
    base = git(folder, "rev-parse", "HEAD")
    for name in ("committed", "changed", "new"):
        (folder / name).write_text("1")
        if name != "new":
            git(folder, "add", name)
            commit(folder)
    (folder / "changed").write_text("2")
    assert changes.changed_files(base) == {folder / n for n in ("committed", "changed", "new")}
    assert changes.changed_files("HEAD") == {folder / n for n in ("changed", "new")}
