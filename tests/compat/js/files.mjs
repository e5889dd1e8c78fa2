// Cases about files: uploads in both sizes, files inside inputs and results, data URIs, lifetimes, other origins.

import assert from "node:assert/strict";
import { createHash, randomBytes } from "node:crypto";

const MIB = 1 << 20;
const sha256 = (bytes) => createHash("sha256").update(bytes).digest("hex");

/** The cases, for the client and the addresses of `context`; `way` is how the client was pointed at the server. */
export const files = ({ fal, base, endpoint, script, finished, way }) => {
  const authorization = `Key ${process.env.FAL_KEY}`;
  const bytesOf = async (response) => Buffer.from(await response.arrayBuffer());
  const download = async (url) => {
    assert(url.startsWith(`${base}/`), url);
    const response = await fetch(url);
    assert.equal(response.status, 200, url);
    return bytesOf(response);
  };
  /** What the server keeps of a request. */
  const kept = async (requestId) => {
    const query = new URLSearchParams({ endpoint_id: endpoint, request_id: requestId, expand: "payloads" });
    const response = await fetch(`${base}/v1/models/requests/by-endpoint?${query}`, { headers: { authorization } });
    assert.equal(response.status, 200);
    return (await response.json()).items[0];
  };

  const cases = {
    async "a small upload comes back byte for byte"() {
      const bytes = randomBytes(300_000);
      const file = new File([bytes], "Clips ä (1).zip", { type: "application/zip" });
      const url = await fal.storage.upload(file);
      assert.equal(decodeURIComponent(new URL(url).pathname.split("/").at(-1)), file.name);
      assert(bytes.equals(await download(url)));
      const head = await fetch(url, { method: "HEAD" });
      assert.equal(head.headers.get("content-type"), "application/zip");
      assert.equal(head.headers.get("content-length"), "300000");
      const part = await fetch(url, { headers: { range: "bytes=-1000" } });
      assert.equal(part.status, 206);
      assert(bytes.subarray(-1000).equals(await bytesOf(part)));
    },

    async "an upload without a name gets one from its type"() {
      const url = await fal.storage.upload(new Blob(["words"], { type: "text/plain" }));
      assert.match(url, /\/\d+\.plain$/);
      assert.equal((await download(url)).toString(), "words");
    },

    async "files anywhere in the input are uploaded by the client"() {
      const [archive, clip] = [randomBytes(50_000), randomBytes(20_000)];
      const { request_id: requestId } = await fal.queue.submit(endpoint, {
        input: {
          ...script({ steps: 1 }),
          training_data_url: new File([archive], "clips.zip", { type: "application/zip" }),
          validation: [{ prompt: "a clip", reference_video_url: new Blob([clip], { type: "video/mp4" }) }],
        },
      });
      const status = await finished(requestId);
      assert(!status.error, status.error);
      const { json_input: input } = await kept(requestId);
      assert(archive.equals(await download(input.training_data_url)));
      assert(clip.equals(await download(input.validation[0].reference_video_url)));
    },

    async "a data URI in the input is kept as a file"() {
      const archive = randomBytes(3 * MIB);
      const { request_id: requestId } = await fal.queue.submit(endpoint, {
        input: {
          ...script({ steps: 1 }),
          training_data_url: `data:application/zip;base64,${archive.toString("base64")}`,
        },
      });
      const status = await finished(requestId);
      assert(!status.error, status.error);
      const { json_input: input } = await kept(requestId);
      assert(archive.equals(await download(input.training_data_url)));
    },

    async "the files of a result can be read by everybody, or by whom the submit says"() {
      const result = await fal.subscribe(endpoint, { input: script({ log: "hello" }), pollInterval: 50 });
      const { lora_file: lora, config_file: config } = result.data;
      const weights = await download(lora.url);
      assert.equal(weights.length, lora.file_size);
      assert.deepEqual(JSON.parse(await download(config.url)), [{ log: "hello" }]);
      const { request_id: requestId } = await fal.queue.submit(endpoint, {
        input: script({ steps: 1 }),
        storageSettings: { expiresIn: "1h", initialAcl: { default: "forbid" } },
      });
      await finished(requestId);
      const hidden = await fal.queue.result(endpoint, { requestId });
      assert.equal((await fetch(hidden.data.lora_file.url)).status, 403);
      assert.equal((await fetch(hidden.data.lora_file.url, { headers: { authorization } })).status, 200);
    },

    async "a lifecycle says how long a file lives and who reads it"() {
      const url = await fal.storage.upload(new Blob(["secret"]), {
        lifecycle: { expiresIn: 2, initialAcl: { default: "hide" } },
      });
      assert.equal((await fetch(url)).status, 404);
      const own = await fetch(url, { headers: { authorization } });
      assert.equal(await own.text(), "secret");
      assert.match(own.headers.get("cache-control"), /^private, max-age=[012]$/);
      await new Promise((done) => setTimeout(done, 2500));
      assert.equal((await fetch(url, { headers: { authorization } })).status, 404);
    },

    async "a page on another origin may make every call"() {
      const url = await fal.storage.upload(new Blob(["x"]));
      const calls = [
        ["POST", "/api/fal/proxy", "authorization,content-type,x-fal-target-url,x-fal-queue-priority"],
        ["POST", `/queue/${endpoint}`, "authorization,content-type,x-fal-queue-priority"],
        ["POST", "/rest/storage/upload/initiate", "authorization,content-type,x-fal-object-lifecycle"],
        ["PUT", "/cdn/files/put/00000000-0000-4000-8000-000000000000?secret=x", "content-type"],
        ["GET", new URL(url).pathname, "range"],
      ];
      const origin = "https://page.example";
      for (const [method, path, headers] of calls) {
        const asked = {
          origin,
          "access-control-request-method": method,
          "access-control-request-headers": headers,
          "access-control-request-private-network": "true",
        };
        const answer = await fetch(base + path, { method: "OPTIONS", headers: asked });
        const allowed = (name) => answer.headers.get(`access-control-allow-${name}`) ?? "";
        assert([200, 204].includes(answer.status), `${path}: ${answer.status}`);
        assert.equal(allowed("origin"), "*", path);
        assert(allowed("methods").includes(method), path);
        for (const header of headers.split(",")) assert(allowed("headers").toLowerCase().includes(header), `${path}: ${header}`);
        assert.equal(allowed("private-network"), "true", path);
      }
      for (const path of [`/queue/${endpoint}/requests/x`, new URL(url).pathname]) {
        const answer = await fetch(base + path, { headers: { origin } });
        assert.equal(answer.headers.get("access-control-allow-origin"), "*", path);
        assert.match(answer.headers.get("access-control-expose-headers"), /x-fal-request-id/i, path);
      }
    },
  };

  // The parts go straight to the server whichever way the client was pointed at it: once is enough.
  if (way === "proxy") {
    cases["an upload past 90 MiB goes in parts and comes back byte for byte"] = async () => {
      const block = randomBytes(MIB);
      const last = randomBytes(12_345);
      const blocks = Array.from({ length: 91 }, (_, n) => {
        const copy = Buffer.from(block);
        copy.writeUInt32BE(n);
        return copy;
      });
      const file = new File([...blocks, last], "big.bin", { type: "application/octet-stream" });
      const url = await fal.storage.upload(file);
      const whole = Buffer.concat([...blocks, last]);
      const got = await download(url);
      assert.equal(got.length, whole.length);
      assert.equal(sha256(got), sha256(whole));
      const [from, to] = [10 * MIB - 5, 10 * MIB + 5];
      const across = await fetch(url, { headers: { range: `bytes=${from}-${to - 1}` } });
      assert(whole.subarray(from, to).equals(await bytesOf(across)), "a range over the edge of a part");
    };
  }
  return cases;
};
