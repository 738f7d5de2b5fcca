"""A Hugging Face hub on this machine: repositories, branches and commits in memory, by the real hub's addresses."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class Hub:
    """What it holds, and what it was asked."""

    def __init__(self):
        self.commits = {}  # by repository and commit: files
        self.branches = {}  # by repository and branch: commit
        self.created = []  # what create_repo was told
        self.requests = []

    def find(self, repository, revision):
        commit = self.branches.get((repository, revision), revision)
        return commit, self.commits.get((repository, commit))

    def commit(self, repository, branch, files):
        before = self.find(repository, branch)[1] or {}
        content = {**before, **files}
        commit = hashlib.sha1(repr(sorted(content.items())).encode()).hexdigest()
        self.commits[repository, commit] = content
        self.branches[repository, branch] = commit
        return commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *_):
        pass

    def answer(self, content, status=200, **headers):
        body = content if isinstance(content, bytes) else json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.hub.requests.append(f"POST {'/'.join(parts)}")
        if parts == ["api", "repos", "create"]:
            asked = json.loads(body)
            self.hub.created.append(asked)
            name = f"{asked['organization']}/{asked['name']}"
            if asked["organization"] == "others":
                return self.answer({"error": "You don't have the rights"}, 403)
            self.hub.commit(name, "main", {".gitattributes": b"*.safetensors filter=lfs\n"})
            return self.answer({"url": f"http://{self.headers['Host']}/{name}", "name": name})
        if parts == ["api", "validate-yaml"]:
            return self.answer({"errors": [], "warnings": []})
        repository, action, revision = "/".join(parts[2:4]), parts[4], parts[5]
        if action == "branch":
            self.hub.branches[repository, revision] = self.hub.branches[repository, "main"]
            return self.answer({})
        if action == "preupload":
            files = json.loads(body)["files"]
            said = [{"path": file["path"], "uploadMode": "regular", "shouldIgnore": False} for file in files]
            return self.answer({"files": said})
        assert action == "commit"
        lines = [json.loads(line) for line in body.decode().splitlines()]
        values = [line["value"] for line in lines if line["key"] == "file"]
        commit = self.hub.commit(repository, revision, {v["path"]: base64.b64decode(v["content"]) for v in values})
        url = f"http://{self.headers['Host']}/{repository}/commit/{commit}"
        return self.answer({"commitUrl": url, "commitOid": commit, "success": True})

    def do_GET(self):
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        self.hub.requests.append(f"{self.command} {'/'.join(parts)}")
        if parts[:2] == ["api", "models"]:
            repository, revision = "/".join(parts[2:4]), parts[5] if len(parts) > 5 else "main"
            commit, files = self.hub.find(repository, revision)
            if files is None:
                return self.missing(repository)
            if parts[4:5] == ["tree"]:
                listed = [{"type": "file", "path": p, "size": len(c), "oid": _oid(c)} for p, c in files.items()]
                return self.answer(listed)
            about = {"id": repository, "modelId": repository, "sha": commit, "private": False, "tags": []}
            return self.answer({**about, "siblings": [{"rfilename": path} for path in files]})
        if parts[2:3] != ["resolve"]:  # diffusers tells who uses it
            return self.answer({}, 404)
        repository, revision, path = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
        commit, files = self.hub.find(repository, revision)
        if files is None or path not in files:
            return self.missing(repository, X_Repo_Commit=commit)
        return self.answer(files[path], X_Repo_Commit=commit, ETag=f'"{_oid(files[path])}"')

    do_HEAD = do_GET

    def missing(self, repository, **headers):
        known = any(name == repository for name, _ in self.hub.branches)
        code = "RepoNotFound" if not known else "EntryNotFound" if headers else "RevisionNotFound"
        return self.answer({"error": code}, 404, X_Error_Code=code, **headers)


def _oid(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


@contextmanager
def running():
    """A hub and its address."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub, f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
