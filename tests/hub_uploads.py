"""What the stand-in Hub takes: repositories made and removed, files uploaded as the real client does, and commits.

Large and binary files go to a storage host (the same server as `localhost`, which must never see a token), whole or in
parts, before a commit names them by their SHA-256; the rest comes inside the commit.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import tempfile
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import yaml

if TYPE_CHECKING:
    from tests.hub_server import Fault, HubServer, Repository

LARGEST_IN_GIT = 10 << 20
CHUNK = 16384
_ID = r"(?P<id>[^/]+/[^/]+)"
_PREUPLOAD = re.compile(rf"/api/(?P<kind>model|space)s/{_ID}/preupload/(?P<revision>[^/]+)")
_COMMIT = re.compile(rf"/api/(?P<kind>model|space)s/{_ID}/commit/(?P<revision>[^/]+)")
_BATCH = re.compile(rf"/(?P<space>spaces/)?{_ID}\.git/info/lfs/objects/batch")
_VERIFY = re.compile(rf"/(?P<space>spaces/)?{_ID}\.git/info/lfs/verify")
_UPLOAD = re.compile(r"/upload/(?P<oid>[0-9a-f]{64})(?:/(?P<part>\d+|complete))?")


@dataclass(frozen=True)
class Account:
    """Whose a token is, and what it may do: `role` read or write."""

    name: str
    orgs: tuple[str, ...] = ()
    role: str = "write"


@dataclass
class Uploads:
    """What was uploaded: `received` counts the bytes of every path's body, `objects` are whole large files by their hash."""

    accounts: dict[str, Account] = field(default_factory=dict)
    objects: dict[str, Path] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    received: Counter[str] = field(default_factory=Counter)
    part_bytes: int | None = None
    """Larger files than this are asked for in parts of so many bytes."""
    keep: tempfile.TemporaryDirectory[str] = field(
        default_factory=lambda: tempfile.TemporaryDirectory(prefix="hub-")
    )
    lock: threading.Lock = field(default_factory=threading.Lock)

    def file(self, content: bytes) -> Path:
        """The content as a file, by its hash."""
        path = Path(self.keep.name) / hashlib.sha256(content).hexdigest()
        path.write_bytes(content)
        return path


class CutShort(Exception):
    """A body of which only the beginning is taken: the connection was closed."""


class UploadHandler(BaseHTTPRequestHandler):
    """The writing half of the stand-in's requests."""

    hub: HubServer
    fault: Fault
    token: str | None

    def do_POST(self):
        self._take()

    def do_PUT(self):
        self._take()

    def do_DELETE(self):
        self._take()

    def _take(self):
        path = unquote(urlsplit(self.path).path)
        self.token = self._begin(path)
        try:
            body = self._body(path)
        except CutShort:
            self.close_connection = True
            self.connection.shutdown(2)
            return None
        if self.fault.status:
            return self._error(self.fault.status, self.fault.error, "made to fail", self.fault.headers)
        if found := _UPLOAD.fullmatch(path):
            return self._stored_upload(found, body)
        if path == "/api/validate-yaml":
            return self._validated(json.loads(body))
        if self.token not in self.hub.uploads.accounts:
            return self._error(401, "", "Invalid username or password.")
        routes = {
            ("POST", "/api/repos/create"): self._create,
            ("DELETE", "/api/repos/delete"): self._delete,
        }
        if answer := routes.get((self.command, path)):
            return answer(json.loads(body))
        for pattern, take in (
            (_PREUPLOAD, self._preupload),
            (_BATCH, self._batch),
            (_VERIFY, self._verify),
            (_COMMIT, self._commit),
        ):
            if self.command == "POST" and (found := pattern.fullmatch(path)):
                return self._in_repository(found, take, body)
        return self._error(404, "", "Not found")

    def _body(self, path: str) -> bytes:
        """What was sent, as it comes in.

        Raises:
            CutShort: the fault says so.
        """
        left, body = int(self.headers.get("Content-Length") or 0), b""
        stop = left if self.fault.cut is None else min(left, self.fault.cut)
        while len(body) < stop:
            chunk = self.rfile.read(min(CHUNK, stop - len(body)))
            if not chunk:
                break
            body += chunk
            self.hub.uploads.received[path] += len(chunk)
            time.sleep(self.fault.pause)
        if stop < left:
            raise CutShort
        return body

    def _account(self) -> Account:
        return self.hub.uploads.accounts[self.token or ""]

    def _whoami(self, token: str | None) -> None:
        account = self.hub.uploads.accounts.get(token or "")
        if account is None:
            return self._error(401, "", "Invalid credentials in Authorization header")
        return self._json(
            {
                "type": "user",
                "name": account.name,
                "orgs": [{"type": "org", "name": org, "roleInOrg": "write"} for org in account.orgs],
                "auth": {"type": "access_token", "accessToken": {"displayName": "t", "role": account.role}},
            }
        )

    def _may_write(self, id: str) -> bool:
        account = self._account()
        return account.role == "write" and id.partition("/")[0] in (account.name, *account.orgs)

    def _create(self, asked: dict[str, Any]) -> None:
        owner = asked.get("organization") or self._account().name
        id, kind = f"{owner}/{asked['name']}", asked.get("type") or "model"
        if not self._may_write(id):
            text = f'You don\'t have the rights to create a {kind} under the namespace "{owner}"'
            return self._error(403, "", text)
        key = _key(id, kind)
        url = f"{self.hub.url}/{key}"
        with self.hub.uploads.lock:
            if key in self.hub.models:
                return self._error(409, "", f"You already created this {kind} repo: {id}", more={"url": url})
            attributes = self.hub.uploads.file(b"*.safetensors filter=lfs diff=lfs merge=lfs -text\n")
            self.hub.put(
                key, {".gitattributes": attributes}, private=asked.get("visibility") == "private", made=asked
            )
        return self._json({"url": url, "name": id, "id": "0"})

    def _delete(self, asked: dict[str, Any]) -> None:
        id = f"{asked.get('organization') or self._account().name}/{asked['name']}"
        key = _key(id, asked.get("type") or "model")
        if key not in self.hub.models:
            return self._error(404, "RepoNotFound", "Repository not found")
        if not self._may_write(id):
            return self._error(403, "", "You do not have the rights to delete this repository")
        del self.hub.models[key]
        return self._json({})

    def _validated(self, asked: dict[str, Any]) -> None:
        found = re.match(r"---\n(.*?)\n---\n", asked["content"], re.S)
        try:
            front = yaml.safe_load(found[1]) if found else {}
            errors = [] if isinstance(front, dict) else [{"message": "no table"}]
        except yaml.YAMLError as error:
            errors = [{"message": str(error)}]
        self._json({"errors": errors, "warnings": []}, 400 if errors else 200)

    def _in_repository(self, found: re.Match[str], take: Any, body: bytes) -> None:
        groups = found.groupdict()
        kind = groups.get("kind") or ("space" if groups.get("space") else "model")
        model = self.hub.models.get(_key(found["id"], kind))
        if model is None or (model.private and not self._may_read(found["id"], model)):
            return self._error(404, "RepoNotFound", "Repository not found")
        if not self._may_write(found["id"]):
            return self._error(403, "", "You don't have write access to this repository")
        return take(found, model, body)

    def _may_read(self, id: str, model: Repository) -> bool:
        account = self.hub.uploads.accounts.get(self.token or "")
        mine = account is not None and id.partition("/")[0] in (account.name, *account.orgs)
        return mine or self.token in model.readers

    def _preupload(self, found, model: Repository, body: bytes) -> None:
        here = model.commits[model.branches["main"]]
        files = []
        for file in json.loads(body)["files"]:
            sample = base64.b64decode(file["sample"])
            large = file["path"].endswith(".safetensors") or file["size"] > LARGEST_IN_GIT or b"\0" in sample
            known = _identity(here[file["path"]].read_bytes(), large) if file["path"] in here else None
            files.append(
                {
                    "path": file["path"],
                    "uploadMode": "lfs" if large else "regular",
                    "shouldIgnore": False,
                    "oid": known,
                }
            )
        self._json({"files": files})

    def _batch(self, found, model: Repository, body: bytes) -> None:
        self._json(
            {
                "transfer": "basic",
                "objects": [self._action(found, one) for one in json.loads(body)["objects"]],
            }
        )

    def _action(self, found: re.Match[str], asked: dict[str, Any]) -> dict[str, Any]:
        oid, size = asked["oid"], asked["size"]
        if oid in self.hub.uploads.objects:
            return {"oid": oid, "size": size}
        storage = f"http://localhost:{self.hub.port}/upload/{oid}"
        here = f"{self.hub.url}/{found['space'] or ''}{found['id']}.git/info/lfs"
        upload: dict[str, Any] = {"href": storage, "header": {}}
        if (part := self.hub.uploads.part_bytes) and size > part:
            count = -(-size // part)
            links = {str(number): f"{storage}/{number}" for number in range(1, count + 1)}
            upload = {"href": f"{storage}/complete", "header": {"chunk_size": str(part), **links}}
        return {"oid": oid, "size": size, "actions": {"upload": upload, "verify": {"href": f"{here}/verify"}}}

    def _stored_upload(self, found: re.Match[str], body: bytes) -> None:
        oid = found["oid"]
        if self.token is not None:
            self.hub.leaks.append(self.path)
        if found["part"] == "complete":
            return self._keep(
                oid, b"".join(part for _, part in sorted(self.hub.uploads.parts.pop(oid).items()))
            )
        if found["part"]:
            with self.hub.uploads.lock:
                self.hub.uploads.parts.setdefault(oid, {})[int(found["part"])] = body
            return self._send(b"", {"ETag": f'"{hashlib.md5(body).hexdigest()}"'}, self.path)
        return self._keep(oid, body)

    def _keep(self, oid: str, content: bytes) -> None:
        if hashlib.sha256(content).hexdigest() != oid:
            return self._error(400, "", "Content does not match its hash")
        self.hub.uploads.objects[oid] = self.hub.uploads.file(content)
        return self._send(b"", {}, self.path)

    def _verify(self, found, model: Repository, body: bytes) -> None:
        if json.loads(body)["oid"] not in self.hub.uploads.objects:
            return self._error(404, "", "Object not found")
        return self._json({})

    def _commit(self, found, model: Repository, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        head = model.branches["main"]
        files = dict(model.commits[head])
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                if value.get("parentCommit", head) != head:
                    return self._error(412, "", "A commit has happened since. Please refresh and try again.")
            elif line["key"] == "file":
                files[value["path"]] = self.hub.uploads.file(base64.b64decode(value["content"]))
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.hub.uploads.objects:
                    return self._error(
                        400, "", f"LFS pointer pointed to a file that does not exist: {value['path']}"
                    )
                files[value["path"]] = self.hub.uploads.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                if files.pop(value["path"], None) is None:
                    return self._error(404, "EntryNotFound", "A file with this name doesn't exist")
            elif line["key"] == "deletedFolder":
                files = {n: f for n, f in files.items() if not n.startswith(value["path"].rstrip("/") + "/")}
        key = _key(found["id"], found["kind"])
        commit = self.hub.put(key, files, message=lines[0]["value"]["summary"])
        url = f"{self.hub.url}/{key}/commit/{commit}"
        return self._json({"success": True, "commitOid": commit, "commitUrl": url, "hookOutput": ""})


def _key(id: str, kind: str) -> str:
    """What a repository is kept under: a model's id, and `spaces/` before that of a Space."""
    return f"spaces/{id}" if kind == "space" else id


def _identity(content: bytes, large: bool) -> str:
    if large:
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
