"""Cases about files: uploads in both sizes and in all three ways of the client, files of results, lifetimes."""

import asyncio
import hashlib
import json
import os
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import fal_client

MIB = 1 << 20


def download(url, headers=None, method="GET"):
    """Status, headers and bytes of an address."""
    request = urllib.request.Request(url, headers=headers or {}, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            return answer.status, answer.headers, answer.read()
    except urllib.error.HTTPError as reason:
        return reason.code, reason.headers, reason.read()


def key():
    return {"Authorization": "Key " + os.environ["FAL_KEY"]}


def kept_input(base, endpoint, request_id):
    """What the server keeps of a request's input."""
    query = urllib.parse.urlencode({"endpoint_id": endpoint, "request_id": request_id, "expand": "payloads"})
    status, _, body = download(f"{base}/v1/models/requests/by-endpoint?{query}", key())
    assert status == 200, body
    return json.loads(body)["items"][0]["json_input"]


def data_uris(base, endpoint, script, finished):
    """Cases for every way: data URIs and the files of results need no upload."""

    def a_data_uri_in_the_input_is_kept_as_a_file():
        archive = os.urandom(3 * MIB)
        arguments = script({"steps": 1}) | {"training_data_url": fal_client.encode(archive, "application/zip")}
        handle = fal_client.submit(endpoint, arguments)
        status = finished(handle)
        assert status.error is None, status
        url = kept_input(base, endpoint, handle.request_id)["training_data_url"]
        assert url.startswith(base + "/"), url
        status, headers, body = download(url)
        assert (status, headers["content-type"], body == archive) == (200, "application/zip", True), status

    def the_files_of_a_result_are_downloaded():
        result = fal_client.subscribe(endpoint, script({"log": "hello"}))
        weights, config = result["lora_file"], result["config_file"]
        assert weights["url"].startswith(base + "/"), weights
        status, _, body = download(weights["url"])
        assert (status, len(body)) == (200, weights["file_size"])
        assert json.loads(download(config["url"])[2]) == [{"log": "hello"}]

    return [a_data_uri_in_the_input_is_kept_as_a_file, the_files_of_a_result_are_downloaded]


def uploads(base, multipart):
    """Cases for the ways that cover uploads; the large one only if `multipart` is true."""

    def a_small_upload_comes_back_byte_for_byte():
        data = os.urandom(300_000)
        url = fal_client.upload(data, "application/zip", "Clips (1).zip")
        assert url.startswith(base + "/") and url.endswith("/Clips%20%281%29.zip"), url
        status, headers, body = download(url)
        assert (status, headers["content-type"], body == data) == (200, "application/zip", True)
        status, headers, body = download(url, method="HEAD")
        assert (status, headers["content-length"], body) == (200, "300000", b"")
        status, headers, body = download(url, {"Range": "bytes=100-199"})
        assert (status, headers["content-range"]) == (206, "bytes 100-199/300000")
        assert body == data[100:200]

    def a_name_beyond_ascii_takes_the_client_to_its_other_repository():
        # The name cannot be a header, so the client falls back to the initiated upload, key and all.
        data = os.urandom(10_000)
        url = fal_client.upload(data, "application/zip", "Läufe.zip")
        assert urllib.parse.unquote(url).endswith("/Läufe.zip"), url
        assert download(url)[2] == data

    def the_async_client_uploads_a_file():
        async def main():
            with tempfile.TemporaryDirectory() as folder:
                path = os.path.join(folder, "clip.mp4")
                data = os.urandom(70_000)
                with open(path, "wb") as file:
                    file.write(data)
                url = await fal_client.upload_file_async(path)
            status, headers, body = download(url)
            assert (status, headers["content-type"], body == data) == (200, "video/mp4", True)

        asyncio.run(main())

    def a_lifecycle_says_how_long_a_file_lives_and_who_reads_it():
        client = fal_client.SyncClient()
        acl = fal_client.StorageACL(default="forbid")
        lifecycle = fal_client.StorageSettings(expires_in=2, initial_acl=acl)
        url = client.upload(b"secret", "text/plain", lifecycle=lifecycle)
        assert download(url)[0] == 403
        status, headers, body = download(url, key())
        assert (status, body) == (200, b"secret")
        assert headers["cache-control"] in [f"private, max-age={seconds}" for seconds in (0, 1, 2)], headers
        time.sleep(2.5)
        assert download(url, key())[0] == 404

    def an_upload_past_100_mib_goes_in_parts_and_comes_back_byte_for_byte():
        block = os.urandom(MIB - 4)
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "big.bin")
            wanted = hashlib.sha256()
            with open(path, "wb") as file:
                for number in range(101):
                    piece = number.to_bytes(4, "big") + block
                    wanted.update(piece)
                    file.write(piece)
            url = fal_client.upload_file(path)
        got, length = hashlib.sha256(), 0
        with urllib.request.urlopen(url) as answer:
            while piece := answer.read(MIB):
                got.update(piece)
                length += len(piece)
        assert (length, got.hexdigest()) == (101 * MIB, wanted.hexdigest())

    cases = [
        a_small_upload_comes_back_byte_for_byte,
        a_name_beyond_ascii_takes_the_client_to_its_other_repository,
        the_async_client_uploads_a_file,
        a_lifecycle_says_how_long_a_file_lives_and_who_reads_it,
    ]
    return cases + [an_upload_past_100_mib_goes_in_parts_and_comes_back_byte_for_byte] * multipart
