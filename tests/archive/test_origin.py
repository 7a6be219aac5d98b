"""Where a run comes from, and what a record's folder is called."""

import secrets
import shutil
import subprocess

import pytest

from rollcast import InputError, StreamingManager
from rollcast.archive import Archive, ArchiveObserver
from rollcast.archive.origin import git_commit
from rollcast.records.secrets import masked_arguments

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="there is no git")


def git(folder, *args):
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", *identity, *args], cwd=folder, capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def repository(tmp_path):
    folder = tmp_path / "repository"
    folder.mkdir()
    git(folder, "init", "--quiet")
    git(folder, "commit", "--quiet", "--allow-empty", "--message", "one")
    return folder


def test_the_commit_is_that_of_git(repository):
    """On a branch, in a folder within, with packed references, on no branch, and in a worktree."""
    (repository / "a" / "b").mkdir(parents=True)
    for change in ([], ["pack-refs", "--all"], ["checkout", "--quiet", "--detach"]):
        if change:
            git(repository, *change)
        assert git_commit(repository / "a" / "b") == git(repository, "rev-parse", "HEAD")
    git(repository, "worktree", "add", "--quiet", "-b", "other/branch", "../tree")
    tree = repository.parent / "tree"
    git(tree, "commit", "--quiet", "--allow-empty", "--message", "two")
    assert git_commit(tree) == git(tree, "rev-parse", "HEAD") != git_commit(repository)


def test_without_a_commit_there_is_none(tmp_path):
    """In no repository, in one without a commit, in one that is damaged."""
    assert git_commit(tmp_path) is None
    git(tmp_path, "init", "--quiet")
    assert git_commit(tmp_path) is None
    for text in (b"", b"ref: HEAD\n", b"\xff\xfe", b"ref: refs/heads/\0"):
        (tmp_path / ".git/HEAD").write_bytes(text)
        assert git_commit(tmp_path) is None
    (tmp_path / "b").mkdir()
    (tmp_path / "b/.git").write_text("gitdir: nowhere\n")
    assert git_commit(tmp_path / "b") is None


def test_a_record_says_the_commit_of_the_folder_it_was_made_in(repository, tmp_path, monkeypatch):
    """Which is not that of the folder in which the program is when it begins."""
    monkeypatch.chdir(repository)
    observer = ArchiveObserver(tmp_path / "r")
    monkeypatch.chdir(tmp_path)
    manager = StreamingManager()
    manager.add_observer(observer)
    with manager.run():
        pass
    manager.close()
    assert Archive.open(tmp_path / "r").facts.git_commit == git(repository, "rev-parse", "HEAD")


def test_two_that_draw_the_same_name_get_folders_of_their_own(tmp_path, monkeypatch):
    """Although each looked before the other had made its folder."""
    drawn = iter(["aaaa", "aaaa", "aaaa", "bbbb"])
    monkeypatch.setattr(secrets, "token_hex", lambda n: next(drawn) if n == 2 else "0" * 2 * n)
    observers = [ArchiveObserver.within(tmp_path / "records", name="x") for _ in range(2)]
    assert observers[0].path == observers[1].path
    managers = [StreamingManager() for _ in observers]
    for manager, observer in zip(managers, observers, strict=True):
        manager.add_observer(observer)
        with manager.run() as run, run.chain():
            pass
    for manager in managers:
        manager.close()
    assert [observer.path.name[-4:] for observer in observers] == ["aaaa", "bbbb"]
    assert [Archive.open(observer.path).facts.totals.chains for observer in observers] == [1, 1]


def test_nothing_is_made_for_a_record_that_never_began(tmp_path):
    """Neither its folder nor the one around it."""
    manager = StreamingManager()
    observer = ArchiveObserver.within(tmp_path / "records")
    manager.add_observer(observer)
    manager.close()
    assert (observer.begun, observer.ended, list(tmp_path.iterdir())) == (False, True, [])


@pytest.mark.parametrize("about", [{"seed": "seven"}, {"out": 3}, {"command": "rollcast run"}])
def test_what_run_json_cannot_say_is_refused(tmp_path, about):
    """In a sentence, when the observer is made: nobody could read the record."""
    with pytest.raises(InputError, match=r"what run\.json is to say is wrong"):
        ArchiveObserver(tmp_path / "r", about=about)


@pytest.mark.parametrize(
    ("given", "masked"),
    [
        (["--token", "abc", "--seed", "7"], ["--token", "[masked:argument]", "--seed", "7"]),
        (["--token=abc"], ["--token=[masked:argument]"]),
        (["--backend-option", "api_key=x=y"], ["--backend-option", "api_key=[masked:argument]"]),
        (["--tokens", "token", "--max-tokens", "5"], ["--tokens", "token", "--max-tokens", "5"]),
        (["--token"], ["--token"]),
        (["--alert", "https://hooks.example.com/T0/B0/x"], ["--alert", "[masked:argument]"]),
        (["--alert=python tell.py --to x"], ["--alert=[masked:argument]"]),
        (["auth.py:agent", "author=me"], ["auth.py:agent", "author=me"]),
    ],
)
def test_arguments_are_masked_by_the_names_of_what_they_set(given, masked):
    """Whatever the secret looks like."""
    assert masked_arguments(given) == masked
