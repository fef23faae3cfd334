"""A small stand-in for the Hugging Face hub on 127.0.0.1: it answers what huggingface_hub asks in up- and downloads.

    def test_it(hub):                                         # the fixture: huggingface_hub talks to it, cache is empty
        commit = hub.add("someone/model", {"config.json": b"{}"}, gated=True)
        hf_hub_download("someone/model", "config.json", revision=commit, token=TOKEN)

    with HubStandIn() as hub:                                 # the same without pytest
        hf_hub_download("someone/model", "config.json", endpoint=hub.url)

Everything stays in memory. Files are always uploaded as regular ones: the protocols by which the real hub moves large
files (LFS, Xet) are not spoken.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

import pytest

TOKEN = "hf_StandInTokenThatIsNoSecret"  # the only token that the stand-in accepts
_RESOLVE = re.compile(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)")
_API = re.compile(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|preupload|commit)/([^/]+))?")


@dataclass
class Repo:
    """commits: commit -> path -> bytes, oldest first."""

    gated: bool = False
    private: bool = False
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def commit(self, files: dict[str, bytes], name: str | None = None) -> str:
        """Make `files` the newest commit and return its name."""
        text = repr((len(self.commits), sorted(files.items()))).encode()
        name = name or hashlib.sha1(text).hexdigest()
        self.commits[name] = files
        return name

    def find(self, revision: str) -> str | None:
        """The commit that `revision` means, or None."""
        newest = next(reversed(self.commits), None)
        return newest if revision == "main" else revision if revision in self.commits else None


class HubStandIn:
    """The server and what it holds. `url` is its endpoint.

    log: every request, as "METHOD path"; received: every request's body, and every uploaded file; cut_after: when set
    to n, the connection of the next file that is downloaded breaks after n bytes; sha256: the checksums that listings
    tell, by path of the file, as the real hub does for large ones; valid: tokens with an owner; rights: what a valid token
    other than TOKEN is told when it asks for a gated repository, as (error code, message).
    """

    def __init__(self):
        self.repos: dict[str, Repo] = {}  # by "models/ID" or "datasets/ID"
        self.log: list[str] = []
        self.received: list[bytes] = []
        self.cut_after: int | None = None
        self.sha256: dict[str, str] = {}
        self.valid: set[str] = {TOKEN}
        self.rights: dict[str, tuple[str | None, str]] = {}

    def __enter__(self) -> HubStandIn:
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, repo_id: str, files: dict[str, bytes], *, repo_type: str = "model", commit: str | None = None,
            gated: bool = False, private: bool = False) -> str:
        """Add a commit of `files` (path: bytes) and return its name (40 hexadecimal digits, or `commit`)."""
        repo = self.repos.setdefault(f"{repo_type}s/{repo_id}", Repo(gated, private))
        return repo.commit(dict(files), commit)

    def files(self, repo_id: str, repo_type: str = "model") -> dict[str, bytes]:
        """The newest files of a repository."""
        repo = self.repos[f"{repo_type}s/{repo_id}"]
        return repo.commits[repo.find("main")]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A running stand-in to which huggingface_hub is pointed, with an empty cache and without a token."""
    with HubStandIn() as hub:
        home = tmp_path / "hf_home"
        for name, value in {"ENDPOINT": hub.url, "HF_HUB_CACHE": str(home / "hub"), "HF_HUB_OFFLINE": False,
                            "HUGGINGFACE_CO_URL_TEMPLATE": hub.url + "/{repo_id}/resolve/{revision}/{filename}",
                            "HF_TOKEN_PATH": str(home / "token")}.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", hub.url)  # for processes that a test starts
        monkeypatch.setenv("HF_HOME", str(home))
        yield hub


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self._serve()

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = urlsplit(self.path).path
        self.hub.log.append(f"{self.command} {path}")
        self.hub.received.append(body)
        if path == "/api/repos/create":
            self._create(json.loads(body))
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif path == "/api/whoami-v2":
            self._json({"name": "someone"}) if self._token in self.hub.valid else \
                self._fail(401, None, "Invalid user token. The token is expired or was deleted.")
        elif match := re.fullmatch("/api/(models|datasets)/([^/]+/[^/]+)/auth-check", path):
            self._auth_check(self.hub.repos["/".join(match.groups())])
        elif match := _RESOLVE.fullmatch(path):
            kind, repo_id, revision, file = match.groups()
            self._resolve(f"{kind or 'models/'}{repo_id}", unquote(revision), unquote(file))
        elif match := _API.fullmatch(path):
            kind, repo_id, action, revision = match.groups()
            self._api(f"{kind}/{repo_id}", action or "revision", unquote(revision or "main"), body)
        else:
            self._fail(404, "NotFound", "the stand-in does not know this address")

    @property
    def _token(self) -> str | None:
        return self.headers.get("Authorization", "").removeprefix("Bearer ") or None

    def _create(self, wanted: dict) -> None:
        key = f"{wanted.get('type') or 'model'}s/{wanted.get('organization') or 'someone'}/{wanted['name']}"
        if self._token != TOKEN:
            return self._fail(401, None, "Invalid username or password.")
        status = 409 if key in self.hub.repos else 200
        private = wanted.get("private") or wanted.get("visibility") == "private"
        self.hub.repos.setdefault(key, Repo(private=private))
        self._json({"url": f"{self.hub.url}/{key.removeprefix('models/')}"}, status)

    def _visible(self, key: str) -> Repo | None:
        repo = self.hub.repos.get(key)
        if repo is None or (repo.private and self._token != TOKEN):
            self._fail(404 if self._token == TOKEN else 401, "RepoNotFound", "Repository not found")
            return None
        return repo

    def _auth_check(self, repo: Repo) -> None:
        if self._token not in self.hub.valid:
            return self._fail(401, None, "Invalid credentials in Authorization header")
        if not repo.gated or self._token == TOKEN:
            return self._json({})
        self._fail(403, *self.hub.rights.get(self._token, ("GatedRepo", "you are not in the authorized list")))

    def _resolve(self, key: str, revision: str, file: str) -> None:
        if (repo := self._visible(key)) is None:
            return
        commit = repo.find(revision)
        if repo.gated and self._token != TOKEN:
            self._fail(403 if self._token else 401, "GatedRepo", f"Access to {key} is restricted.")
        elif commit is None:
            self._fail(404, "RevisionNotFound", "Invalid rev id")
        elif file not in repo.commits[commit]:
            self._fail(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
        else:
            self._file(repo.commits[commit][file], commit)

    def _file(self, content: bytes, commit: str) -> None:
        headers = {"ETag": f'"{_blob_id(content)}"', "X-Repo-Commit": commit, "X-Linked-Size": str(len(content)),
                   "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"', "Accept-Ranges": "bytes"}
        cut = None
        if self.command == "GET":
            cut, self.hub.cut_after = self.hub.cut_after, None
        span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if span is None:
            return self._answer(200, content, headers, cut)
        first, last = int(span[1]), min(int(span[2] or len(content)), len(content) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(content)}"
        self._answer(206, content[first : last + 1], headers, cut)

    def _api(self, key: str, action: str, revision: str, body: bytes) -> None:
        if (repo := self._visible(key)) is None:
            return
        if self.command == "POST" and self._token != TOKEN:
            self._fail(403, None, "You don't have the rights to write here")
        elif action == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            self._json({"files": [{"path": name, "uploadMode": "regular", "shouldIgnore": False} for name in names]})
        elif action == "commit":
            self._commit(key, repo, [json.loads(line) for line in body.splitlines()])
        elif (commit := repo.find(revision)) is None:
            self._fail(404, "RevisionNotFound", "Invalid rev id")
        elif action == "tree":
            self._json([{"type": "file", "path": name, "size": len(content), "oid": _blob_id(content)}
                        for name, content in repo.commits[commit].items()])
        else:
            self._json({"id": key.split("/", 1)[1], "sha": commit, "private": repo.private, "gated": repo.gated,
                        "siblings": [{"rfilename": name, "size": len(content), **self._lfs(name, content)}
                                     for name, content in repo.commits[commit].items()]})

    def _lfs(self, name: str, content: bytes) -> dict:
        if name not in self.hub.sha256:
            return {}
        return {"lfs": {"sha256": self.hub.sha256[name], "size": len(content), "pointerSize": 134}}

    def _commit(self, key: str, repo: Repo, operations: list[dict]) -> None:
        files = dict(repo.commits.get(repo.find("main"), {}))
        for operation in operations:
            value = operation["value"]
            if operation["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
                self.hub.received.append(files[value["path"]])
            elif operation["key"] == "deletedFile":
                files.pop(value["path"])
        name = repo.commit(files)
        self._json({"commitUrl": f"{self.hub.url}/{key.removeprefix('models/')}/commit/{name}", "commitOid": name,
                    "success": True})

    def _json(self, value: object, status: int = 200) -> None:
        self._answer(status, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _fail(self, status: int, code: str | None, message: str, headers: dict[str, str] | None = None) -> None:
        headers = {"X-Error-Message": message, **({"X-Error-Code": code} if code else {}), **(headers or {})}
        self._answer(status, json.dumps({"error": message}).encode(), headers)

    def _answer(self, status: int, content: bytes, headers: dict[str, str], cut: int | None = None) -> None:
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:cut])
            self.close_connection = self.close_connection or cut is not None


def _blob_id(content: bytes) -> str:
    """What git calls a file of this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
