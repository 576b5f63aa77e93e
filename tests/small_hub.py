"""A hub on loopback: serves files of one repository the way huggingface_hub asks for them, and
fails on request.

As on the real hub, small files come straight from `resolve` and large ones, kept by Git LFS, by a
redirect to another host (here "localhost" instead of "127.0.0.1"), with their SHA-256 as ETag.
"""

import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

NAME, OLD = "me/jokes", "1" * 40  # the data set, and its commit, of the fixture `serve`
_LARGE = (".safetensors", ".bin", ".parquet")


class SmallHub:
    """`files` maps a path inside the repository to its bytes. Use as a context manager.

    faults     path -> what goes wrong with it, one entry a request that sends its bytes: "cut"
               (half of them, then the line is closed), 404 or 500; nothing once the list is empty
    headless   how many of the requests for a file's description are answered by 500 first
    checksums  path -> a checksum to claim instead of the true one
    branches   names of `revision`, which may also be one of `commits`: revision -> its files
    gated      whether files are for those alone who have accepted conditions
    """

    def __init__(self, repository, revision, files, kind="datasets"):
        self.repository, self.revision, self.files, self.kind = repository, revision, files, kind
        self.requests, self.faults, self.headless, self.checksums = [], {}, 0, {}
        self.branches, self.commits, self.gated = {"main"}, {}, False
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *arguments):
                pass

            def do_HEAD(self):
                self.answer(body=False)

            def do_GET(self):
                self.answer(body=True)

            def answer(self, body):
                path = unquote(urlsplit(self.path).path)
                wanted = self.headers.get("Range", "")
                hub.requests.append((self.command, f"{path} {wanted}".strip()))
                status, content, headers, fault = hub.respond(path, body)
                start = re.fullmatch(r"bytes=(\d+)-", wanted)
                if start and status == 200:
                    status, first = 206, int(start[1])
                    headers["Content-Range"] = f"bytes {first}-{len(content) - 1}/{len(content)}"
                    content = content[first:]
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)
                self.close_connection = fault == "cut"

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def respond(self, path, body):
        """Status, content, headers, and the fault that befalls the content."""
        api = f"/api/{self.kind}/{self.repository}"
        commits = {self.revision: self.files} | self.commits
        if path.startswith("/api/") and not path.startswith(f"{api}/"):
            return 401, b"{}", {"X-Error-Code": "RepoNotFound"}, None
        if path.startswith(f"{api}/revision/"):
            name = path.removeprefix(f"{api}/revision/")
            commit = self.revision if name in self.branches else name
            if commit not in commits:
                return 404, b"{}", {"X-Error-Code": "RevisionNotFound"}, None
            files = [
                {"rfilename": name, "size": len(content)}
                for name, content in commits[commit].items()
            ]
            info = {"id": self.repository, "sha": commit, "siblings": files}
            return 200, json.dumps(info).encode(), {"Content-Type": "application/json"}, None
        if path.startswith(f"{api}/tree/{self.revision}"):
            tree = [
                {
                    "type": "file",
                    "path": name,
                    "size": len(content),
                    "oid": self.checksum(name, content),
                }
                for name, content in self.files.items()
            ]
            return 200, json.dumps(tree).encode(), {"Content-Type": "application/json"}, None

        prefix = "" if self.kind == "models" else f"/{self.kind}"
        where = path.removeprefix(f"{prefix}/{self.repository}/resolve/")
        from_storage = path.startswith("/storage/")
        commit, _, name = where.removeprefix("/storage/").partition("/")
        if name not in commits.get(commit, {}):
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": self.revision}
            return 404, b"{}", headers, None
        if self.gated and not from_storage:
            return 401, b"", {"X-Error-Code": "GatedRepo"}, None
        content = commits[commit][name]
        if not body and self.headless:
            self.headless -= 1
            return 500, b"", {}, None
        checksum = self.checksum(name, content)
        headers = {"ETag": f'"{checksum}"', "X-Repo-Commit": commit}
        if name.endswith(_LARGE) and not from_storage:
            headers |= {
                "X-Linked-Etag": headers["ETag"],
                "X-Linked-Size": str(len(content)),
                "Location": f"http://localhost:{self.server.server_port}/storage/{commit}/{name}",
            }
            return 302, b"", headers, None
        fault = self.faults[name].pop(0) if body and self.faults.get(name) else None
        if fault in (404, 500):
            return fault, b"", {}, None
        return 200, content, headers, fault

    def checksum(self, name, content):
        digest = hashlib.sha256() if name.endswith(_LARGE) else hashlib.sha1()
        if not name.endswith(_LARGE):
            digest.update(b"blob %d\0" % len(content))
        digest.update(content)
        return self.checksums.get(name, digest.hexdigest())

    def __enter__(self):
        # 0.01 s between looks for shutdown
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def turn_client_to(hub, monkeypatch):
    """What HF_ENDPOINT does when a process starts, for this process."""
    path = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", hub.address)
    template = "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE"
    monkeypatch.setattr(template, hub.address + path)
