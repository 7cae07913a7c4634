#!/usr/bin/env bash
# inspect-ai 0.3.285 (Python 3.11 and 3.12, openai 3.57.0): as openai/NAME, a model with a name that Inspect does not know is asked
# without the temperature that was given.
#
# The provider takes an unknown name for OpenAI's newest model, whose temperature, it says, is always 1: it
# leaves the field out, after one warning among the lines of its progress, and the log of the evaluation still says
# "temperature: 0.8". The limit is sent as max_completion_tokens. A server of another model then samples by its own default.
# As openai-api/SERVER/NAME the fields are sent as they were given.
#
# Output seen:
#   openai/my-model              {'model': 'my-model', 'max_completion_tokens': 16, 'top_p': 0.95}
#   openai-api/local/my-model    {'model': 'my-model', 'max_tokens': 16, 'temperature': 0.8, 'top_p': 0.95}
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
export TMPDIR="$work"
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check inspect-ai==0.3.285 openai==3.57.0
cd "$work"
cat > question.py <<'PY'
from inspect_ai import Task, task
from inspect_ai.dataset import Sample
from inspect_ai.solver import generate

@task
def question():
    return Task(dataset=[Sample(input="1+1?", target="2")], solver=generate())
PY
"$work/venv/bin/python" - <<'PY'
import json, os, subprocess, threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        asked = {name: value for name, value in body.items() if name != "messages"}
        print(f"{self.server.asked:28}", asked)
        self.server.seen.append((self.server.asked, asked.get("temperature")))
        choice = {"index": 0, "message": {"role": "assistant", "content": "2"}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        reply = {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
        content = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *words):
        pass

server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
server.seen = []
url = f"http://127.0.0.1:{server.server_port}/v1"
keys = {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none", "LOCAL_BASE_URL": url, "LOCAL_API_KEY": "none"}
for server.asked, more in (("openai/my-model", ["-M", "responses_api=false"]), ("openai-api/local/my-model", [])):
    options = ["--temperature", "0.8", "--top-p", "0.95", "--max-tokens", "16", "--display", "none"]
    command = ["venv/bin/inspect", "eval", "question.py", "--model", server.asked, *more, *options]
    subprocess.run(command, env={**os.environ, **keys}, check=True, capture_output=True, timeout=300)
if set(server.seen) != {("openai/my-model", None), ("openai-api/local/my-model", 0.8)}:
    raise SystemExit(1)
PY
