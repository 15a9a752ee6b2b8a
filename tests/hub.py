"""A model hub on the loopback: as much of the Hugging Face hub's HTTP interface as its client uses.

A repository is its commits, each a mapping of names to contents. Files that the real hub keeps as
large ones (by their suffix) come through Git LFS, in three requests, the others with the commit.
"""

import base64
import contextlib
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

TOKEN, READ_ONLY = "hf_secretSecretSecretSecret", "hf_readReadReadReadRead"
LARGE = (".npz", ".safetensors")


class Hub(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, dict[str, bytes]]] = {}  # by "models/a/b", sha, name
        self.large: dict[str, bytes] = {}
        self.requests: list[str] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def files(self, where: str) -> dict[str, bytes]:
        """What the last commit of a repository holds."""
        return list(self.repositories[where].values())[-1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_):
        pass

    def say(self, status, body=b"", **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        headers.setdefault("Content_Length", str(len(data)))
        headers.setdefault("Content_Type", "application/json")
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, status, says, code=""):
        self.say(status, {"error": says}, X_Error_Message=says, X_Error_Code=code)

    def received(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length") or 0))
            return
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def answer(self):
        path = unquote(urlsplit(self.path).path)
        self.body = b"".join(self.received())
        self.server.requests.append(f"{self.command} {path}")
        self.token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if path.startswith("/large/"):  # signed, as S3's are
            self.server.large[path.removeprefix("/large/")] = self.body
            return self.say(200)
        if self.token not in ("", TOKEN, READ_ONLY):
            # It repeats what it was given, which must not reach the user.
            says = "Invalid credentials in Authorization header"
            return self.say(401, {"error": f"{says}: {self.token}"}, X_Error_Message=says)
        writes = self.command != "GET" and self.command != "HEAD"
        if writes and self.token != TOKEN and path != "/api/validate-yaml":
            return self.refuse(403, f"Forbidden for {self.token}")
        for pattern, method in ROUTES:
            if found := re.fullmatch(pattern, f"{self.command} {path}"):
                return method(self, **found.groupdict())
        return self.refuse(404, f"no {path}", "EntryNotFound")

    do_GET = do_HEAD = do_POST = do_PUT = answer

    def whoami(self):
        if not self.token:
            return self.refuse(401, "Invalid username or password.")
        return self.say(200, {"type": "user", "name": "ann", "auth": {"type": "access_token"}})

    def create(self):
        given = json.loads(self.body)
        kind, owner = given.get("type") or "model", given.get("organization") or "ann"
        where = f"{kind}s/{owner}/{given['name']}"
        prefix = "" if kind == "model" else f"{kind}s/"
        told = {"url": f"{self.server.url}/{prefix}{owner}/{given['name']}"}
        if where in self.server.repositories:
            return self.say(409, told | {"error": "You already created this repo"})
        self.server.repositories[where] = {_sha({}): {}}
        return self.say(200, told)

    def commit_of(self, where, revision):
        """The sha of a revision, or None once the request is answered with what is missing."""
        commits = self.server.repositories.get(where)
        if commits is None:
            self.refuse(404 if self.token else 401, "Repository not found", "RepoNotFound")
        elif revision not in ("main", *commits):
            self.refuse(404, "Invalid rev id", "RevisionNotFound")
        else:
            return list(commits)[-1] if revision == "main" else revision
        return None

    def info(self, where, revision):
        if sha := self.commit_of(where, revision):
            name = where.partition("/")[2]
            self.say(200, {"id": name, "sha": sha, "siblings": [], "private": False, "tags": []})

    def tree(self, where, revision):
        if sha := self.commit_of(where, revision):
            files = self.server.repositories[where][sha]
            entries = []
            for name, data in files.items():
                entry = {"type": "file", "path": name, "size": len(data), "oid": _sha(data)}
                if name.endswith(LARGE):
                    digest = hashlib.sha256(data).hexdigest()
                    entry["lfs"] = {"oid": digest, "size": len(data), "pointerSize": 130}
                entries.append(entry)
            self.say(200, entries)

    def resolve(self, where, revision, name, data=""):
        where = f"{data or 'models/'}{where}"
        if (sha := self.commit_of(where, revision)) is None:
            return None
        held = self.server.repositories[where][sha].get(name)
        if held is None:
            return self.refuse(404, "Entry not found", "EntryNotFound")
        headers = {"ETag": f'"{_sha(held)}"', "X_Repo_Commit": sha, "Accept_Ranges": "bytes"}
        return self.say(200, held, Content_Type="application/octet-stream", **headers)

    def preupload(self, where, revision):
        if self.commit_of(where, revision):
            files = json.loads(self.body)["files"]
            modes = [
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if file["path"].endswith(LARGE) else "regular",
                    "shouldIgnore": False,
                }
                for file in files
            ]
            self.say(200, {"files": modes})

    def batch(self, where):
        told = [
            {**one, "actions": {"upload": {"href": f"{self.server.url}/large/{one['oid']}"}}}
            for one in json.loads(self.body)["objects"]
        ]
        self.say(200, {"transfer": "basic", "objects": told})

    def commit(self, where, revision):
        if (before := self.commit_of(where, revision)) is None:
            return
        files = dict(self.server.repositories[where][before])
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
        sha = _sha(files)
        self.server.repositories[where][sha] = files
        url = f"{self.server.url}/{where.removeprefix('models/')}/commit/{sha}"
        self.say(200, {"commitUrl": url, "commitOid": sha, "success": True})


_WHERE = "(?P<where>(?:models|datasets)/[^/]+/[^/]+)"
ROUTES = [
    ("GET /api/whoami-v2", _Handler.whoami),
    ("POST /api/repos/create", _Handler.create),
    ("POST /api/validate-yaml", lambda handler: handler.say(200, {"errors": [], "warnings": []})),
    (f"GET /api/{_WHERE}/revision/(?P<revision>[^/]+)", _Handler.info),
    (f"GET /api/{_WHERE}/tree/(?P<revision>[^/]+)", _Handler.tree),
    (f"POST /api/{_WHERE}/preupload/(?P<revision>[^/]+)", _Handler.preupload),
    (f"POST /api/{_WHERE}/commit/(?P<revision>[^/]+)", _Handler.commit),
    (r"POST /(?P<where>.+)\.git/info/lfs/objects/batch", _Handler.batch),
    (
        "(?:GET|HEAD) /(?P<data>datasets/)?(?P<where>[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/"
        "(?P<name>.+)",
        _Handler.resolve,
    ),
]


def _sha(what) -> str:
    text = what if isinstance(what, bytes) else repr(sorted(what.items())).encode()
    return hashlib.sha1(text).hexdigest()


@contextlib.contextmanager
def serving():
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, args=(0.02,), daemon=True).start()
        try:
            yield hub
        finally:
            hub.shutdown()
