"""Cases about webhooks: delivered to a receiver, and verified with the algorithm that fal publishes."""

import base64
import binascii
import hashlib
import http.server
import json
import queue
import threading
import time
import urllib.request

import fal_client
from nacl.signing import VerifyKey

LEEWAY_SECONDS = 300


class Receiver:
    """A receiver on a free port, which keeps every delivery."""

    def __enter__(self):
        self.deliveries = queue.Queue()
        deliveries = self.deliveries

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(200)
                self.end_headers()
                deliveries.put((self.path, self.headers, body))

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    def next(self):
        return self.deliveries.get(timeout=30)


def key_set(base):
    with urllib.request.urlopen(base + "/rest/.well-known/jwks.json") as answer:
        return json.load(answer)["keys"]


def verify(keys, headers, body, decode=base64.urlsafe_b64decode):
    """As fal documents it for Python: PyNaCl, no padding added to `x`, keys that cannot be used are passed over."""
    timestamp = headers["X-Fal-Webhook-Timestamp"]
    if abs(time.time() - int(timestamp)) > LEEWAY_SECONDS:
        return False
    lines = [headers["X-Fal-Webhook-Request-Id"], headers["X-Fal-Webhook-User-Id"], timestamp]
    message = "\n".join([*lines, hashlib.sha256(body).hexdigest()]).encode()
    signature = bytes.fromhex(headers["X-Fal-Webhook-Signature"])
    for key in keys:
        try:
            VerifyKey(decode(key["x"])).verify(message, signature)
            return True
        except Exception:
            continue
    return False


def webhooks(base, endpoint, script, finished):
    def a_webhook_tells_the_result_and_is_signed():
        with Receiver() as hook:
            handle = fal_client.submit(endpoint, script({"steps": 2}), webhook_url=hook.url + "/hook?for=you&name=a%20b")
            target, headers, body = hook.next()
        assert target == "/hook?for=you&name=a%20b", target
        told = json.loads(body)
        assert (told["request_id"], told["status"]) == (handle.request_id, "OK"), told
        assert told["payload"]["lora_file"]["file_size"] == handle.get()["lora_file"]["file_size"]
        keys = key_set(base)
        assert verify(keys, headers, body)
        assert not verify(keys, headers, body + b" ")
        # Both forms of the key are there: the documented sample can use one of them, a stricter verifier the other.
        usable = []
        for key in keys:
            try:
                base64.urlsafe_b64decode(key["x"])
                usable.append(key)
            except binascii.Error:
                pass
        assert len(usable) * 2 == len(keys), keys
        standard = [key for key in keys if key not in usable]
        assert not verify(standard, headers, body)
        assert verify(standard, headers, body, lambda x: base64.urlsafe_b64decode(x + "="))

    def a_webhook_tells_a_failure():
        with Receiver() as hook:
            handle = fal_client.submit(endpoint, script({"fail": "archive"}), webhook_url=hook.url)
            _, headers, body = hook.next()
        assert verify(key_set(base), headers, body)
        told = json.loads(body)
        assert told["request_id"] == handle.request_id
        assert (told["status"], told["error"]) == ("ERROR", "Invalid status code: 422"), told
        assert told["payload"]["detail"][0]["type"] == "invalid_archive"

    return [a_webhook_tells_the_result_and_is_signed, a_webhook_tells_a_failure]
