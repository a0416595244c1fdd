"""A stand-in for the Hub on localhost: its endpoints, headers and redirects as the real client meets them, and its faults.

    python -m tests.hub_server FOLDER [PORT]     serves FOLDER/org/name as the model org/name, until Ctrl-C

Large files (safetensors) answer with a redirect to a storage host, as on the Hub: here the same server under the name
`localhost`, which must never see a token.
"""

from __future__ import annotations

import hashlib
import json
import re
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from fnmatch import fnmatch
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.hub_uploads import Account, UploadHandler, Uploads

TOKEN = "hf_StandInSecretThatMustNeverLeak"
CHUNK = 4096
_RESOLVE = re.compile(r"/(?P<id>(?:spaces/)?[^/]+/[^/]+)/resolve/(?P<revision>[^/]+)/(?P<name>.+)")
_INFO = re.compile(
    r"/api/(?:models/|(?=spaces/))(?P<id>(?:spaces/)?[^/]+/[^/]+)(?:/revision/(?P<revision>[^/]+))?"
)
_TREE = re.compile(r"/api/(?:models/|(?=spaces/))(?P<id>(?:spaces/)?[^/]+/[^/]+)/tree/(?P<revision>[^/]+)")


@dataclass
class Fault:
    """What goes wrong with the requests whose path matches; `times` None: always."""

    path: str
    status: int = 0
    error: str = ""
    cut: int | None = None
    """Close the connection after so many bytes of the body."""
    pause: float = 0.0
    """Seconds before the answer, and between its chunks."""
    body: bytes | None = None
    """Another body than the file's."""
    no_range: bool = False
    times: int | None = None
    headers: dict[str, str] = field(default_factory=dict)


@dataclass
class Repository:
    """A model: its commits, and which one each branch means."""

    private: bool = False
    gated: str | bool = False
    tags: tuple[str, ...] = ()
    readers: tuple[str, ...] = (TOKEN,)
    commits: dict[str, dict[str, Path]] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)
    """Of the commits that were uploaded."""
    made: dict[str, Any] = field(default_factory=dict)
    """What was asked for when the repository was made by a request."""

    def commit(self, revision: str) -> str | None:
        return revision if revision in self.commits else self.branches.get(revision)


class HubServer:
    """Serves models on 127.0.0.1; `sent` counts the bytes of every path's body, `seen` keeps all requests.

    Spaces are kept among the models under `spaces/org/name`. The token `TOKEN` is that of the account `mira`, who is in the
    organisation `atelier` and may write.
    """

    def __init__(self, port: int = 0):
        self.models: dict[str, Repository] = {}
        self.uploads = Uploads({TOKEN: Account("mira", ("atelier",))})
        self.faults: list[Fault] = []
        self.sent: Counter[str] = Counter()
        self.seen: list[tuple[str, str, str | None]] = []
        self.leaks: list[str] = []
        self._http = _Server(("127.0.0.1", port), type("Handler", (_Handler,), {"hub": self}))
        self._http.daemon_threads = True
        self.port = self._http.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self._http.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def add(self, id: str, folder: Path, branch: str = "main", **facts) -> str:
        """Make a folder's files the newest commit of a model's branch; the commit."""
        files = {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file()}
        return self.put(id, files, branch, **facts)

    def put(
        self, id: str, files: dict[str, Path], branch: str = "main", message: str | None = None, **facts
    ) -> str:
        """Make files the newest commit of a branch; the commit."""
        digest = hashlib.sha1(id.encode())
        for name, file in files.items():
            digest.update(name.encode() + file.read_bytes())
        model = self.models.setdefault(id, Repository())
        for name, value in facts.items():
            setattr(model, name, value)
        model.messages += [message] if message else []
        commit = digest.hexdigest()
        model.commits[commit] = files
        model.branches[branch] = commit
        return commit

    def fail(self, path: str, **fault) -> Fault:
        """Let requests whose path matches a glob go wrong; see `Fault`."""
        self.faults.insert(0, Fault(path, **fault))
        return self.faults[0]

    def forget(self) -> None:
        """Count and fail from nothing again."""
        self.faults.clear()
        self.sent.clear()
        self.seen.clear()
        self.uploads.received.clear()

    def bytes_of(self, pattern: str) -> int:
        """Bytes sent so far of the files whose names match."""
        return sum(count for path, count in self.sent.items() if fnmatch(path, f"*{pattern}"))

    def close(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self.uploads.keep.cleanup()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        """Who broke off, and what came when the test was over, is no fault to be told of."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(UploadHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def do_HEAD(self):
        self._answer()

    def do_GET(self):
        self._answer()

    def _begin(self, path: str) -> str | None:
        """Note a request, and choose its fault; the token it came with."""
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        self.hub.seen.append((self.command, path, token))
        if token and self.headers["Host"].startswith("localhost"):
            self.hub.leaks.append(path)
        self.fault = self._fault(path)
        time.sleep(self.fault.pause)
        return token

    def _answer(self):
        url = urlsplit(self.path)
        path = unquote(url.path)
        token = self.token = self._begin(path)
        if self.fault.status:
            return self._error(self.fault.status, self.fault.error, "made to fail", self.fault.headers)
        if token is not None and not token.startswith("hf_"):
            return self._error(401, "", "Invalid credentials in Authorization header")
        query = parse_qs(url.query)
        if path.startswith("/storage/"):
            return self._stored(path)
        if path == "/api/models":
            return self._search(query)
        if path == "/api/whoami-v2":
            return self._whoami(token)
        for pattern, answer in ((_TREE, self._tree), (_INFO, self._info), (_RESOLVE, self._resolve)):
            if found := pattern.fullmatch(path):
                model = self.hub.models.get(found["id"])
                if model is None or (model.private and not self._may_read(found["id"], model)):
                    return self._error(404 if token else 401, "RepoNotFound", "Repository not found")
                commit = model.commit(found["revision"] or "main")
                if commit is None:
                    return self._error(404, "RevisionNotFound", f"Invalid rev id: {found['revision']}")
                return answer(found, model, commit, token)
        return self._error(404, "", "Not found")

    def _fault(self, path: str) -> Fault:
        for fault in self.hub.faults:
            if fnmatch(path, fault.path) and fault.times != 0:
                if fault.times is not None:
                    fault.times -= 1
                return fault
        return Fault("")

    def _search(self, query):
        word = query.get("search", [""])[0].lower()
        found = [id for id, model in self.hub.models.items() if word in id.lower() and not model.private]
        self._json([self._facts(id) for id in found[: int(query.get("limit", ["1000"])[0])]])

    def _facts(self, id):
        model = self.hub.models[id]
        return {
            "_id": "0",
            "id": id,
            "modelId": id,
            "private": model.private,
            "gated": model.gated,
            "downloads": 1234,
            "likes": 5,
            "lastModified": "2025-01-02T03:04:05.000Z",
            "tags": ["safetensors", *model.tags],
        }

    def _info(self, found, model, commit, token):
        siblings = []
        for name, file in model.commits[commit].items():
            size, blob, lfs = _blob(file)
            siblings.append(
                {"rfilename": name, "size": size, "blobId": blob, **({"lfs": lfs} if lfs else {})}
            )
        self._json({**self._facts(found["id"]), "sha": commit, "siblings": siblings})

    def _tree(self, found, model, commit, token):
        entries = []
        for name, file in model.commits[commit].items():
            size, blob, lfs = _blob(file)
            lfs = (
                {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
                if lfs
                else None
            )
            entries.append(
                {"type": "file", "path": name, "size": size, "oid": blob, **({"lfs": lfs} if lfs else {})}
            )
        self._json(entries)

    def _resolve(self, found, model, commit, token):
        if model.gated and token not in model.readers:
            text = f"Access to model {found['id']} is restricted."
            self._error(403 if token else 401, "GatedRepo", text)
            return
        file = model.commits[commit].get(found["name"])
        if file is None:
            self._error(404, "EntryNotFound", "Entry not found", {"X-Repo-Commit": commit})
            return
        size, blob, lfs = _blob(file)
        linked = {"X-Repo-Commit": commit, "X-Linked-Size": str(size), "X-Linked-Etag": f'"{blob}"'}
        if not lfs:
            self._send(file.read_bytes(), {**linked, "ETag": f'"{blob}"'}, found.string)
            return
        linked["X-Linked-Etag"] = f'"{lfs["sha256"]}"'
        storage = (
            f"http://localhost:{self.hub.port}/storage/{found['id']}/{commit}/{found['name']}?signature=1"
        )
        self.send_response(302)
        for name, value in {**linked, "Location": storage, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    def _stored(self, path):
        _, _, owner, name, commit, file = path.split("/", 5)
        stored = self.hub.models[f"{owner}/{name}"].commits[commit][file]
        self._send(stored.read_bytes(), {"ETag": '"stored"'}, path)

    def _send(self, body: bytes, headers: dict[str, str], path: str, status: int = 200):
        body = body if self.fault.body is None else self.fault.body
        first, total = 0, len(body)
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted and not self.fault.no_range:
            first, last = int(wanted[1]), min(int(wanted[2] or total), total - 1)
            if first > last:
                self._error(416, "", "Range not satisfiable", {"Content-Range": f"bytes */{total}"})
                return
            status, body = 206, body[first : last + 1]
            headers = {**headers, "Content-Range": f"bytes {first}-{last}/{total}"}
        self.send_response(status)
        for name, value in {**headers, "Accept-Ranges": "bytes", "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self._write(body, path)

    def _write(self, body: bytes, path: str):
        stop = len(body) if self.fault.cut is None else min(self.fault.cut, len(body))
        try:
            for place in range(0, stop, CHUNK):
                chunk = body[place : min(place + CHUNK, stop)]
                self.hub.sent[path] += len(chunk)  # first: whoever has it all may look at once
                self.wfile.write(chunk)
                time.sleep(self.fault.pause)
        except OSError:
            self.close_connection = True
            return
        if stop < len(body):
            self.close_connection = True
            self.connection.shutdown(2)

    def _json(self, content, status: int = 200):
        body = json.dumps(content).encode()
        self._send(body, {"Content-Type": "application/json"}, urlsplit(self.path).path, status)

    def _error(self, status: int, code: str, text: str, headers: dict[str, str] | None = None, more=None):
        body = json.dumps({"error": text, **(more or {})}).encode()
        self.send_response(status)
        named = {"X-Error-Code": code, "X-Error-Message": text} if code else {"X-Error-Message": text}
        for name, value in {**named, **(headers or {}), "Content-Length": str(len(body))}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _blob(file: Path) -> tuple[int, str, dict | None]:
    """Size, git's id and, for what is stored beside git, the facts of the large file."""
    content = file.read_bytes()
    if file.suffix != ".safetensors":
        return len(content), hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(), None
    sha256 = hashlib.sha256(content).hexdigest()
    pointer = (
        f"version https://git-lfs.github.com/spec/v1\noid sha256:{sha256}\nsize {len(content)}\n".encode()
    )
    blob = hashlib.sha1(b"blob %d\0" % len(pointer) + pointer).hexdigest()
    return len(content), blob, {"sha256": sha256, "size": len(content), "pointerSize": len(pointer)}


def main() -> None:
    root, port = Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    server = HubServer(port)
    for folder in sorted(path for path in root.glob("*/*") if path.is_dir()):
        server.add(folder.relative_to(root).as_posix(), folder)
    print(f"HF_ENDPOINT={server.url} serves {', '.join(server.models) or 'nothing'}", flush=True)
    try:
        threading.Event().wait()
    except KeyboardInterrupt:
        server.close()


if __name__ == "__main__":
    main()
