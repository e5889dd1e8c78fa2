"""The official Python client against a real server and the scripted worker.

    KILN_URL=… FAL_KEY=… python suite.py WAY     WAY: how the client is pointed at the server

One line is printed per case; the exit status is 1 when one failed.
"""

import asyncio
import json
import os
import sys
import time
import traceback
import urllib.error
import urllib.request

import fal_client
import fal_client.client as c

import files
import webhooks

WAY = sys.argv[1]
BASE = os.environ["KILN_URL"]
ENDPOINT = "fal-ai/ltx23-trainer-v2/av2av"

if WAY == "constants":
    c.RUN_URL_FORMAT = BASE + "/run/"
    c.QUEUE_URL_FORMAT = BASE + "/queue/"
    c.REST_URL = BASE + "/rest"
    c.CDN_URL = BASE + "/cdn"
elif WAY not in ("sitecustomize", "environment"):
    sys.exit(f"no such way: {WAY}")


def script(*acts):
    return {"training_data_url": "https://data.invalid/clips.zip", "trigger_phrase": json.dumps(acts)}


def error(call):
    try:
        answer = call()
    except fal_client.FalClientHTTPError as reason:
        return reason
    raise AssertionError(f"an answer: {answer}")


def finished(handle):
    while not isinstance(status := handle.status(with_logs=True), fal_client.Completed):
        time.sleep(0.05)
    return status


def submit_status_and_result():
    handle = fal_client.submit(ENDPOINT, script({"steps": 3}))
    assert len(handle.request_id) == 36
    status = finished(handle)
    assert [line["message"] for line in status.logs] == [f"step {n} of 3" for n in (1, 2, 3)], status.logs
    assert isinstance(status.metrics["inference_time"], float)
    assert handle.status().logs is None
    result = handle.get()
    assert result["lora_file"]["url"].endswith(".safetensors"), result
    rebuilt = fal_client.sync_client.get_handle(ENDPOINT, handle.request_id)
    assert rebuilt.get() == result
    assert fal_client.result(ENDPOINT, handle.request_id) == result


def subscribe_with_logs():
    seen = []
    result = fal_client.subscribe(
        ENDPOINT, script({"steps": 4, "ms": 300}), with_logs=True, on_queue_update=seen.append
    )
    assert result["config_file"]["file_name"] == "config.json"
    kinds = [type(update).__name__ for update in seen]
    assert "InProgress" in kinds and kinds[-1] == "Completed", kinds
    counts = [len(update.logs) for update in seen if not isinstance(update, fal_client.Queued)]
    assert counts == sorted(counts) and counts[-1] == 4, counts


def queue_position_is_told():
    blockers = [fal_client.submit(ENDPOINT, script({"sleep": 700})) for _ in range(3)]
    statuses = [handle.status() for handle in blockers]
    waiting = [status.position for status in statuses if isinstance(status, fal_client.Queued)]
    assert waiting and waiting == sorted(waiting), statuses
    for handle in blockers:
        finished(handle)


def run_and_wait():
    result = fal_client.run(ENDPOINT, script({"steps": 2, "ms": 10}))
    assert result["lora_file"]["url"]


def result_of_a_running_request_is_a_400():
    handle = fal_client.submit(ENDPOINT, script({"sleep": 1500}))
    # The client's own call waits for the end first; programs that read the address themselves get this.
    request = urllib.request.Request(handle.response_url, headers={"Authorization": "Key " + os.environ["FAL_KEY"]})
    try:
        urllib.request.urlopen(request)
        raise AssertionError("an answer")
    except urllib.error.HTTPError as reason:
        assert reason.code == 400, reason
        assert json.load(reason) == {"detail": "Request is still in progress"}
    finished(handle)


def cancel_a_running_request():
    handle = fal_client.submit(ENDPOINT, script({"steps": 6000, "ms": 20}))
    while not isinstance(handle.status(), fal_client.InProgress):
        time.sleep(0.02)
    fal_client.cancel(ENDPOINT, handle.request_id)
    status = finished(handle)
    assert status.error_type == "client_cancelled", status
    reason = error(handle.get)
    assert reason.status_code == 499 and reason.error_type == "client_cancelled", reason
    assert error(handle.cancel).status_code == 400


def invalid_fields_are_all_named():
    handle = fal_client.submit(ENDPOINT, {"rank": "many", "training_data_url": 5})
    reason = error(handle.get)
    assert reason.status_code == 422
    assert {tuple(item["loc"]) for item in reason.message} == {("body", "rank"), ("body", "training_data_url")}
    assert handle.status().error


def a_fault_that_the_worker_finds_is_a_422():
    reason = error(lambda: fal_client.subscribe(ENDPOINT, script({"fail": "archive"})))
    assert reason.status_code == 422
    assert reason.message[0]["type"] == "invalid_archive", reason.message


def a_bug_is_a_500_without_its_cause():
    reason = error(lambda: fal_client.subscribe(ENDPOINT, script({"fail": "bug"})))
    assert reason.status_code == 500
    assert "secret" not in str(reason.message), reason.message


def a_wrong_key_is_a_401():
    stranger = fal_client.SyncClient(key="stranger:0000")
    assert error(lambda: stranger.submit(ENDPOINT, script())).status_code == 401


def an_unknown_request_is_a_404():
    unknown = "00000000-0000-4000-8000-000000000000"
    for call in (fal_client.status, fal_client.result, fal_client.cancel):
        assert error(lambda: call(ENDPOINT, unknown)).status_code == 404


def an_unknown_endpoint_is_a_404():
    reason = error(lambda: fal_client.submit("fal-ai/ltx23-trainer-v2/av3av", script()))
    assert reason.status_code == 404 and reason.message == "Path /av3av not found", reason


def the_async_client():
    async def main():
        seen = []
        handle = await fal_client.submit_async(ENDPOINT, script({"steps": 4, "ms": 300}))
        async for event in handle.iter_events(with_logs=True):
            seen.append(event)
        result = await handle.get()
        assert result["lora_file"]["url"]
        assert isinstance(seen[-1], fal_client.Completed) and len(seen[-1].logs) == 4
        result = await fal_client.subscribe_async(ENDPOINT, script({"steps": 1}))
        assert result["lora_file"]["url"]

    asyncio.run(main())


CASES = [
    submit_status_and_result,
    subscribe_with_logs,
    queue_position_is_told,
    run_and_wait,
    result_of_a_running_request_is_a_400,
    cancel_a_running_request,
    invalid_fields_are_all_named,
    a_fault_that_the_worker_finds_is_a_422,
    a_bug_is_a_500_without_its_cause,
    a_wrong_key_is_a_401,
    an_unknown_request_is_a_404,
    an_unknown_endpoint_is_a_404,
    the_async_client,
    *files.data_uris(BASE, ENDPOINT, script, finished),
    *webhooks.webhooks(BASE, ENDPOINT, script, finished),
]
# With the environment's variables the client still uploads to addresses of its own.
if WAY != "environment":
    CASES += files.uploads(BASE, multipart=WAY == "constants")

failed = 0
for case in CASES:
    started = time.monotonic()
    try:
        case()
        print(f"ok   {case.__name__} ({(time.monotonic() - started) * 1000:.0f} ms)", flush=True)
    except Exception:
        failed += 1
        print(f"FAIL {case.__name__}: {traceback.format_exc()}", flush=True)
print(f"{len(CASES) - failed} of {len(CASES)} cases")
sys.exit(1 if failed else 0)
