// Keeps the release's files for visits without a network, and answers with the headers that a plain file server does
// not give: with them the page may use several cores, and neither page nor workers may ask anywhere else.

importScripts("release.js"); // RELEASE: { version, policy, files: { name: SHA-256 in hexadecimal digits } }

const { version, policy, files } = self.RELEASE;
const CACHE = `clip-koa-${version}`;
const BASE = new URL("./", self.location.href).href;
const FIRST = ["index.html", "page/page.css"]; // what the page is loaded again with
const HEADERS = {
  "content-security-policy": policy,
  "cross-origin-embedder-policy": "require-corp",
  "cross-origin-opener-policy": "same-origin",
  "cross-origin-resource-policy": "same-origin",
  "referrer-policy": "no-referrer",
  "x-content-type-options": "nosniff",
};

self.addEventListener("install", (event) => {
  if (!self.registration.active) self.skipWaiting(); // else pages of the old release go on with its files
  event.waitUntil(Promise.all(FIRST.map(fetched)));
});

self.addEventListener("activate", (event) => {
  const clean = async () => {
    for (const name of await caches.keys()) if (name.startsWith("clip-koa-") && name !== CACHE) await caches.delete(name);
    await self.clients.claim();
  };
  event.waitUntil(clean());
});

self.addEventListener("message", (event) => {
  if (event.data !== "fill") return;
  const fill = async () => {
    for (const name of Object.keys(files)) await kept(name);
    for (const client of await self.clients.matchAll()) client.postMessage("filled");
  };
  event.waitUntil(fill());
});

self.addEventListener("fetch", (event) => {
  const { request } = event;
  const url = new URL(request.url);
  const name = url.href.startsWith(BASE) ? decodeURIComponent(url.pathname.slice(new URL(BASE).pathname.length)) || "index.html" : null;
  if (request.method !== "GET" || !(name in files)) return;
  event.respondWith(kept(name).then(withHeaders));
});

// A file of this release, out of the cache or else fetched into it.
async function kept(name) {
  const cache = await caches.open(CACHE);
  return (await cache.match(BASE + name)) ?? (await fetched(name));
}

// Fetches a file, and refuses another release's: its digest tells.
async function fetched(name) {
  const digest = btoa(String.fromCharCode(...files[name].match(/../g).map((byte) => parseInt(byte, 16))));
  const integrity = name === "index.html" ? "" : `sha256-${digest}`; // hosts may add lines to a page, which its policy stops
  const answer = await fetch(BASE + name, { integrity, cache: "no-cache", credentials: "same-origin" });
  if (!answer.ok) return answer;
  await (await caches.open(CACHE)).put(BASE + name, answer.clone());
  return answer;
}

function withHeaders(answer) {
  const headers = new Headers(answer.headers);
  for (const [name, value] of Object.entries(HEADERS)) headers.set(name, value);
  return new Response(answer.body, { status: answer.status, statusText: answer.statusText, headers });
}
