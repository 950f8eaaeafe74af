"""A small in-memory stand-in for the Hugging Face Hub, to push models to and load them from in tests."""

import base64
import hashlib
import json
import re
import secrets
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

REPO = r"/api/models/(?P<repo_id>[^/]+/[^/]+)"
# Each path is answered by the method of `_Handler` named last; a HEAD request is answered as GET, without the body.
ROUTES = [
    ("GET", r"/api/whoami-v2", "whoami"),
    ("POST", r"/api/validate-yaml", "validate_yaml"),
    ("POST", r"/api/repos/create", "create_repo"),
    ("GET", REPO, "model_info"),
    ("GET", REPO + r"/revision/(?P<revision>[^/]+)", "model_info"),
    ("GET", REPO + r"/auth-check/write", "auth_check"),
    ("POST", REPO + r"/branch/(?P<branch>[^/]+)", "create_branch"),
    ("GET", REPO + r"/tree/(?P<revision>[^/]+)(?:/(?P<path>.+))?", "tree"),
    ("POST", REPO + r"/preupload/(?P<revision>[^/]+)", "preupload"),
    ("POST", REPO + r"/commit/(?P<revision>[^/]+)", "commit"),
    ("POST", r"/(?P<repo_id>[^/]+/[^/]+)\.git/info/lfs/objects/batch", "lfs_batch"),
    ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
    ("GET", r"/(?P<repo_id>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<path>.+)", "resolve"),
]
GIT_ATTRIBUTES = b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n"


@dataclass(frozen=True)
class Commit:
    oid: str
    message: str
    files: dict[str, bytes]


class Repo:
    """The commits of every branch."""

    def __init__(self, private: bool):
        self.private = private
        # The Hub, too, starts a repository with a commit of its own.
        self.branches = {"main": [Commit(secrets.token_hex(20), "initial commit", {".gitattributes": GIT_ATTRIBUTES})]}

    def at(self, revision: str) -> Commit:
        if revision in self.branches:
            return self.branches[revision][-1]
        for commits in self.branches.values():
            for commit in commits:
                if commit.oid == revision:
                    return commit
        raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")


class HubError(Exception):
    def __init__(self, status: int, code: str, message: str, headers: dict | None = None, **content):
        super().__init__(message)
        self.status = status
        self.headers = {"X-Error-Code": code, "X-Error-Message": message, **(headers or {})}
        self.content = {"error": message, **content}


def _blob_id(content: bytes) -> str:
    # git's own id of the content: the client compares it with its local file to leave unchanged files out of a commit.
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _card_value(files: dict[str, bytes], key: str) -> str | None:
    """Read a plain `key: value` line of the metadata at the top of the model card."""
    card = files.get("README.md", b"").decode().split("\n---", 1)[0]
    found = re.search(rf"^{key}: *(\S+)", card, re.MULTILINE)
    return found and found[1]


def _changed(files: dict[str, bytes], operations: list[dict], lfs: dict[str, bytes]) -> dict[str, bytes]:
    """Apply the operations of a commit to a copy of the files."""
    files = dict(files)
    for operation in operations:
        kind, value = operation["key"], operation["value"]
        if kind == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif kind == "lfsFile":
            files[value["path"]] = lfs[value["oid"]]
        elif kind == "deletedFile":
            files.pop(value["path"], None)
        elif kind == "deletedFolder":
            folder = value["path"].rstrip("/") + "/"
            files = {path: content for path, content in files.items() if not path.startswith(folder)}
        else:
            raise HubError(400, "BadRequest", f"Unsupported operation in a commit: {kind}")
    return files


class _Handler(BaseHTTPRequestHandler):
    hub: "HubServer"
    route: str | None = None

    def answer(self):
        # The body has to be read before anything is answered: the client would see a broken connection otherwise.
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            with self.hub.lock:
                status, content, headers = 200, *self.dispatch()
        except HubError as error:
            status, content, headers = error.status, error.content, error.headers
        self.hub.requests.append(f"{self.command} {self.path} {status}")
        if self.hub.loses is not None and self.route == self.hub.loses:
            return
        if not isinstance(content, bytes):
            content, headers = json.dumps(content).encode(), {"Content-Type": "application/json", **headers}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def log_message(self, *args):
        """Keep the output of the tests quiet: `HubServer.requests` has the log."""

    def dispatch(self) -> tuple[object, dict[str, str]]:
        method = "GET" if self.command == "HEAD" else self.command
        for route_method, pattern, name in ROUTES:
            found = re.fullmatch(pattern, urlsplit(self.path).path)
            if found and method == route_method:
                # Not of a PUT: the address of an upload is signed instead.
                if method == "POST" and name != "validate_yaml":
                    self.require_token()
                self.route = name
                if name in self.hub.broken:
                    raise HubError(self.hub.broken[name], "Broken", f"{name} is broken")
                arguments = {key: unquote(value) for key, value in found.groupdict().items() if value is not None}
                answer = getattr(self, name)(**arguments)
                return answer if isinstance(answer, tuple) else (answer, {})
        raise HubError(404, "NotFound", f"The stand-in does not answer {self.command} {self.path}")

    def require_token(self):
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if given and self.hub.tokens is not None and given not in self.hub.tokens:
            raise HubError(401, "InvalidToken", "Invalid credentials in Authorization header")
        if not given:
            # The Hub says the same about a private and about a missing repository, so as not to tell which it is.
            raise HubError(401, "RepoNotFound", "Invalid username or password.")

    def repo(self, repo_id: str) -> Repo:
        repo = self.hub.repos.get(repo_id)
        if repo is None or repo.private:
            self.require_token()
        if repo is None:
            raise HubError(404, "RepoNotFound", "Repository not found")
        return repo

    def whoami(self):
        self.require_token()
        return {"type": "user", "name": self.hub.user, "orgs": [], "auth": {"type": "access_token"}}

    def validate_yaml(self):
        has_metadata = json.loads(self.body)["content"].startswith("---")
        warnings = [] if has_metadata else [{"message": "empty or missing yaml metadata in repo card"}]
        return {"errors": [], "warnings": warnings}

    def create_repo(self):
        request = json.loads(self.body)
        repo_id = f"{request.get('organization') or self.hub.user}/{request['name']}"
        if request.get("type") not in (None, "model"):
            raise HubError(400, "BadRequest", "The stand-in has model repositories only")
        if not repo_id.startswith(f"{self.hub.user}/"):
            raise HubError(403, "Forbidden", f"You don't have the rights to create a model as {repo_id}")
        if repo_id in self.hub.repos:
            raise HubError(409, "Conflict", "You already created this model repo", url=f"{self.hub.url}/{repo_id}")
        private = request.get("private") is True or request.get("visibility") == "private"
        self.hub.repos[repo_id] = Repo(private)
        return {"url": f"{self.hub.url}/{repo_id}", "name": repo_id}

    def model_info(self, repo_id: str, revision: str = "main"):
        repo = self.repo(repo_id)
        commit = repo.at(revision)
        card = {key: _card_value(commit.files, key) for key in ("license", "pipeline_tag", "library_name")}
        return {
            "id": repo_id,
            "sha": commit.oid,
            "private": repo.private,
            "tags": [f"license:{card['license']}"] if card["license"] else [],
            "pipeline_tag": card["pipeline_tag"],
            "library_name": card["library_name"],
            "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        }

    def tree(self, repo_id: str, revision: str, path: str = ""):
        files = self.repo(repo_id).at(revision).files
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = path.rstrip("/") + "/" if path else ""
        entries = {}
        for name in sorted(name for name in files if name.startswith(prefix)):
            for folder in [str(folder) for folder in PurePosixPath(name).parents if str(folder).startswith(prefix)]:
                entries[folder] = {"type": "directory", "path": folder, "oid": _blob_id(folder.encode()), "size": 0}
            entries[name] = {"type": "file", "path": name, "oid": _blob_id(files[name]), "size": len(files[name])}
        if path and not entries:
            raise HubError(404, "EntryNotFound", f"{path} does not exist on {revision}")
        entries.pop(".", None)
        return [entry for name, entry in sorted(entries.items()) if recursive or "/" not in name.removeprefix(prefix)]

    def auth_check(self, repo_id: str):
        self.repo(repo_id)
        self.require_token()
        if not repo_id.startswith(f"{self.hub.user}/"):
            raise HubError(403, "Forbidden", f"You cannot write to {repo_id}")
        return {}

    def create_branch(self, repo_id: str, branch: str):
        branches = self.repo(repo_id).branches
        if branch in branches:
            raise HubError(409, "Conflict", "This reference already exists")
        branches[branch] = [branches["main"][-1]]
        return {}

    def lfs_batch(self, repo_id: str):
        self.repo(repo_id)
        objects = [{"oid": item["oid"], "size": item["size"]} for item in json.loads(self.body)["objects"]]
        for item in objects:
            if item["oid"] not in self.hub.lfs:
                item["actions"] = {"upload": {"href": f"{self.hub.url}/lfs/{item['oid']}"}}
        return {"transfer": "basic", "objects": objects}

    def lfs_put(self, oid: str):
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise HubError(400, "BadRequest", "The content is not what was announced")
        self.hub.lfs[oid] = self.body
        return {}

    def preupload(self, repo_id: str, revision: str):
        files = self.repo(repo_id).at(revision).files
        paths = [file["path"] for file in json.loads(self.body)["files"]]
        # Without `takes_lfs` all files come with the commit.
        large = {path for path in paths if self.hub.takes_lfs and path.endswith(".safetensors")}
        known = {
            path: hashlib.sha256(files[path]).hexdigest() if path in large else _blob_id(files[path])
            for path in paths
            if path in files
        }
        return {
            "files": [
                {
                    "path": path,
                    "oid": known.get(path),
                    "uploadMode": "lfs" if path in large else "regular",
                    "shouldIgnore": False,
                }
                for path in paths
            ]
        }

    def commit(self, repo_id: str, revision: str):
        repo = self.repo(repo_id)
        if revision not in repo.branches:
            raise HubError(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        header, *operations = [json.loads(line) for line in self.body.splitlines()]
        files = _changed(repo.at(revision).files, operations, self.hub.lfs)
        commit = Commit(secrets.token_hex(20), header["value"]["summary"], files)
        repo.branches[revision].append(commit)
        url = f"{self.hub.url}/{repo_id}/commit/{commit.oid}"
        return {"success": True, "commitOid": commit.oid, "commitUrl": url, "hookOutput": ""}

    def resolve(self, repo_id: str, revision: str, path: str):
        commit = self.repo(repo_id).at(revision)
        # The client needs the commit of a missing file, too: that is how it remembers that there is none.
        headers = {"X-Repo-Commit": commit.oid}
        if path not in commit.files:
            raise HubError(404, "EntryNotFound", "Entry not found", headers)
        content = commit.files[path]
        return content, {**headers, "ETag": f'"{_blob_id(content)}"', "Content-Type": "application/octet-stream"}


class HubServer:
    """
    Serves model repositories on a free local port for as long as the `with` block lasts.

    To be set while it runs: `broken`, the status with which a request fails, by the name that `ROUTES` has for it;
    `tokens`, those that are taken (None: all); `takes_lfs`, whether weights are uploaded apart from their commit;
    `loses`, the name of a request that is done and whose answer is lost.
    """

    def __init__(self, user: str = "user"):
        self.user = user
        self.broken: dict[str, int] = {}
        self.tokens: set[str] | None = None
        self.takes_lfs = False
        self.loses: str | None = None
        self.lfs: dict[str, bytes] = {}
        self.repos: dict[str, Repo] = {}
        self.requests: list[str] = []  # "METHOD path status", for when a test fails
        self.lock = threading.Lock()

    def __enter__(self) -> "HubServer":
        # HTTP 1.0, the default, keeps no connection open: none is still answered once the server has stopped.
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *exception):
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()

    def environment(self, home: str | Path, token: str = "hf_local") -> dict[str, str]:
        """Variables to add to those of a subprocess, to be set before it imports; an empty token means anonymous."""
        home = Path(home)
        return {
            "HF_ENDPOINT": self.url,
            "HF_TOKEN": token,
            "HUGGING_FACE_HUB_TOKEN": token,
            "HF_HOME": str(home),
            # These would win over HF_HOME if the environment of the tests had them.
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_MODULES_CACHE": str(home / "modules"),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_HUB_OFFLINE": "0",
            "TRANSFORMERS_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        """The files of a branch's latest commit."""
        return dict(self.repos[repo_id].at(revision).files)

    def commits(self, repo_id: str, revision: str = "main") -> list[Commit]:
        """The commits of a branch, oldest first."""
        return list(self.repos[repo_id].branches[revision])
