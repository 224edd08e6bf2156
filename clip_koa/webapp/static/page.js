// The page: takes X-rays, sends them one after the other, shows what comes back, and forgets all when it is left.

import { buildCard } from "./card.js";
import { h, loadTexts, t } from "./dom.js";
import { gradeName, isShown, labelOf, pending, siblings, sideName, spoken, takeKnees } from "./items.js";
import { post, Refused } from "./requests.js";
import { XrayTable } from "./table.js";

const find = (selector) => document.querySelector(selector);
const settings = document.body.dataset;

const page = {
  language: document.documentElement.lang,
  level: settings.level,
  items: [], // {key, name, file or example, facts, error, side, view, opacity, against, film}: see items.js
  chosen: null,
  chosenByHand: false,
  visit: null, // promise of its token
  token: null,
  asked: new Map(), // of each film the promise of its last answer
  sending: 0,
  url: (item) => `visit/${page.token}/xrays/${item.facts.id}`,
  choose(item) {
    page.chosenByHand = true;
    show(item);
    announce(spoken(item));
  },
  ask,
  take: (item, knees) => takeKnees(page, item, knees, newKey),
  busy(item, words) {
    if (page.chosen === item) find("#card .card")?.classList.add("stale");
    announce(words);
  },
  settled(item, focus) {
    if (focus || page.chosen === item || !page.items.includes(page.chosen)) show(item, focus);
    else buildList();
    announce(spoken(item));
  },
  failed(error) {
    if (error.code === "ended") return endVisit();
    if (page.chosen) show(page.chosen);
    announce(error instanceof Refused ? error.message : t("unreachable"));
  },
  sideChanged: () => buildList(),
  listChanged: () => buildList(),
  forget,
};
const table = new XrayTable(page);
let count = 0;
const newKey = () => `xray-${++count}`;

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

function leave() {
  page.alive?.close();
  if (page.token) navigator.sendBeacon(`visit/${page.token}/leave`);
  Object.assign(page, { visit: null, token: null, items: [], chosen: null, alive: null, asked: new Map() });
  buildList();
  find("#card").replaceChildren();
  find("#results").hidden = true;
  showProgress();
  announce("");
}

// --- uploads

async function add(newItems) {
  await ready;
  find("#trouble").hidden = true;
  page.chosenByHand = false;
  const batch = newItems.map((item) => ({ ...item, key: newKey() }));
  page.items.push(...batch);
  page.batch = page.items.filter((item) => pending(item) || batch.includes(item));
  find("#results").hidden = false;
  if (!page.token) find("#card").replaceChildren();
  buildList();
  showProgress();
  announce(t("progress", { done: 0, all: batch.length }));
  for (let free = Number(settings.atOnce) - page.sending; free > 0; free--) sendNext();
}

async function sendNext() {
  const item = page.items.find((other) => pending(other) && !other.sent);
  if (!item) return;
  item.sent = true;
  page.sending += 1;
  try {
    await send(item);
  } finally {
    page.sending -= 1;
  }
  if (page.items.includes(item)) arrived(item);
  sendNext();
}

async function send(item) {
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

function arrived(item) {
  const better = page.chosen && !isShown(page.chosen) && isShown(item);
  if (page.chosen === item || (!page.chosenByHand && (better || !page.batch.includes(page.chosen)))) {
    show(item);
    comeIntoView();
  }
  buildList();
  showProgress();
  const batch = page.batch.filter((other) => page.items.includes(other));
  if (batch.some(pending)) return;
  const graded = batch.filter((other) => siblings(other, page.items).some(isShown)).length;
  const sum = batch.length > 1 ? `${t("all_done", { graded, refused: batch.length - graded })} ` : "";
  announce(sum + (page.chosen ? siblings(page.chosen, page.items).map(spoken).join(" ") : ""));
}

// --- what is shown

// Shows a card and leaves the keyboard where it was, or puts it on the part that is named.
function show(item, focus = find("#card").contains(document.activeElement) && document.activeElement.dataset.focus) {
  page.chosen = item;
  find("#card").replaceChildren(buildCard(item, page));
  if (focus) find(`#card [data-focus="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  buildList();
}

// Builds the list anew and leaves the keyboard where it was.
function buildList() {
  const focused = document.activeElement?.dataset?.focus;
  const scrolled = find("#list .table")?.scrollLeft ?? 0;
  find("#list").replaceChildren(...(page.items.length > 1 ? [table.build(page.items)] : []));
  find(".tools").hidden = !page.items.length;
  if (focused) find(`#list [data-focus="${focused}"]`)?.focus({ preventScroll: true });
  if (scrolled) find("#list .table").scrollLeft = scrolled;
}

function showProgress() {
  const batch = (page.batch ?? []).filter((item) => page.items.includes(item));
  const done = batch.filter((item) => !pending(item)).length;
  const busy = done < batch.length;
  find("#progress").hidden = !busy;
  find("#progress progress").value = busy ? done / batch.length : 0;
  find("#count").textContent = busy ? t("progress", { done, all: batch.length }) : "";
}

function comeIntoView() {
  const { top } = find("#results").getBoundingClientRect();
  if (top >= 0 && top < innerHeight / 3) return;
  const calm = matchMedia("(prefers-reduced-motion: reduce)").matches;
  find("#results").scrollIntoView({ block: "start", behavior: calm ? "auto" : "smooth" });
}

function announce(words) {
  find("#status").textContent = words;
}

function trouble(words) {
  find("#trouble span").textContent = words;
  find("#trouble").hidden = false;
}

async function forget(item) {
  const name = labelOf(item, page.items);
  page.items = page.items.filter((other) => other !== item);
  if (item.facts) drop(item.facts.id);
  const next = page.items.find((other) => other.facts) ?? page.items.find((other) => !pending(other));
  if (next) show(next);
  else find("#card").replaceChildren();
  page.chosen = next ?? null;
  buildList();
  find("#results").hidden = !page.items.length;
  find(page.items.length ? "#results-title" : "#file").focus();
  announce(t("forgotten_one", { name }));
}

function forgetAll() {
  leave();
  find("#file").focus();
  announce(t("forgotten"));
}

async function speak(language) {
  await loadTexts(language);
  page.language = language;
  document.documentElement.lang = language;
  document.title = `CLIP-KOA: ${t("title")}`;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text, settings);
  for (const button of document.querySelectorAll("[data-example]")) {
    const { grade, side } = button.dataset;
    button.setAttribute("aria-label", t("example", { grade: gradeName(grade), side: sideName(side) }));
  }
  find("#progress progress").setAttribute("aria-label", t("results"));
  if (page.chosen) show(page.chosen);
  buildList();
  showProgress();
}

// --- events

function takeFiles(files) {
  if (files.length) add([...files].map((file) => ({ name: file.name, file })));
}

find("#file").addEventListener("change", (event) => {
  takeFiles([...event.target.files]);
  event.target.value = ""; // so that the same file can be chosen again
});
for (const button of document.querySelectorAll("[data-example]"))
  button.addEventListener("click", () => add([{ name: button.dataset.example, example: button.dataset.example }]));
find("#forget").addEventListener("click", forgetAll);
find("#trouble button").addEventListener("click", () => {
  find("#trouble").hidden = true;
  for (const item of page.items.filter((other) => other.error !== undefined)) Object.assign(item, { error: undefined, sent: false });
  page.batch = page.items;
  for (let free = Number(settings.atOnce) - page.sending; free > 0; free--) sendNext();
});
find("#language").addEventListener("change", (event) => {
  history.replaceState(null, "", `?lang=${event.target.value}`);
  speak(event.target.value);
});
const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
document.addEventListener("dragover", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  find("#over").hidden = false;
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) find("#over").hidden = true;
});
document.addEventListener("drop", (event) => {
  if (!carriesFiles(event)) return;
  event.preventDefault();
  find("#over").hidden = true;
  takeFiles([...event.dataTransfer.files]);
});
addEventListener("pagehide", leave);
addEventListener("pageshow", (event) => event.persisted && speak(page.language));

const ready = speak(page.language);
await ready;
document.body.dataset.ready = "true";
