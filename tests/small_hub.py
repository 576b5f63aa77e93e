"""A hub on loopback: serves files of one repository the way huggingface_hub asks for them."""

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


class SmallHub:
    """`files` maps a path inside the repository to its bytes. Use as a context manager."""

    def __init__(self, repository, revision, files, kind="datasets"):
        self.repository, self.revision, self.files, self.kind = repository, revision, files, kind
        self.requests = []
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
                hub.requests.append((self.command, path))
                status, content, headers = hub.respond(path)
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                if body:
                    self.wfile.write(content)

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def respond(self, path):
        api = f"/api/{self.kind}/{self.repository}"
        if path == f"{api}/revision/{self.revision}":
            info = {
                "id": self.repository,
                "sha": self.revision,
                "siblings": [{"rfilename": name} for name in self.files],
            }
            return 200, json.dumps(info).encode(), {"Content-Type": "application/json"}
        if path.startswith(f"{api}/tree/{self.revision}"):
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": _git_hash(content)}
                for name, content in self.files.items()
            ]
            return 200, json.dumps(tree).encode(), {"Content-Type": "application/json"}
        prefix = "" if self.kind == "models" else f"/{self.kind}"
        prefix = f"{prefix}/{self.repository}/resolve/{self.revision}/"
        if path.startswith(prefix) and path[len(prefix) :] in self.files:
            content = self.files[path[len(prefix) :]]
            headers = {"ETag": f'"{_git_hash(content)}"', "X-Repo-Commit": self.revision}
            return 200, content, headers
        return 404, b"{}", {"Content-Type": "application/json", "X-Error-Code": "EntryNotFound"}

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()


def _git_hash(content):
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
