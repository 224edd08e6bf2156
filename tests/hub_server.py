"""A Hub on the loopback, for the real clients: repositories in memory, one revision after another."""

import base64
import hashlib
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class HubServer(ThreadingHTTPServer):
    """Starts on a free port; `revisions` holds {path: bytes} by commit.

    `fail` maps a part of a path to the statuses that it answers, one request after the other, then as usual; a status
    alone is answered always. Requests to a path with `stall` in it wait until the server ends.
    """

    def __init__(self):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.revisions, self.head, self.tags, self.objects = {"0" * 40: {}}, "0" * 40, {}, {}
        self.log, self.fail, self.url = [], {}, f"http://127.0.0.1:{self.server_port}"
        self.stall, self.stalled = None, threading.Event()
        self.daemon_threads = True
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def files(self, revision: str) -> dict | None:
        """The files of a branch, tag or commit."""
        return self.revisions.get(self.head if revision == "main" else self.tags.get(revision, revision))


class _Handler(BaseHTTPRequestHandler):
    def log_message(self, *arguments):
        pass

    def _answer(self, value=None, status=200, headers=None, body=None):
        body = json.dumps(value).encode() if body is None else body
        self.send_response(status)
        for name, text in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _handle(self):
        hub, path = self.server, self.path.split("?")[0].replace("%2F", "/")
        content = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        hub.log.append((self.command, path))
        if hub.stall and hub.stall in path:
            hub.stalled.set()
            return threading.Event().wait(60)
        for part, status in hub.fail.items():
            if part in path and status:
                status = status.pop(0) if isinstance(status, list) else status
                return self._answer({"error": "refused"}, status, {"Retry-After": "1"} if status == 429 else None)
        if path.endswith("/objects/batch"):
            objects = []
            for item in json.loads(content)["objects"]:
                href = {"href": f"{hub.url}/lfs/{item['oid']}"}
                objects.append({**item, **({} if item["oid"] in hub.objects else {"actions": {"upload": href}})})
            return self._answer({"transfer": "basic", "objects": objects})
        if path.startswith("/lfs/"):
            hub.objects[path[5:]] = content
            return self._answer({})
        if path.endswith("/repos/create"):
            name = json.loads(content)
            return self._answer({"url": f"{hub.url}/{name.get('organization', 'anna')}/{name['name']}"})
        if path.endswith("/validate-yaml"):
            known = "license: apache-2.0" in json.loads(content)["content"]
            errors = [] if known else [{"message": '"license" is missing'}]
            return self._answer({"errors": errors, "warnings": []}, 200 if known else 400)
        if "/preupload/" in path:
            return self._answer({"files": [self._mode(item) for item in json.loads(content)["files"]]})
        if "/commit/" in path:
            return self._commit(content.decode().splitlines())
        if "/tag/" in path:
            hub.tags[json.loads(content)["tag"]] = path.split("/tag/")[1]
            return self._answer({})
        if path.endswith("/refs"):
            tags = [{"name": name, "ref": f"refs/tags/{name}", "targetCommit": oid} for name, oid in hub.tags.items()]
            return self._answer({"branches": [], "converts": [], "tags": tags})
        return self._read(path)

    do_GET = do_HEAD = do_POST = do_PUT = _handle

    def _mode(self, item):
        stored = self.server.files("main").get(item["path"])
        large = item["path"].endswith((".safetensors", ".png", ".onnx"))
        oid = None
        if stored is not None:
            git = hashlib.sha1(f"blob {len(stored)}\0".encode() + stored).hexdigest()
            oid = hashlib.sha256(stored).hexdigest() if large else git
        mode = "lfs" if large else "regular"
        return {"path": item["path"], "uploadMode": mode, "shouldIgnore": False, "oid": oid}

    def _commit(self, lines):
        hub = self.server
        files = dict(hub.files("main"))
        for line in map(json.loads, lines):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = hub.objects[value["oid"]]
            elif line["key"] == "deletedFile":
                files.pop(value["path"], None)
        hub.head = hashlib.sha1(f"{hub.head}{len(hub.revisions)}".encode()).hexdigest()
        hub.revisions[hub.head] = files
        self._answer({"commitUrl": f"{hub.url}/anna/knees/commit/{hub.head}", "commitOid": hub.head, "success": True})

    def _read(self, path):
        hub = self.server
        if found := re.fullmatch(r"(?:/datasets|/spaces)?/[^/]+/[^/]+/resolve/([^/]+)/(.+)", path):
            files = hub.files(found[1])
            oid = hub.head if found[1] == "main" else hub.tags.get(found[1], found[1])
            if files is None or found[2] not in files:
                return self._answer({}, 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": oid})
            body = files[found[2]]
            return self._answer(
                None, 200, {"ETag": f'"{hashlib.sha256(body).hexdigest()}"', "X-Repo-Commit": oid}, body
            )
        if found := re.fullmatch(r"/api/(?:models|datasets|spaces)/([^/]+/[^/]+)/tree/([^/]+)(?:/.*)?", path):
            rows = [
                {"type": "file", "path": name, "size": len(body), "oid": hashlib.sha1(body).hexdigest()}
                for name, body in (hub.files(found[2]) or {}).items()
            ]
            return self._answer(rows)
        if found := re.fullmatch(r"/api/(?:models|datasets|spaces)/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            files = hub.files(found[2] or "main") or {}
            oid = hub.head if (found[2] or "main") == "main" else hub.tags.get(found[2], found[2])
            siblings = [{"rfilename": name} for name in files]
            return self._answer({"id": found[1], "modelId": found[1], "sha": oid, "siblings": siblings, "tags": []})
        return self._answer({}, 404)
