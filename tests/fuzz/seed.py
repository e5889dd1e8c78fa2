#!/usr/bin/env python3
"""Writes what the fuzzers start from: tests/fuzz/corpus/<target>/ and the dictionary of the wire's words.

Bodies come from tests/golden/pydantic/cases.json and from the fields of tests/golden/endpoints.json, request heads
from the routes below. File names are hashes, so running it again changes nothing and keeps what fuzzing has found.
"""

import hashlib
import json
import pathlib

HERE = pathlib.Path(__file__).resolve().parent
GOLDEN = HERE.parent / "golden"
OWNER = "fal-ai/ltx23-trainer-v2"
ID = "01890a5d-ac96-774b-bcce-b302099a8057"


def write(target, seeds):
    folder = HERE / "corpus" / target
    folder.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        (folder / hashlib.sha1(seed).hexdigest()).write_bytes(seed)
    print(f"{target}: {len(seeds)} seeds in {folder.relative_to(HERE)}")


def value(name, schema):
    """A value that the field accepts, as far as its schema says."""
    if "default" in schema and schema["default"] is not None:
        return schema["default"]
    if "enum" in schema:
        return schema["enum"][0]
    kind = schema.get("type")
    kind = kind[0] if isinstance(kind, list) else kind
    if kind == "array":
        return []
    if kind in ("integer", "number"):
        return schema.get("minimum", 1)
    if kind == "boolean":
        return True
    return f"https://files.example/{name}.zip" if name.endswith("_url") else "TOK"


def bodies():
    endpoints = json.loads((GOLDEN / "endpoints.json").read_text())["endpoints"]
    paths, seeds = [endpoint.removeprefix(OWNER + "/") for endpoint in endpoints], set()
    for number, endpoint in enumerate(endpoints.values()):
        fields = {name: value(name, field) for name, field in endpoint["input"]["properties"].items()}
        item = endpoint["validation_item"]["properties"]
        fields["validation"] = [{name: value(name, field) for name, field in item.items()}]
        seeds.add(bytes([number]) + json.dumps(fields, separators=(",", ":")).encode())
    for case in json.loads((GOLDEN / "pydantic" / "cases.json").read_text()):
        seeds.add(bytes([paths.index(case["path"])]) + case["body"].encode())
    return seeds


def heads():
    app = f"/{OWNER}"
    lines = [
        f"POST {app}/t2v?fal_webhook=https%3A%2F%2Fexample.com%2Fhook%3Fa%3D1&fal_max_queue_length=10",
        f"POST /queue{app}/ic-lora/av2av",
        f"POST /run{app}/t2v",
        f"GET {app}/requests/{ID}/status?logs=1",
        f"GET {app}/requests/{ID}/status/stream?fal_jwt_token=a.b.c",
        f"GET /queue{app}/i2v/requests/{ID}/response",
        f"PUT {app}/requests/{ID}/cancel",
        f"OPTIONS {app}/requests/{ID}/cancel",
        "POST /rest/tokens/",
        "POST /workflows/me/flow/a/b",
        f"GET /v1/models?endpoint_id={OWNER}/t2v,{OWNER}/i2v&expand=openapi-3.0",
        f"GET /v1/models/requests/by-endpoint?endpoint_id={OWNER}/t2v&start=2026-01-01&end=2026-01-02T03:04:05%2B01:00"
        f"&limit=10&status=user_error&expand=payloads&cursor=abc&request_id={ID}",
        f"DELETE /v1/models/requests/{ID}/payloads",
        f"GET /api/openapi/queue/openapi.json?endpoint_id={OWNER}/t2v",
        "GET http://queue.fal.run/health",
        "GET /metrics",
    ]
    headers = [
        "host: localhost:8080",
        "host: queue.fal.run\nx-forwarded-proto: https\nauthorization: Key id:secret",
        "host: [::1]:80\nauthorization: Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.e30.AAAA",
        "x-fal-request-timeout: 30.0\nx-fal-request-start-timeout: 1e3\nx-fal-queue-priority: low\nx-fal-store-io: 0",
        'x-fal-retry-config: {"connection_error":{"retries":0}}\nx-fal-no-retry: yes\n'
        'x-fal-object-lifecycle-preference: {"expiration_duration_seconds":60}\nx-fal-tags: a=b',
        "access-control-request-headers: authorization\naccess-control-request-private-network: true",
    ]
    seeds = {f"{line} HTTP/1.1\n{header}\n\nstep 1/100 é 🦀\r\n".encode() for line in lines for header in headers}
    for url in (f"https://queue.fal.run{app}/t2v?fal_webhook=x", f"http://fal.run{app}/t2v", "https://rest.fal.ai/tokens/"):
        seeds.add(f"POST /api/fal/proxy HTTP/1.1\nhost: localhost\nx-fal-target-url: {url}".encode())
    words = sorted({word for seed in seeds for word in seed.decode().replace("\n", " ").replace("?", " ").split()})
    quoted = [w.encode("ascii", "ignore").decode().replace("\\", "\\\\").replace('"', '\\"') for w in words]
    (HERE / "corpus").mkdir(exist_ok=True)
    (HERE / "corpus" / "wire.dict").write_text("".join(f'"{word}"\n' for word in quoted if word))
    return seeds


write("request", bodies())
write("wire", heads())
