"""Deployments in the ledger: what is refused, what comes back, what is told of it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from deployed import NAME, Home
from hearing import Heard

from isoflop.adapting.records import AdaptConfig, Adapted
from isoflop.errors import ProjectError, ServeError
from isoflop.metrics import Score
from isoflop.serve.deploying.changing import Deploying, followers
from isoflop.serve.deploying.records import KIND, SERVER, Deployment, Placed, Server, Standing, named, place
from isoflop.serve.deploying.status import statuses
from isoflop.serve.deploying.waiting import Waited, wait
from isoflop.serve.feedback import KIND as FEEDBACK
from isoflop.serve.feedback import Feedback, Rating
from isoflop.store import Project
from isoflop.tasks.protocol import Spec

TASK = "classification"


@pytest.fixture
def home(tmp_path: Path) -> Home:
    made = Home(tmp_path / "project", "one", "two", "three")
    made.bits("one", 1.0)
    made.bits("two", 1.004)
    made.bits("three", 1.02)
    return made


def serves(
    home: Home, *names: str, id: str = "a", path: str = "one", seen: str = "", **standing: Any
) -> Server:
    """A server that says so."""
    at = seen or datetime.now(UTC).isoformat(timespec="seconds")
    placed = home.change()._placed(str(home.project.folder / path))
    made = Server(
        id=id, url=f"http://{id}", host="here", process=1, began=at, seen=at,
        names={name: Standing(main=placed, **standing) for name in names},
    )  # fmt: skip
    home.project.put(SERVER, made)
    return made


def refusal(kind: type[Exception], *words: str) -> Any:
    return pytest.raises(kind, match=".*".join(words))


def test_what_is_worse_is_refused_with_both_numbers(home: Home) -> None:
    home.deploy("one", force=False)  # over nothing
    home.deploy("two", force=False)  # by 0.4%
    home.deploy("one", force=False)
    worse = refusal(
        ServeError, r"three is worse than what serves: bits per byte 1\.0200", r"1\.0000 \(\+2\.00%"
    )
    with worse as caught:
        home.deploy("three", force=False)
    assert "--force" in caught.value.hint
    with worse:
        home.change(force=False).canary(str(home.project.folder / "three"), 0.1)
    home.change(force=False).shadow(str(home.project.folder / "three"), 0.1)  # nobody gets its answers
    home.deploy("three", force=False, tolerance=0.03)
    assert not home.deploy("one", force=False).forced  # better
    assert home.deploy("three").forced


def test_what_was_not_measured_is_refused(home: Home) -> None:
    home.artifact("unknown")
    home.deploy("one")
    with refusal(ServeError, "how good unknown is was not measured") as caught:
        home.deploy("unknown", force=False)
    assert "isoflop verdict" in caught.value.hint
    home.deploy("unknown")
    with refusal(ServeError, "how good unknown is was not measured"):
        home.deploy("one", force=False)


def test_bits_per_byte_are_compared_across_tokenizers_and_losses_are_not(home: Home) -> None:
    home.deploy("one")
    home.artifact("other")
    home.bits("other", 0.9, corpus_id="corpus-2", loss=9.0)
    home.deploy("other", force=False)
    home.artifact("masked")
    home.bits("masked", None, loss=0.1)
    with refusal(ServeError, "masked cannot be compared with other", "loss on", "bits per byte on"):
        home.deploy("masked", force=False)


def adapted(home: Home, name: str, score: float, examples: str = "data.csv 1") -> None:
    """A folder of the project, with what it scored."""

    def write(folder: Path) -> None:
        (folder / "says.txt").write_text(name)

    path = home.project.add_artifact(name, write)
    test = Score(metric="accuracy", value=score, low=score, high=score, examples=9, unit="share")
    home.project.put("adapted", Adapted(
        id=name, task=TASK, base="", base_path="", data={"train": examples}, columns={}, examples={},
        spec=Spec(task=TASK), config=AdaptConfig(task=TASK), trials=(), validation=(), test=(test,),
        seconds={}, flops=0.0, model=path,
    ))  # fmt: skip
    (home.project.folder / name).unlink(missing_ok=True)
    (home.project.folder / name).symlink_to(home.project.folder / path)


def test_adapted_models_are_compared_by_their_test_score(home: Home) -> None:
    for name, score, data in (("good", 0.9, "a 1"), ("bad", 0.8, "a 1"), ("apart", 0.99, "b 2")):
        adapted(home, name, score, data)
    home.deploy("good")
    with refusal(ServeError, "worse than what serves: accuracy 0.8000", r"0.9000 \(\+11.11%"):
        home.deploy("bad", force=False)
    with refusal(ServeError, "apart cannot be compared with good"):
        home.deploy("apart", force=False)
    with refusal(ServeError, "cannot be compared"):
        home.deploy("one", force=False)
    home.deploy("bad")
    home.deploy("good", force=False)


def test_a_gate_that_failed_is_heeded(home: Home) -> None:
    artifact = home.project.folder / "artifacts" / "made.gguf"
    artifact.parent.mkdir()
    artifact.write_bytes(b"GGUF")
    changes = Deploying(home.project, NAME)
    with refusal(ProjectError, "would have passed a gate"):
        changes.deploy(str(artifact), NAME)


def test_versions_go_up_and_the_way_back_is_kept(home: Home) -> None:
    folder = home.project.folder
    first = home.deploy("one")
    assert home.deploy("one") == first  # typed again
    second = home.deploy("two")
    assert (second.version, second.before, second.main.path) == (2, first.main, "two")
    canary = home.change().canary(str(folder / "three"), 0.25)
    assert canary == home.change().canary(str(folder / "three"), 0.25)
    assert (canary.main, canary.before) == (second.main, first.main)
    assert home.change().canary(str(folder / "three"), 0.5).version == 4
    promoted = home.change().promote()
    assert (promoted.main.path, promoted.before, promoted.canary) == ("three", second.main, None)
    assert home.change().rollback().main.path == "two"
    assert home.change().rollback().main.path == "three"
    home.change().shadow(str(folder / "one"), 1.0)
    assert home.change().end_shadow().main.path == "three"
    home.change().canary(str(folder / "one"), 1.0)
    last = home.deploy("three")  # what serves, alone
    assert (last.canary, last.before.path if last.before else "") == (None, "two")


def test_what_cannot_be_promoted(home: Home) -> None:
    home.deploy("one")
    home.change().canary(str(home.project.folder / "three"), 0.1)
    with refusal(ServeError, "three is worse than what serves"):
        home.change(force=False).promote()
    home.change().rollback()
    with refusal(ServeError, "talker has no canary"):
        home.change().promote()
    with refusal(ServeError, "talker has no shadow"):
        home.change().end_shadow()
    with refusal(ServeError, "talker was not deployed over anything"):
        home.change().rollback()


def test_names(home: Home) -> None:
    folder = home.project.folder
    nobody = Deploying(home.project)
    for change in (nobody.promote, nobody.rollback, nobody.end_shadow):
        with refusal(ServeError, "nothing is deployed in"):
            change()
    with refusal(ServeError, "one would be beside nothing"):
        nobody.canary(str(folder / "one"), 0.1)
    with refusal(ProjectError, "there is no artifact"):
        nobody.deploy(str(folder / "none"), "none")
    assert nobody.deploy(str(folder / "one"), "one").id == "one"
    assert nobody.deploy(str(folder / "two"), "two").id == "one"  # the only one that is there
    with refusal(ServeError, "no model is served as 'other'", "has one"):
        Deploying(home.project, "other").rollback()
    Deploying(home.project, "other").deploy(str(folder / "two"), "two")
    with refusal(ServeError, "serves several models: one, other"):
        nobody.rollback()
    serves(home, "one")
    with refusal(ServeError, "no model is served as 'third'"):  # by whoever runs
        Deploying(home.project, "third").deploy(str(folder / "two"), "two")


def test_what_a_server_was_started_with_is_what_comes_back(home: Home) -> None:
    serves(home, NAME)
    with refusal(ServeError, "three is worse"):
        home.deploy("three", force=False)
    made = home.change(name=None).canary(str(home.project.folder / "two"), 0.1)
    assert (made.id, made.main.path) == (NAME, "one")
    home.change().rollback()
    assert home.deploy("three").before == made.main
    assert home.change().rollback().main.path == "one"


def test_waiting(home: Home) -> None:
    first = home.deploy("one")

    def waited(seconds: float) -> Waited:
        return wait(home.project, first, seconds, Heard())

    assert waited(1) == ([], [], [])
    long_ago = (datetime.now(UTC) - timedelta(hours=1)).isoformat(timespec="seconds")
    serves(home, NAME, id="gone", seen=long_ago)
    serves(home, "other", id="other")
    assert waited(1) == ([], [], [])
    assert [server.id for server in followers(home.project)] == ["other"]
    serves(home, NAME, id="a")
    serves(home, NAME, id="b", token=first.token)
    found = waited(0)
    assert [[server.id for server in part] for part in found] == [["b"], [], ["a"]]
    with refusal(ServeError, "1 of 2 servers have not swapped yet", "http://a on here"):
        found.check(first)
    for state in ("failed", "serving"):
        serves(home, NAME, id="b", token=first.token, state=state, why="no room")
        serves(home, NAME, id="a")
        found = in_thread(lambda: waited(60), lambda: serves(home, NAME, id="a", token=first.token))
        assert not found.in_vain
        if state == "failed":
            with refusal(ServeError, "1 of 2 servers could not swap", "http://b on here: no room"):
                found.check(first)
        else:
            found.check(first)
    serves(home, NAME, id="a")
    with refusal(ServeError, "another deployment of talker took this one's place by"):
        in_thread(lambda: waited(60), lambda: home.deploy("two"))


def in_thread(work: Callable[[], Any], meanwhile: Callable[[], Any]) -> Any:
    with ThreadPoolExecutor(1) as executor:
        done = executor.submit(work)
        meanwhile()
        return done.result()


def test_what_no_server_could_open_is_taken_back(home: Home) -> None:
    folder = home.project.folder
    changes = home.change()
    changes.take_back(changes.deploy(str(folder / "two"), NAME), "no room")
    assert home.project.get(KIND, NAME, Deployment) is None
    home.deploy("one")
    kept = home.change().canary(str(folder / "two"), 0.1)
    failed = changes.deploy(str(folder / "three"), NAME)
    changes.take_back(failed, "no room")
    last = home.project.get(KIND, NAME, Deployment)
    assert last
    assert (last.version, last.main, last.canary, last.before) == (4, kept.main, kept.canary, kept.before)
    assert last.change == "back to one, as version 3 failed: no room"
    changes.take_back(failed, "no room")  # another's is left alone
    assert home.project.get(KIND, NAME, Deployment) == last


def say(home: Home, rating: Rating, artifact: Placed, count: int, at: str) -> None:
    home.project.put_all(FEEDBACK, {
        f"{rating}{artifact.path}{at}{number}": Feedback(
            id=f"{rating}{artifact.path}{at}{number}", request_id="r", rating=rating, model=NAME,
            model_hash=artifact.hash, at=at,
        ) for number in range(count)
    })  # fmt: skip


def test_status_has_ratings_of_canary_and_model_since_the_canary_began(home: Home) -> None:
    home.deploy("one")
    known = home.change().canary(str(home.project.folder / "two"), 0.1)
    serves(home, NAME, id="a", token=known.token, version=known.version)
    assert known.canary
    later = "2999-01-01T00:00:00+00:00"
    say(home, "up", known.main, 100, "2000-01-01T00:00:00+00:00")  # before
    say(home, "up", known.main, 8, later)
    say(home, "down", known.main, 2, later)
    say(home, "up", known.canary.artifact, 1, later)
    say(home, "down", known.canary.artifact, 3, later)
    (status,) = statuses(home.project)
    main, canary = status.parts
    assert (main.role, main.share, canary.role, canary.share) == ("main", 0.9, "canary", 0.1)
    assert main.rated
    assert canary.rated
    assert main.rated.up
    assert canary.rated.up
    assert (main.rated.ratings, canary.rated.ratings) == (10, 4)
    assert main.rated.up.value == 0.8
    assert (main.rated.up.low, main.rated.up.high) == pytest.approx((0.541, 0.931), abs=0.001)  # Wilson's
    assert canary.rated.up.low < 0.25 < canary.rated.up.high
    assert [(one.url, one.state, one.role_of) for one in status.followers] == [
        ("http://a", "serving", "main")
    ]
    assert statuses(home.project, "none") == []


def test_deployments_are_for_projects_at_any_place(home: Home, tmp_path: Path) -> None:
    project, other = home.project, tmp_path / "outside"
    other.write_text("x")
    assert named(project, project.folder / "one") == "one"
    assert named(project, other) == str(other)
    assert named(project, "http://host:1#m") == "http://host:1#m"
    moved = Project(tmp_path / "moved")
    assert place(moved, Placed(path="one", hash="")) == str(tmp_path / "moved" / "one")
    assert place(moved, Placed(path=str(other), hash="")) == str(other)
    assert place(moved, Placed(path="http://host:1", hash="")) == "http://host:1"
    remote = home.change().deploy("http://host:1#m", "x")
    assert (remote.main.path, remote.main.hash) == ("http://host:1#m", "")


@pytest.mark.parametrize("fresh", ["sqlite", "postgresql"], indirect=True)
def test_in_either_ledger(fresh: Project) -> None:
    for name in ("one", "two"):
        (fresh.folder / name).write_text(name)
        Deploying(fresh, NAME, force=True).deploy(str(fresh.folder / name), NAME)
    known = fresh.get(KIND, NAME, Deployment)
    assert known
    assert (known.version, known.main.path) == (2, "two")
