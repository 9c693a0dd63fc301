# SPDX-License-Identifier: Apache-2.0
"""Every push and pull under every fault at every request: then the old state or the new one; a rerun finishes it.

All faults at all requests take a quarter of an hour: `make fault-matrix`. Without it pushes and pulls of one
repository meet a fifth: every request some faults, every fault some requests; those of a whole output, which take a
hundred requests, a tenth or less.
"""

import os
import shutil
from dataclasses import dataclass, field

import pytest
from huggingface_hub import HfApi

from tests.hub.artefacts import make_adapter, make_app, make_output, make_record
from tests.hub.test_hostile_repositories import tree
from tests.hub_server import FAULTS, OTHER, WRITE
from trl_maxmin.hub import HubError, PushOptions, plan_output_folder, publish, publish_collection, pull
from trl_maxmin.hub.collection import UNFINISHED, collection_items
from trl_maxmin.hub.mirror import LIST, WAITING
from trl_maxmin.hub.plan import plan_component, plan_dataset, plan_mixture, plan_policy
from trl_maxmin.hub.plan_app import plan_space
from trl_maxmin.hub.push import Published


OPTIONS = PushOptions(private=False, license="mit", space_sdk="static")
KINDS = ("mixture", "component", "adapter", "policy", "dataset", "space", "collection", "family")
REPRESENTATIVE = (403, 503, "drop", "lost")
SAMPLED = 1 if os.environ.get("TRL_MAXMIN_EXHAUSTIVE") else 5


def cases_of(sequence, faults, every=1):
    """Request and fault of each case."""
    return [(at, fault) for at in range(sequence) for place, fault in enumerate(faults) if (at + place) % every == 0]


@dataclass
class Push:
    """A push that can be repeated: its plans, its collection, and the call."""

    plans: list
    collection: tuple | None = None
    extra: list = field(default_factory=list)

    def __call__(self):
        done = publish(self.plans, command="push again")
        if self.collection:
            items = collection_items(done) if self.plans else self.extra
            publish_collection(*self.collection, items, private=False)
        return done


def build(kind, folder, version):
    """The push of this kind, with other content for every version."""
    output, record = make_output(folder / f"v{version}", version), make_record(version)
    parts = {
        "mixture": lambda: [plan_mixture(output / "mixture", "me/film-mixture", record, OPTIONS)],
        "component": lambda: [
            plan_component(output / "components" / "concise", "me/film-concise", "concise", record, OPTIONS)
        ],
        "adapter": lambda: [
            plan_component(make_adapter(folder / f"a{version}", version), "me/film-lora", "concise", record, OPTIONS)
        ],
        "policy": lambda: [
            plan_policy(
                output / "policies" / "maxmin",
                "me/film-policy",
                "maxmin",
                record,
                OPTIONS,
                figure=output / "comparison.png",
            )
        ],
        "dataset": lambda: [plan_dataset(output / "evaluation", "me/film-evaluation", record, OPTIONS, None)],
        "space": lambda: [plan_space(make_app(folder / f"s{version}", version), "me/film-space", OPTIONS, models=[])],
        "collection": lambda: [],
    }
    if kind == "family":
        plan = plan_output_folder(
            output, "me/film", OPTIONS, dataset=True, space=make_app(folder / f"s{version}", version)
        )
        return Push(plan.repos, (plan.namespace, plan.title))
    if kind == "collection":
        items = [("me/one", "model", "first"), ("me/two", "model", "second"), ("me/three", "dataset", "third")]
        return Push([], ("me", "film"), items[: 2 + version])
    return Push(parts[kind]())


def state(push):
    """What the API shows of every repository, and of the collection."""
    api, shown = HfApi(token=OTHER), {}
    for plan in push.plans:
        try:
            info = api.repo_info(plan.repo_id, repo_type=plan.repo_type, files_metadata=True)
        except OSError:
            shown[plan.repo_id] = None
            continue
        files = {s.rfilename: s.lfs.sha256 if s.lfs else s.blob_id for s in info.siblings}
        # What the Hub itself puts into an empty repository announces nothing.
        files.pop(".gitattributes")
        own = set(files) - ({"README.md"} if plan.kind == "space" else set())
        shown[plan.repo_id] = files if own else None
    if push.collection:
        found = [c for c in api.list_collections(owner="me") if c.title == push.collection[1]]
        shown["collection"] = [i.item_id for i in api.get_collection(found[0].slug).items] if found else None
    return shown


def commits(push):
    api = HfApi()
    return {
        p.repo_id: len(api.list_repo_commits(p.repo_id, repo_type=p.repo_type))
        for p in push.plans
        if api.repo_exists(p.repo_id, repo_type=p.repo_type)
    }


def is_write(entry):
    """Whether a request changes something, uploads that no commit names apart."""
    method, path, _ = entry
    quiet = ("/preupload/", "/validate-yaml", "/objects/batch", "/_storage/", "/_verify/", "/_complete/")
    return method in ("POST", "PUT", "PATCH", "DELETE") and not any(part in path for part in quiet)


def check_matrix(hub, kind, folder, faults, first, every=1):
    """Faults at all requests of one push; returns how many cases, failures and completions at once there were."""
    if kind == "collection":
        for name, type in (("one", "model"), ("two", "model"), ("three", "dataset")):
            HfApi().create_repo(f"me/{name}", repo_type=type)
    old, push = build(kind, folder, 0), build(kind, folder, 1)
    if first:
        push, old = old, None
    else:
        old()
    start = hub.store.snapshot()
    before = state(push)
    count = commits(push)
    hub.log.clear()
    push()
    sequence = len(hub.log)
    complete, end = state(push), hub.store.snapshot()
    expected_commits = commits(push)
    cases = failed = 0
    for at, fault in cases_of(sequence, faults, every):
        where = f"{kind}, fault {fault} at request {at} {hub.log[at] if at < len(hub.log) else ''}"
        hub.store.restore(start)
        hub.log.clear()
        hub.inject(fault, at=at)
        cases += 1
        try:
            push()
            error = None
        except HubError as caught:
            error, failed = caught, failed + 1
        finally:
            hub.heal()
        after = state(push)
        check_order(push, before, after, complete, where)
        if error is None:
            assert after == complete, where
        else:
            message = str(error)
            assert WRITE not in message and "hf_me" not in message, where
            if push.plans and "collection" not in error.doing:
                assert "push again" in message and set(error.done) | set(error.open) == {
                    p.repo_id for p in push.plans
                }, where
                assert all(after[name] == complete[name] for name in error.done), where
        push()
        assert state(push) == complete, f"{where}: the rerun does not complete it"
        assert commits(push) == expected_commits, f"{where}: commits {count} -> {commits(push)}"
        hub.log.clear()
        push()
        assert not [entry for entry in hub.log if is_write(entry)], f"{where}: a further run changes something"
    hub.store.restore(end)
    return sequence, cases, failed


def check_order(push, before, after, complete, where):
    """Each repository is old or new as a whole; a new one has only new ones before it, the collection comes last."""
    names = [plan.repo_id for plan in push.plans]
    for name in names:
        assert after[name] in (before[name], complete[name]), f"{where}: {name} is partial"
    new = [after[name] == complete[name] for name in names if before[name] != complete[name]]
    assert new == sorted(new, reverse=True), f"{where}: published out of order: {new}"
    if push.collection:
        shown = after["collection"]
        if before["collection"] is None:
            assert shown in (None, complete["collection"]), f"{where}: the collection is partial"
        if shown != before["collection"]:
            assert all(new), f"{where}: the collection came before a repository"


@pytest.mark.parametrize("first", [True, False], ids=["new", "update"])
@pytest.mark.parametrize("fault", REPRESENTATIVE)
def test_a_mixture(hub, tmp_path, fault, first):
    sequence, cases, failed = check_matrix(hub, "mixture", tmp_path, [fault], first)
    assert cases == sequence >= 7 and failed >= cases / 2


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["new", "update"])
@pytest.mark.parametrize("kind", KINDS)
def test_everything(hub, tmp_path, kind, first, record_property):
    faults = FAULTS if kind != "family" else REPRESENTATIVE if first else (503, "lost")
    every = 2 * SAMPLED - 1 if kind == "family" else SAMPLED
    sequence, cases, failed = check_matrix(hub, kind, tmp_path, faults, first, every)
    record_property("cases", cases)
    print(f"\n{kind} {'new' if first else 'update'}: {sequence} requests, {cases} cases, {failed} failed pushes")
    assert cases == len(cases_of(sequence, faults, every)) >= len(faults) * (sequence // every) and failed > 0


def pulled_state(folder):
    """What lies in every folder of a repository, arriving files apart."""
    lists = {path.parent for path in folder.rglob(LIST)} | {folder}
    return {
        place.relative_to(folder).as_posix(): {
            name: (place / name).read_bytes() for name in tree(place, WAITING, ".cache") if "/" not in name
        }
        for place in lists
        if place.is_dir()
    }


def check_pulls(hub, tmp_path, name, builds, faults, first, every=1):
    """Faults at all requests of one pull; returns how many cases and failures there were."""
    old, new = builds
    target, start, done = tmp_path / "in", tmp_path / "start", tmp_path / "done"
    old()
    if not first:
        pull(name, start)
    before = pulled_state(start) if not first else {}
    new()
    pull(name, done)
    complete = pulled_state(done)
    if not first:
        shutil.copytree(start, target)
    hub.log.clear()
    pull(name, target)
    sequence = len(hub.log)
    assert pulled_state(target) == complete
    cases = failed = 0
    for at, fault in cases_of(sequence, faults, every):
        where = f"pull of {name}, fault {fault} at request {at}"
        shutil.rmtree(target)
        if not first:
            shutil.copytree(start, target)
        hub.inject(fault, at=at)
        cases += 1
        try:
            pull(name, target)
            error = None
        except HubError as caught:
            error, failed = caught, failed + 1
            assert WRITE not in str(caught) and "hf_me" not in str(caught), where
        finally:
            hub.heal()
        for place, files in pulled_state(target).items():
            # The folder of the whole only has the list of what is below it.
            if place != "." or len(complete) == 1:
                assert files in (before.get(place, {}), complete.get(place, {})), f"{where}: {place} is partial"
        if error is None:
            assert pulled_state(target) == complete, where
        pull(name, target)
        assert pulled_state(target) == complete, f"{where}: the rerun does not complete it"
        hub.log.clear()
        pull(name, target)
        assert not [entry for entry in hub.log if is_write(entry) or "/resolve/" in entry[1]], where
        assert pulled_state(target) == complete and not list(target.rglob(WAITING)), where
    return cases, failed


@pytest.mark.slow
@pytest.mark.parametrize("first", [True, False], ids=["new", "in place"])
@pytest.mark.parametrize("kind", ["mixture", "adapter", "dataset", "family"])
def test_pulls(hub, tmp_path, kind, first):
    builds = [build(kind, tmp_path / "made", version) for version in (0, 1)]
    name = "me/film" if kind == "family" else builds[0].plans[0].repo_id
    # A whole push takes a hundred requests.
    faults, every = ((503, "cut"), SAMPLED**2) if kind == "family" else (FAULTS, SAMPLED)
    cases, failed = check_pulls(hub, tmp_path, name, builds, faults, first, every)
    print(f"\npull of {kind} {'new' if first else 'in place'}: {cases} cases, {failed} failed pulls")
    assert failed > 0


@pytest.mark.parametrize("first", [True, False], ids=["new", "in place"])
@pytest.mark.parametrize("fault", [503, "cut"])
def test_a_pull_of_a_mixture(hub, tmp_path, fault, first):
    builds = [build("mixture", tmp_path / "made", version) for version in (0, 1)]
    cases, failed = check_pulls(hub, tmp_path, "me/film-mixture", builds, [fault], first)
    assert cases >= 5 and failed > 0


@pytest.mark.slow
def test_the_hub_goes_away(hub, tmp_path):
    """From some request on nothing answers."""
    push = build("family", tmp_path, 0)
    start, before = hub.store.snapshot(), state(push)
    hub.log.clear()
    push()
    sequence, complete = len(hub.log), state(push)
    for at in range(sequence):
        hub.store.restore(start)
        hub.inject(500 if at % 2 else "drop", at=at, lasting=True)
        with pytest.raises(HubError):
            push()
        hub.heal()
        check_order(push, before, state(push), complete, f"gone at {at}")
        push()
        assert state(push) == complete


@pytest.mark.parametrize("first", [True, False], ids=["new", "update"])
def test_a_collection_whose_items_are_refused_as_duplicates(hub, tmp_path, first):
    """409 means `there already` to the client; one that lies must not make a half collection visible."""
    _, cases, failed = check_matrix(hub, "collection", tmp_path, [409], first)
    assert 0 < failed <= cases


def test_a_new_collection_is_seen_when_it_is_complete(hub, tmp_path):
    push = build("collection", tmp_path, 1)
    for name, type in (("one", "model"), ("two", "model"), ("three", "dataset")):
        HfApi().create_repo(f"me/{name}", repo_type=type)
    hub.inject(503, path="/items", at=1)
    with pytest.raises(HubError, match="503, the Hub is in trouble"):
        push()
    assert not list(HfApi(token=OTHER).list_collections(owner="me"))
    (mine,) = HfApi().list_collections(owner="me")
    assert mine.private and mine.description == UNFINISHED
    hub.heal()
    push()
    (seen,) = HfApi(token=OTHER).list_collections(owner="me")
    assert len(seen.items) == 3 and not seen.private


def test_published_says_what_happened(hub, tmp_path):
    push = build("mixture", tmp_path, 0)
    assert [entry.status for entry in push()] == ["created"]
    assert [entry.status for entry in push()] == ["unchanged"]
    (entry,) = build("mixture", tmp_path, 1)()
    assert isinstance(entry, Published) and entry.status == "updated"
    assert entry.commit == HfApi().model_info("me/film-mixture").sha
