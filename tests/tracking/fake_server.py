"""A fake W&B server on loopback, in a thread, that keeps what it is sent; the only fake of the tracking tests."""

import json
import threading
import time
from collections import defaultdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import yaml

PROJECT = {"id": "project", "name": "nangrid", "entity": {"id": "entity", "name": "me"}}
VIEWER = {"id": "user", "entity": "me", "username": "me", "flags": "{}", "teams": {"edges": []}}


class FakeServer:
    """`status` is what it answers with; 0 hangs, -1 drops the connection."""

    def __init__(self) -> None:
        self.status = 200
        self.runs: dict[str, dict[str, Any]] = defaultdict(dict)
        """The variables of every UpsertBucket, by run id, later ones over earlier ones."""
        self.history: dict[str, dict[int, dict[str, Any]]] = defaultdict(dict)
        """By run id, the lines of the history by their offset."""
        self.summary: dict[str, dict[str, Any]] = {}
        self.exit_codes: dict[str, int] = {}
        self.alerts: list[dict[str, Any]] = []
        self.views: list[dict[str, Any]] = []
        self.sweep: dict[str, Any] = {}
        self.queue: list[dict[str, Any]] = []
        """Commands for agents, one per heartbeat."""
        self.paths: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def config(self, run_id: str) -> dict[str, Any]:
        return {key: entry["value"] for key, entry in json.loads(self.runs[run_id]["config"]).items()}

    def graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        """The answer's data."""
        if "upsertBucket" in query:
            given = {key: value for key, value in variables.items() if value is not None}
            self.runs[variables["name"]] |= given
            return {"upsertBucket": {"bucket": self._bucket(variables["name"]), "inserted": True}}
        if "RunResumeStatus" in query:
            known = variables["name"] in self.runs
            bucket = self._bucket(variables["name"]) if known else None
            return {"model": {**PROJECT, "bucket": bucket}}
        if "createRunFiles" in query:
            files = [{"name": name, "uploadUrl": f"{self.url}/storage/{name}"} for name in variables["files"]]
            return {"createRunFiles": {"runID": variables["run"], "uploadHeaders": [], "files": files}}
        if "notifyScriptableRunAlert" in query:
            self.alerts.append(variables)
            return {"notifyScriptableRunAlert": {"success": True}}
        if "upsertView" in query:
            self.views.append(variables)
            return {"upsertView": {"view": {"id": "view", "name": variables["name"]}, "inserted": True}}
        if "viewer" in query:
            return {"viewer": VIEWER, "serverInfo": {}}
        return self._sweeps(query, variables)

    def _sweeps(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertSweep" in query:
            self.sweep = yaml.safe_load(variables["config"])
            return {"upsertSweep": {"sweep": {"name": "sweep1", "project": PROJECT}, "configValidationWarnings": []}}
        if "SweepWithRuns" in query:
            sweep = {"id": "sweep", "name": "sweep1", "config": yaml.dump(self.sweep), "runs": {"edges": []}}
            return {"project": {"sweep": sweep}}
        if "createAgent" in query:
            return {"createAgent": {"agent": {"id": "agent"}}}
        if "agentHeartbeat" in query:
            # an agent that gets an exit command kills its runs, so send it only once none is left
            busy = json.loads(variables["runState"])
            commands = [self.queue.pop(0)] if self.queue and not busy else []
            return {"agentHeartbeat": {"agent": {"id": "agent"}, "commands": json.dumps(commands)}}
        return {}

    def file_stream(self, run_id: str, body: dict[str, Any]) -> None:
        for name, chunk in body.get("files", {}).items():
            lines = [json.loads(line) for line in chunk["content"]] if name.endswith(("json", "jsonl")) else []
            if name == "wandb-history.jsonl":
                self.history[run_id] |= dict(enumerate(lines, chunk["offset"]))
            elif name == "wandb-summary.json":
                self.summary[run_id] = lines[-1]
        if body.get("complete"):
            self.exit_codes[run_id] = body["exitcode"]

    def _bucket(self, run_id: str) -> dict[str, Any]:
        lines = list(self.history[run_id].values())
        return {
            "id": run_id,
            "name": run_id,
            "displayName": run_id,
            "config": self.runs[run_id].get("config", "{}"),
            "summaryMetrics": json.dumps(self.summary.get(run_id, {})),
            "historyLineCount": len(lines),
            "historyTail": json.dumps([json.dumps(line) for line in lines[-1:]]),
            "eventsLineCount": 0,
            "eventsTail": "[]",
            "logLineCount": 0,
            "tags": [],
            "notes": None,
            "wandbConfig": '{"t": 1}',
            "sweepName": self.runs[run_id].get("sweep"),
            "project": PROJECT,
        }


def _handler(fake: FakeServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            fake.paths.append(self.path)
            if fake.status < 1:
                time.sleep(30 if fake.status == 0 else 0)
                self.close_connection = True
                return
            data: dict[str, Any] = {}
            if fake.status == 200 and self.path == "/graphql":
                request = json.loads(body)
                data = {"data": fake.graphql(request["query"], request.get("variables") or {})}
            elif fake.status == 200 and self.path.endswith("/file_stream"):
                fake.file_stream(self.path.split("/")[-2], json.loads(body))
            content = json.dumps(data).encode()
            self.send_response(fake.status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = answer

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:
                self.close_connection = True  # W&B leaves without a word

    return Handler
