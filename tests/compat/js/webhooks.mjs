// Cases about webhooks: delivered to a receiver, and verified with the algorithm that fal publishes.

import assert from "node:assert/strict";
import { createHash, webcrypto } from "node:crypto";
import { createRequire } from "node:module";
import { createServer } from "node:http";
import { once } from "node:events";
import path from "node:path";

const require = createRequire(path.join(process.env.CLIENT_FOLDER, "package.json"));
const sodium = require("libsodium-wrappers");
const LEEWAY_SECONDS = 300;

/** A receiver on a free port; `next()` is the next delivery. */
const receiver = async () => {
  const deliveries = [];
  const waiting = [];
  const server = createServer((request, response) => {
    const chunks = [];
    request.on("data", (chunk) => chunks.push(chunk));
    request.on("end", () => {
      response.end();
      const delivery = { target: request.url, headers: request.headers, body: Buffer.concat(chunks) };
      const wanted = waiting.shift();
      if (wanted) wanted(delivery);
      else deliveries.push(delivery);
    });
  });
  server.listen(0, "127.0.0.1");
  await once(server, "listening");
  return {
    url: `http://127.0.0.1:${server.address().port}`,
    next: async () => deliveries.shift() ?? new Promise((done) => waiting.push(done)),
    close: () => server.close(),
  };
};

/** What the signature is over, or why there is nothing to verify. */
const signed = ({ headers, body }) => {
  const [id, user, timestamp] = ["request-id", "user-id", "timestamp"].map((name) => headers[`x-fal-webhook-${name}`]);
  assert(Math.abs(Date.now() / 1000 - Number(timestamp)) <= LEEWAY_SECONDS, `timestamp: ${timestamp}`);
  const digest = createHash("sha256").update(body).digest("hex");
  return Buffer.from([id, user, timestamp, digest].join("\n"), "utf-8");
};

/** As fal documents it for JavaScript: libsodium, any key of the set, keys that cannot be used are passed over. */
const verify = (keys, delivery) => {
  const signature = Buffer.from(delivery.headers["x-fal-webhook-signature"], "hex");
  const message = signed(delivery);
  return keys.some(({ x }) => {
    try {
      return sodium.crypto_sign_verify_detached(signature, message, Buffer.from(x, "base64url"));
    } catch {
      return false;
    }
  });
};

/** With what is built into browsers, servers and workers. */
const verifyByWebCrypto = async (key, delivery) => {
  const { kty, crv, x } = key;
  const imported = await webcrypto.subtle.importKey("jwk", { kty, crv, x }, { name: "Ed25519" }, false, ["verify"]);
  const signature = Buffer.from(delivery.headers["x-fal-webhook-signature"], "hex");
  return webcrypto.subtle.verify({ name: "Ed25519" }, imported, signature, signed(delivery));
};

export const webhooks = ({ fal, base, endpoint, script, finished }) => {
  const keySet = async (address) => {
    const response = await fetch(address);
    assert.equal(response.status, 200);
    const [, seconds] = /^public, max-age=(\d+)$/.exec(response.headers.get("cache-control"));
    assert(Number(seconds) <= 86_400, `${seconds}`);
    return (await response.json()).keys;
  };
  return {
    async "a webhook tells the result and is signed"() {
      await sodium.ready;
      const hook = await receiver();
      const { request_id: requestId } = await fal.queue.submit(endpoint, {
        input: script({ steps: 2 }),
        webhookUrl: `${hook.url}/hook?for=you&name=a%20b`,
      });
      const delivery = await hook.next();
      hook.close();
      assert.equal(delivery.target, "/hook?for=you&name=a%20b");
      assert.equal(delivery.headers["content-type"], "application/json");
      assert.equal(delivery.headers["x-fal-webhook-request-id"], requestId);
      const told = JSON.parse(delivery.body);
      assert.equal(told.request_id, requestId);
      assert.equal(told.status, "OK");
      assert.equal((await finished(requestId)).status, "COMPLETED");
      const result = await fal.queue.result(endpoint, { requestId });
      assert.equal(told.payload.lora_file.file_size, result.data.lora_file.file_size);
      const told_weights = await fetch(told.payload.lora_file.url);
      assert.equal(told_weights.status, 200, told.payload.lora_file.url);

      const keys = await keySet(`${base}/rest/.well-known/jwks.json`);
      assert.deepEqual(keys, await keySet(`${base}/.well-known/jwks.json`));
      assert(verify(keys, delivery));
      const standard = keys.filter(({ x }) => !x.endsWith("="));
      assert.equal(standard.length, keys.length / 2, "every key in both forms");
      assert(await verifyByWebCrypto(standard[0], delivery));
      assert(!verify(keys, { ...delivery, body: Buffer.concat([delivery.body, Buffer.from(" ")]) }), "another body");
      const headers = { ...delivery.headers, "x-fal-webhook-user-id": "somebody" };
      assert(!verify(keys, { ...delivery, headers }), "another user");
    },

    async "a webhook tells a failure"() {
      await sodium.ready;
      const hook = await receiver();
      const { request_id: requestId } = await fal.queue.submit(endpoint, {
        input: script({ fail: "archive" }),
        webhookUrl: hook.url,
      });
      const delivery = await hook.next();
      hook.close();
      assert(verify(await keySet(`${base}/rest/.well-known/jwks.json`), delivery));
      const told = JSON.parse(delivery.body);
      assert.deepEqual([told.request_id, told.status, told.error], [requestId, "ERROR", "Invalid status code: 422"]);
      assert.equal(told.payload.detail[0].type, "invalid_archive");
    },
  };
};
