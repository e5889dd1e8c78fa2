// One upload by the official JavaScript client, read from the disk as it is sent.
//
//   CLIENT_FOLDER=… KILN_URL=… FAL_KEY=… node upload.mjs FILE     prints the file's address

import { openAsBlob } from "node:fs";
import { pathToFileURL } from "node:url";
import path from "node:path";

const entry = path.join(process.env.CLIENT_FOLDER, "node_modules/@fal-ai/client/src/index.js");
const { fal } = (await import(pathToFileURL(entry))).default;
fal.config({
  credentials: process.env.FAL_KEY,
  proxyUrl: { url: `${process.env.KILN_URL}/api/fal/proxy`, when: "always" },
});
console.log(await fal.storage.upload(await openAsBlob(process.argv[2])));
