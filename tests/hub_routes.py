# SPDX-License-Identifier: Apache-2.0
"""What our own Hub answers to which request: the wire contract of the client, one function a route."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs

from tests.hub_cards import card_errors
from tests.hub_store import Blob, Commit, HubRefusal, Repo, now, repo_url
from tests.hub_xet import read_file, read_shards


@dataclass
class Request:
    """One request, its body read."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes
    token: str | None
    host: str = ""

    def json(self) -> Any:
        """The body as JSON."""
        try:
            return json.loads(self.body or b"{}")
        except ValueError as error:
            raise HubRefusal(400, f"The body is not JSON: {error}") from error


@dataclass
class Answer:
    """One answer."""

    status: int
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    @classmethod
    def json(cls, value: Any, status: int = 200) -> Answer:
        """JSON with its content type."""
        return cls(status, json.dumps(value).encode(), {"Content-Type": "application/json"})


Handler = Callable[..., Answer]
ROUTES: list[tuple[str, re.Pattern[str], Handler]] = []
_TYPES = {"models": "model", "datasets": "dataset", "spaces": "space"}
_REPO = "/api/(?P<t>models|datasets|spaces)/(?P<id>[^/]+/[^/]+)"
_FILES = "(?:/(?P<t>datasets|spaces))?/(?P<id>[^/]+/[^/]+)"


def route(methods: str, pattern: str) -> Callable[[Handler], Handler]:
    """Serve a pattern of the raw path; named groups become arguments, unquoted."""

    def register(handler: Handler) -> Handler:
        ROUTES.extend((method, re.compile(pattern), handler) for method in methods.split())
        return handler

    return register


def _user(hub: Any, request: Request) -> dict[str, Any] | None:
    return hub.store.user(request.token)


def _repo(hub: Any, request: Request, t: str | None, id: str, write: bool = False) -> Repo:
    return hub.store.repo(_TYPES.get(t or "models", "model"), id, _user(hub, request), write)


# -- users, validation ------------------------------------------------------------------------------------------------


@route("GET", "/api/whoami-v2")
def whoami(hub: Any, request: Request) -> Answer:
    """Who a token belongs to."""
    user = _user(hub, request)
    if user is None:
        raise HubRefusal(401, "Invalid user token.")
    token = {"role": user["role"], "displayName": "test"}
    return Answer.json(
        {
            "type": "user",
            "name": user["name"],
            "orgs": [{"name": name} for name in user["orgs"]],
            "auth": {"accessToken": token},
        }
    )


@route("POST", "/api/validate-yaml")
def validate_yaml(hub: Any, request: Request) -> Answer:
    """Whether a card's metadata is accepted; needs no token."""
    body = request.json()
    errors = card_errors(body["content"], body.get("repoType") or "model")
    answer = {"errors": [{"message": message} for message in errors], "warnings": []}
    return Answer.json(answer, 400 if errors else 200)


@route("HEAD GET", "/api/telemetry/.*")
def telemetry(hub: Any, request: Request) -> Answer:
    """Clients with telemetry on call this; nothing of ours should."""
    return Answer(200)


# -- repositories -----------------------------------------------------------------------------------------------------


@route("POST", "/api/repos/create")
def create(hub: Any, request: Request) -> Answer:
    """A new repository."""
    repo = hub.store.create_repo(_user(hub, request), request.json(), hub.endpoint)
    return Answer.json({"url": repo_url(hub.endpoint, repo.type, repo.id), "name": repo.id, "id": repo.id})


@route("DELETE", "/api/repos/delete")
def delete(hub: Any, request: Request) -> Answer:
    """A repository goes away."""
    body, user = request.json(), _user(hub, request)
    id = f"{body.get('organization') or (user or {}).get('name')}/{body['name']}"
    repo = hub.store.repo(body.get("type") or "model", id, user, write=True)
    del hub.store.repos[repo.type, repo.id]
    return Answer.json({})


@route("PUT", _REPO + "/settings")
def settings(hub: Any, request: Request, t: str, id: str) -> Answer:
    """Visibility."""
    repo = _repo(hub, request, t, id, write=True)
    if "visibility" in request.json():
        repo.private = request.json()["visibility"] == "private"
    return Answer.json({"private": repo.private})


def _blob_facts(blob: Blob) -> dict[str, Any]:
    facts: dict[str, Any] = {"size": blob.size, "blobId": blob.git_oid}
    if blob.lfs:
        facts["lfs"] = {"sha256": blob.sha256, "size": blob.size, "pointerSize": 134}
    return facts


def _tags(repo: Repo, card: dict[str, Any]) -> list[str]:
    def listed(name: str) -> list[str]:
        value = card.get(name) or []
        return [value] if isinstance(value, str) else list(value)

    tags = [*listed("tags"), *(f"dataset:{name}" for name in listed("datasets"))]
    tags += [card["library_name"]] if "library_name" in card else []
    relation = card.get("base_model_relation")
    for base in listed("base_model"):
        tags += [f"base_model:{base}", *([f"base_model:{relation}:{base}"] if relation else [])]
    return tags


def _info(repo: Repo, commit: Commit, blobs: bool) -> dict[str, Any]:
    card = repo.card_data
    info = {
        "_id": hashlib.sha1(repo.id.encode()).hexdigest()[:24],
        "id": repo.id,
        "author": repo.id.split("/")[0],
        "sha": commit.oid,
        "private": repo.private,
        "disabled": False,
        "gated": False,
        "downloads": 0,
        "likes": 0,
        "createdAt": now(),
        "lastModified": commit.date,
        "tags": _tags(repo, card),
        "cardData": card,
        "siblings": [{"rfilename": p, **(_blob_facts(b) if blobs else {})} for p, b in commit.files.items()],
    }
    if repo.type == "model":
        info |= {"modelId": repo.id, "model-index": card.get("model-index")}
        info |= {name: card[name] for name in ("library_name", "pipeline_tag") if name in card}
    if repo.type == "space":
        info |= {"sdk": repo.sdk, "runtime": _runtime(repo)}
        info |= {"models": card.get("models", []), "datasets": card.get("datasets", [])}
    return info


@route("GET", _REPO + "(?:/revision/(?P<rev>[^/]+))?")
def info(hub: Any, request: Request, t: str, id: str, rev: str = "main") -> Answer:
    """Everything about a repository at a revision."""
    repo = _repo(hub, request, t, id)
    return Answer.json(_info(repo, repo.commit(rev), request.query.get("blobs", "").lower() == "true"))


@route("GET", "/api/(?P<t>models|datasets|spaces)")
def listing(hub: Any, request: Request, t: str) -> Answer:
    """Repositories by author, search word and tag."""
    user, found = _user(hub, request), []
    for (type, id), repo in hub.store.repos.items():
        mine = user is not None and id.split("/")[0] in (user["name"], *user["orgs"])
        wanted = request.query.get("author", id.split("/")[0]) == id.split("/")[0]
        wanted = wanted and request.query.get("search", "") in id
        wanted = wanted and request.query.get("filter", "") in ["", *_tags(repo, repo.card_data)]
        if type == _TYPES[t] and wanted and (mine or not repo.private):
            found.append(_info(repo, repo.commit("main"), False))
    return Answer.json(found)


@route("GET", _REPO + "/tree/(?P<rev>[^/]+)(?:/(?P<path>.+))?")
def tree(hub: Any, request: Request, t: str, id: str, rev: str, path: str = "") -> Answer:
    """Files and folders below a path."""
    files = _repo(hub, request, t, id).commit(rev).files
    prefix = path.rstrip("/") + "/" if path else ""
    inside = {name: blob for name, blob in files.items() if name.startswith(prefix)}
    if path and not inside:
        raise HubRefusal(404, f"{path} does not exist", "EntryNotFound")
    recursive, entries, folders = request.query.get("recursive", "").lower() == "true", [], {}
    for name, blob in inside.items():
        parts = name[len(prefix) :].split("/")
        for depth in range(1, len(parts) if recursive else min(len(parts), 2)):
            folders[prefix + "/".join(parts[:depth])] = {"type": "directory", "oid": "0" * 40, "size": 0}
        if recursive or len(parts) == 1:
            entries.append(_tree_entry(name, blob))
    return Answer.json([*entries, *({"path": name, **facts} for name, facts in folders.items())])


def _tree_entry(name: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": blob.size, "oid": blob.git_oid}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": blob.size, "pointerSize": 134}
    return entry | ({"xetHash": blob.xet} if blob.xet else {})


@route("POST", _REPO + "/paths-info/(?P<rev>[^/]+)")
def paths_info(hub: Any, request: Request, t: str, id: str, rev: str) -> Answer:
    """Entries of named paths."""
    files = _repo(hub, request, t, id).commit(rev).files
    wanted = parse_qs(request.body.decode()).get("paths", [])
    return Answer.json([_tree_entry(name, files[name]) for name in wanted if name in files])


@route("GET", _REPO + "/refs")
def refs(hub: Any, request: Request, t: str, id: str) -> Answer:
    """Branches and tags."""
    repo = _repo(hub, request, t, id)
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": commits[-1].oid}
        for name, commits in repo.branches.items()
    ]
    tags = [{"name": n, "ref": f"refs/tags/{n}", "targetCommit": c.oid} for n, c in repo.tags.items()]
    return Answer.json({"branches": branches, "converts": [], "tags": tags, "pullRequests": []})


@route("GET", _REPO + "/commits/(?P<rev>[^/]+)")
def commits(hub: Any, request: Request, t: str, id: str, rev: str) -> Answer:
    """History of a branch, newest first."""
    repo = _repo(hub, request, t, id)
    if rev not in repo.branches:
        raise HubRefusal(404, f"Invalid rev id: {rev}", "RevisionNotFound")
    return Answer.json(
        [
            {"id": c.oid, "title": c.title, "message": c.message, "date": c.date, "authors": [{"user": c.author}]}
            for c in reversed(repo.branches[rev])
        ]
    )


@route("GET", _REPO + "/auth-check(?P<write>/write)?")
def auth_check(hub: Any, request: Request, t: str, id: str, write: str = "") -> Answer:
    """Whether the user may read (or write)."""
    _repo(hub, request, t, id, write=bool(write))
    return Answer.json({})


@route("POST DELETE", _REPO + "/branch/(?P<name>[^/]+)")
def branch(hub: Any, request: Request, t: str, id: str, name: str) -> Answer:
    """Make or remove a branch."""
    repo = _repo(hub, request, t, id, write=True)
    if request.method == "DELETE":
        repo.branches.pop(name, None)
        return Answer.json({})
    if name in repo.branches:
        raise HubRefusal(409, "Reference already exists")
    repo.branches[name] = [repo.commit(request.json().get("startingPoint") or "main")]
    return Answer.json({})


@route("POST", _REPO + "/tag/(?P<rev>[^/]+)")
def tag(hub: Any, request: Request, t: str, id: str, rev: str) -> Answer:
    """Name a commit."""
    repo = _repo(hub, request, t, id, write=True)
    if request.json()["tag"] in repo.tags:
        raise HubRefusal(409, "Tag reference exists already")
    repo.tags[request.json()["tag"]] = repo.commit(rev)
    return Answer.json({})


# -- commits and uploads ----------------------------------------------------------------------------------------------


@route("POST", _REPO + "/preupload/(?P<rev>[^/]+)")
def preupload(hub: Any, request: Request, t: str, id: str, rev: str) -> Answer:
    """How each file is to be uploaded, and what is there already."""
    repo = _repo(hub, request, t, id, write=True)
    present, files = repo.commit(rev).files, request.json()["files"]
    if len(files) > 256:
        raise HubRefusal(413, "At most 256 files a call")
    answers = []
    for file in files:
        sample = base64.b64decode(file.get("sample") or "")
        mode = hub.store.upload_mode(repo, file["path"], file["size"], sample)
        answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
        if blob := present.get(file["path"]):
            answer["oid"] = blob.sha256 if blob.lfs else blob.git_oid
        answers.append(answer)
    return Answer.json({"files": answers})


@route("POST", _REPO + "/commit/(?P<rev>[^/]+)")
def commit(hub: Any, request: Request, t: str, id: str, rev: str) -> Answer:
    """All operations of a commit, or none."""
    repo = _repo(hub, request, t, id, write=True)
    lines = [json.loads(line) for line in request.body.splitlines() if line.strip()]
    if not lines or lines[0].get("key") != "header":
        raise HubRefusal(400, "A commit starts with its header")
    for line in lines[1:]:
        if line["key"] == "file":
            line["value"]["content"] = base64.b64decode(line["value"]["content"])
    if hub.xet:
        hub.store.xet_hashes |= read_shards(hub.xet_folder)
    made = hub.store.commit(repo, rev, lines, _user(hub, request)["name"])
    url = f"{repo_url(hub.endpoint, repo.type, repo.id)}/commit/{made.oid}"
    return Answer.json({"success": True, "commitOid": made.oid, "commitUrl": url, "hookOutput": ""})


@route("POST", _FILES + r"\.git/info/lfs/objects/batch")
def lfs_batch(hub: Any, request: Request, id: str, t: str | None = None) -> Answer:
    """Where large files are to be put."""
    _repo(hub, request, t, id, write=True)
    objects = []
    for item in request.json()["objects"]:
        facts = {"oid": item["oid"], "size": item["size"]}
        if item["oid"] not in hub.store.objects:
            upload = {"href": f"{hub.cdn}/_storage/{item['oid']}", "header": {}}
            if item["size"] > 4 * 2**20:
                upload = _multipart(hub, item)
            verify = {"href": f"{hub.endpoint}/_verify/{item['oid']}"}
            facts["actions"] = {"upload": upload, "verify": verify}
        objects.append(facts)
    return Answer.json({"transfer": "basic", "objects": objects})


def _multipart(hub: Any, item: dict[str, Any]) -> dict[str, Any]:
    chunk = 2**20
    parts = -(-item["size"] // chunk)
    header = {f"{n:05}": f"{hub.cdn}/_storage/{item['oid']}/{n}" for n in range(1, parts + 1)}
    return {"href": f"{hub.cdn}/_complete/{item['oid']}", "header": {"chunk_size": str(chunk), **header}}


@route("PUT", "/_storage/(?P<oid>[0-9a-f]+)(?:/(?P<part>[0-9]+))?")
def put_object(hub: Any, request: Request, oid: str, part: str | None = None) -> Answer:
    """A large file, or a part of it."""
    if part is not None:
        hub.uploads.setdefault(oid, {})[int(part)] = request.body
    elif hashlib.sha256(request.body).hexdigest() != oid:
        raise HubRefusal(400, "The content is not what its name says")
    else:
        hub.store.objects[oid] = request.body
    return Answer(200, b"", {"ETag": f'"{hashlib.md5(request.body).hexdigest()}"'})


@route("POST", "/_complete/(?P<oid>[0-9a-f]+)")
def complete(hub: Any, request: Request, oid: str) -> Answer:
    """All parts are there."""
    parts = hub.uploads.pop(oid, {})
    data = b"".join(parts[number] for number in sorted(parts))
    if hashlib.sha256(data).hexdigest() != oid or len(request.json()["parts"]) != len(parts):
        raise HubRefusal(400, "The parts do not make the file")
    hub.store.objects[oid] = data
    return Answer.json({})


@route("POST", "/_verify/(?P<oid>[0-9a-f]+)")
def verify(hub: Any, request: Request, oid: str) -> Answer:
    """Whether a large file has arrived."""
    data = hub.store.objects.get(oid)
    if data is None or len(data) != request.json()["size"]:
        raise HubRefusal(404, "The object is not there")
    return Answer.json({})


@route("GET", _REPO + "/xet-(?P<mode>read|write)-token/(?P<rev>[^/]+)")
def xet_token(hub: Any, request: Request, t: str, id: str, mode: str, rev: str) -> Answer:
    """The way to Xet storage: a folder of this machine."""
    _repo(hub, request, t, id, write=mode == "write")
    if not hub.xet:
        raise HubRefusal(404, "Xet is not enabled for this repository")
    url, expiry = f"local://{hub.xet_folder}", 9_999_999_999
    answer = Answer.json({"casUrl": url, "accessToken": "xet", "exp": expiry})
    answer.headers |= {"X-Xet-Cas-Url": url, "X-Xet-Access-Token": "xet", "X-Xet-Token-Expiration": str(expiry)}
    return answer


# -- downloads --------------------------------------------------------------------------------------------------------


def _bytes(hub: Any, blob: Blob) -> bytes:
    return blob.data if blob.data is not None else read_file(hub.xet_folder, blob.xet, blob.size)


@route("HEAD GET", _FILES + "/resolve/(?P<rev>[^/]+)/(?P<path>.+)")
def resolve(hub: Any, request: Request, id: str, rev: str, path: str, t: str | None = None) -> Answer:
    """A file: at once, or where large files are."""
    repo = _repo(hub, request, t, id)
    commit = repo.commit(rev)
    blob = commit.files.get(path)
    if blob is None:
        raise HubRefusal(404, "Entry not found", "EntryNotFound", headers={"X-Repo-Commit": commit.oid})
    headers = {"X-Repo-Commit": commit.oid, "Accept-Ranges": "bytes", "ETag": f'"{blob.git_oid}"'}
    if not blob.lfs:
        return Answer(200, b"" if request.method == "HEAD" else _bytes(hub, blob), headers | _length(blob))
    headers |= {"X-Linked-Size": str(blob.size), "X-Linked-Etag": f'"{blob.sha256}"'}
    headers["Location"] = f"{hub.cdn}/_storage/{blob.sha256}"
    if blob.xet:
        hub.store.xet_hashes[blob.sha256] = (blob.xet, blob.size)
        token = f"{hub.endpoint}/api/{repo.type}s/{repo.id}/xet-read-token/{commit.oid}"
        headers |= {"X-Xet-Hash": blob.xet, "Link": f'<{token}>; rel="xet-auth"'}
    return Answer(302, b"", headers)


def _length(blob: Blob) -> dict[str, str]:
    return {"Content-Length": str(blob.size)}


@route("HEAD GET", "/_storage/(?P<oid>[0-9a-f]+)")
def get_object(hub: Any, request: Request, oid: str) -> Answer:
    """A large file, from the storage's own origin."""
    if oid in hub.store.objects:
        data = hub.store.objects[oid]
    elif oid in hub.store.xet_hashes:
        data = read_file(hub.xet_folder, *hub.store.xet_hashes[oid])
    else:
        raise HubRefusal(404, "No such object")
    return Answer(200, data, {"ETag": f'"{oid}"', "Content-Length": str(len(data))})


# -- collections ------------------------------------------------------------------------------------------------------


def _collection(hub: Any, request: Request, slug: str, write: bool = False) -> dict[str, Any]:
    user, found = _user(hub, request), hub.store.collections.get(slug)
    mine = user is not None and found is not None and found["owner"] in (user["name"], *user["orgs"])
    if found is None or (found["private"] and not mine):
        raise HubRefusal(404, "Collection not found")
    if write:
        hub.store.check_write(user, found["owner"])
    return found


def _shown(collection: dict[str, Any]) -> dict[str, Any]:
    owner = {"name": collection["owner"], "type": "user"}
    items = [{**item, "position": number} for number, item in enumerate(collection["items"])]
    return {**collection, "owner": owner, "items": items, "position": 0}


@route("POST", "/api/collections")
def create_collection(hub: Any, request: Request) -> Answer:
    """A new collection."""
    body, user = request.json(), _user(hub, request)
    hub.store.check_write(user, body["namespace"])
    _check_texts(body)
    for collection in hub.store.collections.values():
        if (collection["owner"], collection["title"]) == (body["namespace"], body["title"]):
            raise HubRefusal(409, "This collection exists already", slug=collection["slug"])
    words = re.sub(r"[^a-z0-9]+", "-", body["title"].lower()).strip("-")
    slug = f"{body['namespace']}/{words}-{hub.store.unique()[:24]}"
    collection = {"slug": slug, "title": body["title"], "owner": body["namespace"], "items": []}
    collection |= {"private": bool(body.get("private")), "theme": "orange", "upvotes": 0, "lastUpdated": now()}
    collection |= {"description": body["description"]} if body.get("description") else {}
    hub.store.collections[slug] = collection
    return Answer.json(_shown(collection))


def _check_texts(body: dict[str, Any]) -> None:
    if not 0 < len(body.get("title", "x")) < 60:
        raise HubRefusal(400, "A title has 1 to 59 characters")
    if len(body.get("description") or "") > 150:
        raise HubRefusal(400, "A description has at most 150 characters")
    if len(body.get("note") or "") > 500:
        raise HubRefusal(400, "A note has at most 500 characters")


@route("GET", "/api/collections")
def list_collections(hub: Any, request: Request) -> Answer:
    """Collections of an owner; the list leaves `position` out."""
    user, found = _user(hub, request), []
    for collection in hub.store.collections.values():
        mine = user is not None and collection["owner"] in (user["name"], *user["orgs"])
        if request.query.get("owner", collection["owner"]) == collection["owner"] and (
            mine or not collection["private"]
        ):
            shown = _shown(collection)
            del shown["position"]
            found.append({**shown, "items": shown["items"][:4]})
    return Answer.json(found)


_SLUG = "/api/collections/(?P<slug>[^/]+/[^/]+)"


@route("GET PATCH DELETE", _SLUG)
def one_collection(hub: Any, request: Request, slug: str) -> Answer:
    """Read, change or remove a collection."""
    collection = _collection(hub, request, slug, write=request.method != "GET")
    if request.method == "DELETE":
        del hub.store.collections[slug]
        return Answer.json({})
    if request.method == "PATCH":
        changes = request.json()
        _check_texts(changes)
        collection |= {k: v for k, v in changes.items() if k in ("title", "description", "private", "theme")}
        return Answer.json({"data": _shown(collection)})
    return Answer.json(_shown(collection))


@route("POST", _SLUG + "/items")
def add_item(hub: Any, request: Request, slug: str) -> Answer:
    """One more item; it must exist."""
    collection, body = _collection(hub, request, slug, write=True), request.json()
    _check_texts(body)
    item = body["item"]
    if item["type"] in _TYPES.values():
        hub.store.repo(item["type"], item["id"], _user(hub, request))
    if any((i["type"], i["id"]) == (item["type"], item["id"]) for i in collection["items"]):
        raise HubRefusal(409, "This item is in the collection already")
    note = {"note": {"text": body["note"], "html": ""}} if body.get("note") else {}
    collection["items"].append({"_id": hub.store.unique()[:24], **item, **note})
    return Answer.json(_shown(collection))


@route("PATCH DELETE", _SLUG + "/items/(?P<item>[^/]+)")
def change_item(hub: Any, request: Request, slug: str, item: str) -> Answer:
    """Another note, or one item less."""
    collection = _collection(hub, request, slug, write=True)
    found = [i for i in collection["items"] if i["_id"] == item]
    if not found:
        raise HubRefusal(404, "Item not found")
    if request.method == "DELETE":
        collection["items"].remove(found[0])
    elif "note" in request.json():
        found[0]["note"] = {"text": request.json()["note"], "html": ""}
    return Answer.json({})


# -- Spaces -----------------------------------------------------------------------------------------------------------


def _runtime(repo: Repo) -> dict[str, Any]:
    hardware = {"current": None, "requested": repo.hardware}
    return {"stage": "RUNNING", "hardware": hardware, "gcTimeout": 172800, "storage": None}


@route("GET POST DELETE", "/api/spaces/(?P<id>[^/]+/[^/]+)/(?P<kind>secrets|variables)")
def space_settings(hub: Any, request: Request, id: str, kind: str) -> Answer:
    """Secrets are never read back; variables are."""
    repo = _repo(hub, request, "spaces", id, write=True)
    body = request.json() if request.method != "GET" else {}
    if request.method == "POST" and kind == "secrets":
        repo.secrets[body["key"]] = body["value"]
    elif request.method == "POST":
        repo.variables[body["key"]] = {"key": body["key"], "value": body["value"], "updatedAt": now()}
    elif request.method == "DELETE":
        (repo.secrets if kind == "secrets" else repo.variables).pop(body["key"], None)
    if kind == "secrets":
        return Answer.json({key: {"key": key, "updatedAt": now()} for key in repo.secrets})
    return Answer.json(repo.variables)


@route("GET POST", "/api/spaces/(?P<id>[^/]+/[^/]+)/(?P<kind>runtime|hardware|sleeptime|pause|restart)")
def space_runtime(hub: Any, request: Request, id: str, kind: str) -> Answer:
    """State of a Space, and its hardware."""
    repo = _repo(hub, request, "spaces", id, write=request.method == "POST")
    if kind == "hardware" and request.method == "POST":
        if request.json()["flavor"] != "zero-a10g" and not hub.store.user(request.token).get("pro"):
            raise HubRefusal(402, "Payment required for this hardware")
        repo.hardware = request.json()["flavor"]
    return Answer.json(_runtime(repo))
