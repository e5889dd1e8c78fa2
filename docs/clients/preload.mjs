// Points an unchanged program that uses @fal-ai/client at a kiln server:
//
//   KILN_URL=http://127.0.0.1:8080 NODE_OPTIONS="--import=/path/to/preload.mjs" node program.mjs
//
// The client takes the global fetch when it is configured, so this file must run before the program.

const services = {
  "queue.fal.run": "queue",
  "fal.run": "run",
  "rest.fal.ai": "rest",
  "rest.alpha.fal.ai": "rest",
  "v3.fal.media": "cdn",
  "v3b.fal.media": "cdn",
};

const kiln = process.env.KILN_URL?.replace(/\/+$/, "");
if (!kiln) throw new Error("KILN_URL is not set: the address of the kiln server, as in http://127.0.0.1:8080");

/** The address on kiln for one of fal's; any other address unchanged. */
function rewrite(address) {
  const url = new URL(address);
  const service = services[url.host];
  return service ? `${kiln}/${service}${url.pathname}${url.search}` : address;
}

const original = globalThis.fetch;
globalThis.fetch = (input, init) =>
  input instanceof Request
    ? original(new Request(rewrite(input.url), input), init)
    : original(rewrite(String(input)), init);
