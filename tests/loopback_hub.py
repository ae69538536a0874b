"""A Hugging Face Hub of one process: enough of its API to push repositories to it and to load them from it.

    with LoopbackHub() as hub:
        subprocess.run([...], env=hub.client_environment(cache_folder))

Clients run in subprocesses, because huggingface_hub reads HF_ENDPOINT when it is imported; what only pushes may run in
the process of a test, after `use_hub`. A repository has one branch
and remembers its last commit only.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.constants
import pytest


class Repository:
    """The files of the last commit of one repository."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.files: dict[str, bytes] = {}
        self.lfs_files: set[str] = set()
        self.commits = 0

    @property
    def sha(self) -> str:
        return hashlib.sha1(f"{self.name} {self.commits}".encode()).hexdigest()

    def describe(self) -> dict[str, Any]:
        siblings = [{"rfilename": path} for path in sorted(self.files)]
        return {"_id": self.sha[:24], "id": self.name, "modelId": self.name, "sha": self.sha, "private": False,
                "downloads": 0, "likes": 0, "tags": [], "siblings": siblings}  # fmt: skip

    def tree(self) -> list[dict[str, Any]]:
        entries = []
        for path, content in sorted(self.files.items()):
            entry: dict[str, Any] = {"type": "file", "oid": etag(content), "size": len(content), "path": path}
            if path in self.lfs_files:
                entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 134}
            entries.append(entry)
        return entries


def etag(content: bytes) -> str:
    """Git's name of a file with this content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class LoopbackHub:
    """The server, in a thread, while the `with` block lasts."""

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.uploads: dict[str, bytes] = {}
        self.requests: list[str] = []
        # Called before a large file is stored, with the number stored before: to interrupt its sender
        self.storing = threading.Lock()
        self.before_upload: Callable[[int], None] | None = None
        self.refuse_writing = False
        handler = type("Handler", (RequestHandler,), {"hub": self})
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self.endpoint = f"http://127.0.0.1:{self.server.server_address[1]}"

    def __enter__(self) -> LoopbackHub:
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.server.shutdown()
        self.server.server_close()

    def client_environment(self, cache_folder: str | Path) -> dict[str, str]:
        """Environment variables of a client that knows this Hub only, with an empty cache of its own."""
        own = ("HF_", "HUGGINGFACE_", "TRANSFORMERS_")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(own)}
        inherited.pop("PYTHONPATH", None)
        return inherited | {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(cache_folder),
            "HF_TOKEN": "hf_loopback",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }


def use_hub(hub: LoopbackHub, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Makes this process a client of a Hub; `folder` is an empty one."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", hub.endpoint)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_TOKEN_PATH", str(folder / "no_token"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_loopback")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


class RequestHandler(BaseHTTPRequestHandler):
    """Answers the requests of huggingface_hub; whatever it does not know is 404 with the Hub's error code."""

    hub: LoopbackHub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        self.hub.requests.append(format % args)

    def reply(
        self, content: Any = None, status: int = 200, headers: dict[str, str] | None = None, length: int | None = None
    ) -> None:
        body = content if isinstance(content, bytes) else json.dumps({} if content is None else content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def reply_missing(self, code: str) -> None:
        self.reply({"error": code}, 404, {"X-Error-Code": code})

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def parts(self) -> list[str]:
        """The path without the prefix that tells datasets from models (repositories are told apart by name alone)."""
        parts = [unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")]
        return parts[1:] if parts[0] == "datasets" else parts

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        match self.parts():
            case ["api", "whoami-v2"] if self.headers.get("Authorization") != "Bearer hf_loopback":
                self.reply({"error": "Invalid username or password."}, 401)
            case ["api", "whoami-v2"]:
                user = {"type": "user", "name": "hsg-aiml", "orgs": [], "auth": {"type": "access_token"}}
                self.reply(user)
            case ["api", "models" | "datasets", owner, name, *rest]:
                repository = self.hub.repositories.get(f"{owner}/{name}")
                if repository is None:
                    self.reply_missing("RepoNotFound")
                elif rest[:1] == ["tree"]:
                    self.reply(repository.tree())  # all of it, whether asked for recursively or not
                elif not rest or rest[0] == "revision" and rest[1:] in (["main"], [repository.sha]):
                    self.reply(repository.describe())
                else:
                    self.reply_missing("RevisionNotFound")
            case [owner, name, "resolve", _, *path]:
                self.reply_file(self.hub.repositories.get(f"{owner}/{name}"), "/".join(path))
            case _:
                self.reply_missing("EntryNotFound")

    def reply_file(self, repository: Repository | None, path: str) -> None:
        if repository is None:
            return self.reply_missing("RepoNotFound")
        headers = {"X-Repo-Commit": repository.sha}
        content = repository.files.get(path)
        if content is None:
            return self.reply({}, 404, headers | {"X-Error-Code": "EntryNotFound"})
        if path in repository.lfs_files:
            headers |= {
                "X-Linked-Size": str(len(content)),
                "X-Linked-ETag": f'"{hashlib.sha256(content).hexdigest()}"',
            }
        self.reply(content, headers=headers | {"ETag": f'"{etag(content)}"'})

    def do_POST(self) -> None:
        content = self.body()
        match self.parts():
            case ["api", "repos", "create"]:
                request = json.loads(content)
                owner = request.get("organization") or "hsg-aiml"
                name = f"{owner}/{request['name'].split('/')[-1]}"
                self.hub.repositories.setdefault(name, Repository(name))
                self.reply({"url": f"{self.hub.endpoint}/{name}", "name": name, "id": name})
            case ["api", "validate-yaml"]:
                self.reply({"errors": [], "warnings": []})
            case ["api", "models" | "datasets", owner, name, "preupload", _]:
                repository = self.hub.repositories.get(f"{owner}/{name}")
                files = []
                for file in json.loads(content)["files"]:
                    mode = self.upload_mode(file["path"])
                    # By the hash of what is there, the client leaves out files that it would not change
                    known = repository.files.get(file["path"]) if repository is not None else None
                    hash_of = etag if mode == "regular" else lambda content: hashlib.sha256(content).hexdigest()
                    oid = None if known is None else hash_of(known)
                    files.append({"path": file["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid})
                self.reply({"files": files})
            case [owner, _, "info", "lfs", "objects", "batch"]:
                # An object that is there needs no upload
                objects = [
                    entry
                    if entry["oid"] in self.hub.uploads
                    else entry | {"actions": {"upload": {"href": f"{self.hub.endpoint}/upload/{entry['oid']}"}}}
                    for entry in json.loads(content)["objects"]
                ]
                media_type = {"Content-Type": "application/vnd.git-lfs+json"}
                self.reply({"transfer": "basic", "objects": objects}, headers=media_type)
            case ["api", "models" | "datasets", owner, name, "commit", _] if self.hub.refuse_writing:
                self.reply({"error": "Forbidden"}, 403)
            case ["api", "models" | "datasets", owner, name, "commit", _]:
                repository = self.hub.repositories[f"{owner}/{name}"]
                self.commit(repository, content)
                url = f"{self.hub.endpoint}/{owner}/{name}/commit/{repository.sha}"
                self.reply({"success": True, "commitOid": repository.sha, "commitUrl": url, "hookOutput": ""})
            case _:
                self.reply_missing("EntryNotFound")

    @staticmethod
    def upload_mode(path: str) -> str:
        return "lfs" if path.endswith((".safetensors", ".parquet", ".png")) else "regular"

    def commit(self, repository: Repository, lines: bytes) -> None:
        for line in lines.splitlines():
            operation = json.loads(line)
            value = operation["value"]
            if operation["key"] == "file":
                repository.files[value["path"]] = base64.b64decode(value["content"])
                repository.lfs_files.discard(value["path"])
            elif operation["key"] == "lfsFile":
                repository.files[value["path"]] = self.hub.uploads[value["oid"]]
                repository.lfs_files.add(value["path"])
            elif operation["key"] == "deletedFile":
                del repository.files[value["path"]]
        repository.commits += 1

    def do_PUT(self) -> None:
        content = self.body()
        oid = hashlib.sha256(content).hexdigest()
        if self.parts() != ["upload", oid]:
            return self.reply({"error": "the content does not match its name"}, 400)
        # One after the other, so that the number is right
        with self.hub.storing:
            if self.hub.before_upload is not None:
                self.hub.before_upload(len(self.hub.uploads))
            self.hub.uploads[oid] = content
        self.reply({})
