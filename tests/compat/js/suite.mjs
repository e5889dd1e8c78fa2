// The official JavaScript client against a real server and the scripted worker.
//
//   KILN_URL=… FAL_KEY=… node suite.mjs WAY     WAY: how the client is pointed at the server
//
// One line is printed per case; the exit status is 1 when one failed.

import assert from "node:assert/strict";
import { pathToFileURL } from "node:url";
import path from "node:path";
import { files } from "./files.mjs";
import { webhooks } from "./webhooks.mjs";

// The client lives in a cache folder outside the sources.
const entry = path.join(process.env.CLIENT_FOLDER, "node_modules/@fal-ai/client/src/index.js");
const { fal, createFalClient, ApiError, ValidationError } = (await import(pathToFileURL(entry))).default;

const base = process.env.KILN_URL;
const endpoint = "fal-ai/ltx23-trainer-v2/av2av";

const services = { "queue.fal.run": "queue", "fal.run": "run", "rest.fal.ai": "rest" };
const ways = {
  proxy: { proxyUrl: { url: `${base}/api/fal/proxy`, when: "always" } },
  middleware: {
    requestMiddleware: async (request) => {
      const url = new URL(request.url);
      return { ...request, url: `${base}/${services[url.host]}${url.pathname}${url.search}` };
    },
  },
  // preload.mjs replaced the global fetch: the program says nothing.
  preload: {},
};
const way = ways[process.argv[2]];
assert(way, `no such way: ${process.argv[2]}`);
fal.config({ credentials: process.env.FAL_KEY, ...way });

const script = (...acts) => ({
  training_data_url: "https://data.invalid/clips.zip",
  trigger_phrase: JSON.stringify(acts),
});
const finished = async (requestId) => {
  for (;;) {
    const status = await fal.queue.status(endpoint, { requestId, logs: true });
    if (status.status === "COMPLETED") return status;
    await new Promise((done) => setTimeout(done, 50));
  }
};
const context = { fal, base, endpoint, script, finished, way: process.argv[2] };
const error = async (promise) => promise.then((value) => assert.fail(JSON.stringify(value)), (reason) => reason);

const cases = {
  async "submit, status and result"() {
    const submitted = await fal.queue.submit(endpoint, { input: script({ steps: 3 }) });
    assert.match(submitted.request_id, /^[0-9a-f-]{36}$/);
    assert.equal(submitted.status, "IN_QUEUE");
    const status = await finished(submitted.request_id);
    assert.deepEqual(status.logs.map((line) => line.message), ["step 1 of 3", "step 2 of 3", "step 3 of 3"]);
    assert.deepEqual(Object.keys(status.logs[0]).filter((k) => ["message", "level", "source", "timestamp"].includes(k)).sort(), ["level", "message", "source", "timestamp"]);
    assert.equal(typeof status.metrics.inference_time, "number");
    const result = await fal.queue.result(endpoint, { requestId: submitted.request_id });
    assert.equal(result.requestId, submitted.request_id);
    assert.match(result.data.lora_file.url, /\.safetensors$/);
    assert.equal(result.data.config_file.file_name, "config.json");
    assert(!("video" in result.data), "a file that does not apply is left out");
  },

  async "subscribe by polling, with logs"() {
    const seen = [];
    const result = await fal.subscribe(endpoint, {
      input: script({ steps: 4, ms: 300 }),
      logs: true,
      pollInterval: 100,
      onQueueUpdate: (update) => seen.push([update.status, update.logs?.length ?? null]),
    });
    assert(result.data.lora_file.url);
    const states = seen.map(([state]) => state);
    assert.deepEqual([...new Set(states)].filter((state) => state !== "IN_QUEUE"), ["IN_PROGRESS", "COMPLETED"]);
    const counts = seen.filter(([state]) => state !== "IN_QUEUE").map(([, count]) => count);
    assert(counts.every((count, i) => i === 0 || count >= counts[i - 1]), `cumulative: ${counts}`);
    assert.equal(counts.at(-1), 4);
  },

  async "subscribe by streaming, with logs"() {
    const seen = [];
    const result = await fal.subscribe(endpoint, {
      input: script({ log: "grüße 🔥" }, { steps: 4, ms: 300 }),
      logs: true,
      mode: "streaming",
      onQueueUpdate: (update) => seen.push(update),
    });
    assert(result.data.lora_file.url);
    assert(seen.some((update) => update.status === "IN_PROGRESS"));
    const last = seen.at(-1);
    assert.equal(last.status, "COMPLETED");
    // Every event carries the lines since the last one: together they are all lines, once.
    const lines = seen.flatMap((update) => update.logs ?? []).map((line) => line.message);
    assert.deepEqual(new Set(lines), new Set(["grüße 🔥", ...[1, 2, 3, 4].map((n) => `step ${n} of 4`)]));
  },

  async "run and wait"() {
    const result = await fal.run(endpoint, { input: script({ steps: 2, ms: 10 }) });
    assert(result.data.lora_file.url);
    assert.match(result.requestId, /^[0-9a-f-]{36}$/);
  },

  async "the result of a running request is a 400"() {
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input: script({ sleep: 1500 }) });
    const reason = await error(fal.queue.result(endpoint, { requestId }));
    assert(reason instanceof ApiError);
    assert.equal(reason.status, 400);
    assert.deepEqual(reason.body, { detail: "Request is still in progress" });
    await finished(requestId);
  },

  async "cancel a running request"() {
    const { request_id: requestId } = await fal.queue.submit(endpoint, { input: script({ steps: 6000, ms: 20 }) });
    for (let state; state !== "IN_PROGRESS"; ) ({ status: state } = await fal.queue.status(endpoint, { requestId }));
    await fal.queue.cancel(endpoint, { requestId });
    const status = await finished(requestId);
    assert.equal(status.error_type, "client_cancelled");
    const reason = await error(fal.queue.result(endpoint, { requestId }));
    assert.equal(reason.status, 499);
    assert.equal(reason.body.error_type, "client_cancelled");
    const again = await error(fal.queue.cancel(endpoint, { requestId }));
    assert.equal(again.status, 400);
    assert.deepEqual(again.body, { status: "ALREADY_COMPLETED" });
  },

  async "an invalid field is a ValidationError with its field"() {
    const reason = await error(fal.subscribe(endpoint, { input: { rank: "many", training_data_url: 5 }, pollInterval: 50 }));
    assert(reason instanceof ValidationError, String(reason));
    assert.equal(reason.status, 422);
    assert.equal(reason.message, "Unprocessable Entity");
    assert.equal(reason.getFieldErrors("training_data_url")[0].type, "string_type");
    assert.deepEqual(reason.getFieldErrors("rank")[0].loc, ["body", "rank"]);
    assert(reason.requestId);
  },

  async "no input at all is a ValidationError"() {
    const reason = await error(fal.subscribe(endpoint, { pollInterval: 50 }));
    assert(reason instanceof ValidationError, String(reason));
    assert.equal(reason.fieldErrors[0].type, "missing");
  },

  async "a fault that the worker finds is a ValidationError"() {
    const reason = await error(fal.subscribe(endpoint, { input: script({ fail: "archive" }), pollInterval: 50 }));
    assert(reason instanceof ValidationError, String(reason));
    const [problem] = reason.getFieldErrors("training_data_url");
    assert.equal(problem.type, "invalid_archive");
    assert.deepEqual(problem.ctx, { supported_extensions: [".zip"] });
  },

  async "a bug is a 500 without its cause"() {
    const reason = await error(fal.subscribe(endpoint, { input: script({ fail: "bug" }), pollInterval: 50 }));
    assert(reason instanceof ApiError && !(reason instanceof ValidationError));
    assert.equal(reason.status, 500);
    assert.equal(reason.body.detail[0].type, "internal_server_error");
    assert(!JSON.stringify(reason.body).includes("secret"), JSON.stringify(reason.body));
  },

  async "a wrong key is a 401"() {
    const stranger = createFalClient({ ...way, credentials: "stranger:0000" });
    const reason = await error(stranger.queue.submit(endpoint, { input: script() }));
    assert(reason instanceof ApiError);
    assert.equal(reason.status, 401);
    assert.equal(reason.message, "Unauthorized");
  },

  async "an unknown request is a 404"() {
    const requestId = "00000000-0000-4000-8000-000000000000";
    for (const call of [fal.queue.status, fal.queue.result, fal.queue.cancel]) {
      const reason = await error(call(endpoint, { requestId }));
      assert.equal(reason.status, 404);
      assert.deepEqual(reason.body, { status: "NOT_FOUND" });
    }
  },

  async "an unknown endpoint is a 404"() {
    const reason = await error(fal.queue.submit("fal-ai/ltx23-trainer-v2/av3av", { input: script() }));
    assert.equal(reason.status, 404);
    assert.deepEqual(reason.body, { detail: "Path /av3av not found" });
  },

  ...files(context),
  ...webhooks(context),
};

let failed = 0;
for (const [name, run] of Object.entries(cases)) {
  const started = Date.now();
  try {
    await run();
    console.log(`ok   ${name} (${Date.now() - started} ms)`);
  } catch (reason) {
    failed += 1;
    console.log(`FAIL ${name}: ${reason.stack}`);
  }
}
console.log(`${Object.keys(cases).length - failed} of ${Object.keys(cases).length} cases`);
process.exit(failed ? 1 : 0);
