// The page of a server: a visit, whose X-rays the server grades and forgets when it is left.

import { h, t } from "./dom.js";
import { post, Refused } from "./requests.js";
import { heatControls, renewReports, reports } from "./server_card.js";
import { announce, find, leave, page, settings, show, start, trouble } from "./shell.js";

const { sideChanged } = page;
Object.assign(page, {
  visit: null, // promise of its token
  token: null,
  asked: new Map(), // of each film the promise of its last answer
  url: (item) => `visit/${page.token}/xrays/${item.facts.id}`,
  picture: (item, kind) => `${page.url(item)}/${kind}.png`,
  grade,
  placeBox: (item, box, isNew) => ask(item, `box?${edges(box)}${isNew ? "&new=true" : ""}`),
  frame: (item, to) => ask(item, `framing?to=${to}`),
  heatControls: (item, viewer) => heatControls(item, page, viewer),
  reports: (item) => reports(item, page),
  sideChanged(item) {
    sideChanged(item);
    renewReports(item, page);
  },
  drop: (item) => drop(item.facts.id),
  clear() {
    page.alive?.close();
    if (page.token) navigator.sendBeacon(`visit/${page.token}/leave`);
    Object.assign(page, { visit: null, token: null, alive: null, asked: new Map() });
  },
  failed(error) {
    if (error.code === "ended") return endVisit();
    if (page.chosen) show(page.chosen);
    announce(error instanceof Refused ? error.message : t("unreachable"));
  },
});
const edges = (box) => ["left", "top", "right", "bottom"].map((edge, place) => `${edge}=${box[place]}`).join("&");

// --- visit

function openVisit() {
  page.visit ??= fetch("visit", { method: "POST" }).then(async (answer) => {
    const body = await answer.json();
    if (!answer.ok) throw new Refused(body);
    page.token = body.token;
    page.alive = new EventSource(`visit/${page.token}/alive`);
    page.alive.addEventListener("ended", endVisit);
    page.alive.addEventListener("error", () => page.alive.readyState === EventSource.CLOSED && endVisit());
    find("#csv").href = `visit/${page.token}/table.csv`;
    return page.token;
  });
  page.visit.catch(() => (page.visit = null));
  return page.visit;
}

// The server keeps nothing of this visit any more: neither does the page.
function endVisit() {
  if (!page.token) return;
  leave();
  find("#card").replaceChildren(h("p", { class: "ended", role: "alert" }, t("ended")));
  find("#results").hidden = false;
}

// --- uploads

async function grade(item) {
  try {
    if (item.file) await check(item.file);
    const token = await openVisit();
    const path = item.file ? "xrays" : `examples/${item.example}`;
    const query = new URLSearchParams({ name: item.name, framing: find("#framing :checked")?.value ?? "auto" });
    const { knees } = await post(`visit/${token}/${path}?${query}`, item.file);
    if (knees[0].error) Object.assign(item, { error: knees[0].error, foreign: true });
    else if (page.items.includes(item)) page.take(item, knees);
  } catch (error) {
    if (error.code === "ended" && page.items.includes(item)) return endVisit();
    item.error = error instanceof Refused ? error.message : t("unreachable");
    if (error.code === "full") trouble(item.error);
  }
}

async function check(file) {
  if (file.size > Number(settings.fileBytes)) throw new Refused({ refused: "too_large", values: { megabytes: settings.megabytes } });
  await file.slice(0, 1).arrayBuffer().catch(() => {
    throw new Refused({ refused: "unreadable" }); // a folder
  });
}

// What the server says to a question about a film, one after the other; nothing where the item is gone by then.
function ask(item, path) {
  const film = item.facts.film;
  const asked = (page.asked.get(film) ?? Promise.resolve()).catch(() => {}).then(() => {
    const isThere = page.items.includes(item) && (item.facts.cut || path.startsWith("framing"));
    return isThere ? post(`${page.url(item)}/${path}`) : undefined;
  });
  page.asked.set(film, asked);
  const isHere = () => page.items.includes(item);
  return asked.then((answer) => (isHere() ? answer : dropOrphans(answer)), (error) => (isHere() ? Promise.reject(error) : undefined));
}

// A knee that was forgotten while it was graded anew is there again, under another number.
function dropOrphans(answer) {
  const known = page.items.map((other) => other.facts?.id);
  for (const { id } of answer?.knees ?? []) if (!known.includes(id)) drop(id);
}

const drop = (id) => fetch(`visit/${page.token}/xrays/${id}`, { method: "DELETE" });

await start();
