// A page on another origin than the server's: the official client in a real browser. Reports to the page's own server.

import { fal, ValidationError } from "@fal-ai/client";

const { base, key } = await (await fetch("/settings.json")).json();
const endpoint = "fal-ai/ltx23-trainer-v2/av2av";
const MIB = 1 << 20;

fal.config({ credentials: key, proxyUrl: { url: `${base}/api/fal/proxy`, when: "always" } });

const check = (holds, what) => {
  if (!holds) throw new Error(what);
};
const script = (...acts) => ({
  training_data_url: "https://data.invalid/clips.zip",
  trigger_phrase: JSON.stringify(acts),
});
const random = (length) => {
  const bytes = new Uint8Array(length);
  // No more than this at a time.
  for (let at = 0; at < length; at += 65_536) crypto.getRandomValues(bytes.subarray(at, at + 65_536));
  return bytes;
};
const sha256 = async (bytes) => new Uint8Array(await crypto.subtle.digest("SHA-256", bytes)).join();
const same = async (url, bytes) => {
  const answer = await fetch(url);
  check(answer.ok, `${url}: ${answer.status}`);
  check((await sha256(await answer.arrayBuffer())) === (await sha256(bytes)), "other bytes came back");
};

const cases = {
  async "a file is uploaded and comes back"() {
    const bytes = random(300_000);
    const url = await fal.storage.upload(new File([bytes], "Clips ä.zip", { type: "application/zip" }));
    check(new URL(url).origin === base && base !== location.origin, url);
    await same(url, bytes);
    const part = await fetch(url, { headers: { range: "bytes=10-19" } });
    check(part.status === 206 && part.headers.get("content-range") === "bytes 10-19/300000", "a range can be seen");
  },

  async "a file past 90 MiB is uploaded in parts and comes back"() {
    const bytes = new Uint8Array(91 * MIB);
    const block = random(MIB);
    for (let n = 0; n < 91; n += 1) {
      bytes.set(block, n * MIB);
      bytes[n * MIB] = n;
    }
    await same(await fal.storage.upload(new File([bytes], "big.bin")), bytes);
  },

  async "subscribe by polling with a file in the input, and download"() {
    const lines = new Set();
    const result = await fal.subscribe(endpoint, {
      input: { ...script({ steps: 3, ms: 200 }), training_data_url: new File([random(20_000)], "clips.zip") },
      logs: true,
      pollInterval: 100,
      onQueueUpdate: (update) => update.logs?.forEach((line) => lines.add(line.message)),
    });
    check([...lines].join() === "step 1 of 3,step 2 of 3,step 3 of 3", [...lines].join());
    check(/^[0-9a-f-]{36}$/.test(result.requestId), `the request id can be seen: ${result.requestId}`);
    const weights = await fetch(result.data.lora_file.url);
    check((await weights.arrayBuffer()).byteLength === result.data.lora_file.file_size, "the whole file");
    const config = await (await fetch(result.data.config_file.url)).json();
    check(config[0].steps === 3, JSON.stringify(config));
  },

  async "subscribe by streaming"() {
    const states = new Set();
    const result = await fal.subscribe(endpoint, {
      input: script({ steps: 3, ms: 200 }),
      mode: "streaming",
      onQueueUpdate: (update) => states.add(update.status),
    });
    check(states.has("COMPLETED") && result.data.lora_file.url, [...states].join());
  },

  async "a refusal is a ValidationError with its request id"() {
    const reason = await fal.subscribe(endpoint, { input: { rank: "many" }, pollInterval: 50 }).catch((error) => error);
    check(reason instanceof ValidationError, String(reason));
    check(reason.getFieldErrors("rank").length === 1 && reason.requestId, JSON.stringify(reason.body));
  },

  async "a wrong key is a 401 and no network error"() {
    const answer = await fetch(`${base}/queue/${endpoint}`, {
      method: "POST",
      headers: { authorization: "Key stranger:0000", "content-type": "application/json" },
      body: "{}",
    });
    check(answer.status === 401, `${answer.status}`);
  },
};

const report = [];
for (const [name, run] of Object.entries(cases)) {
  const started = performance.now();
  try {
    await run();
    report.push({ name, ok: true, ms: Math.round(performance.now() - started) });
  } catch (reason) {
    report.push({ name, ok: false, reason: `${reason.stack ?? reason}` });
  }
}
await fetch("/report", { method: "POST", body: JSON.stringify(report) });
