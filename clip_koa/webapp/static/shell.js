// The page, whoever grades: takes X-rays, hands them on one after the other, shows what comes back.

import { buildCard } from "./card.js";
import { h, loadTexts, t } from "./dom.js";
import { gradeName, isShown, labelOf, pending, siblings, sideName, spoken, takeKnees } from "./items.js";
import { XrayTable } from "./table.js";

export const find = (selector) => document.querySelector(selector);
export const settings = document.body.dataset;

// Whoever grades adds: grade(item), picture(item, kind), placeBox(item, box, isNew), frame(item, to), reports(item),
// drop(item), clear(), failed(error), and heatControls(item, viewer) where there are heat maps.
export const page = {
  language: document.documentElement.lang,
  level: settings.level,
  items: [], // {key, name, file or example, facts, error, side, view, opacity, against, film}: see items.js
  chosen: null,
  chosenByHand: false,
  sending: 0,
  choose(item) {
    page.chosenByHand = true;
    show(item);
    announce(spoken(item));
  },
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
  sideChanged: () => buildList(),
  listChanged: () => buildList(),
  forget,
};
const table = new XrayTable(page);
let count = 0;
const newKey = () => `xray-${++count}`;

// --- X-rays on their way

export async function add(newItems) {
  await page.ready;
  find("#trouble").hidden = true;
  page.chosenByHand = false;
  if (!page.items.length) find("#card").replaceChildren();
  const batch = newItems.map((item) => ({ ...item, key: newKey() }));
  page.items.push(...batch);
  page.batch = page.items.filter((item) => pending(item) || batch.includes(item));
  find("#results").hidden = false;
  buildList();
  showProgress();
  announce(t("progress", { done: 0, all: batch.length }));
  sendAll();
}

function sendAll() {
  for (let free = Number(settings.atOnce) - page.sending; free > 0; free--) sendNext();
}

async function sendNext() {
  const item = page.items.find((other) => pending(other) && !other.sent);
  if (!item) return;
  item.sent = true;
  page.sending += 1;
  try {
    await page.grade(item);
  } finally {
    page.sending -= 1;
  }
  if (page.items.includes(item)) arrived(item);
  sendNext();
}

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
export function show(item, focus = find("#card").contains(document.activeElement) && document.activeElement.dataset.focus) {
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

export function announce(words) {
  find("#status").textContent = words;
}

export function trouble(words) {
  find("#trouble span").textContent = words;
  find("#trouble").hidden = false;
}

async function forget(item) {
  const name = labelOf(item, page.items);
  page.items = page.items.filter((other) => other !== item);
  if (item.facts) page.drop(item);
  const next = page.items.find((other) => other.facts) ?? page.items.find((other) => !pending(other));
  if (next) show(next);
  else find("#card").replaceChildren();
  page.chosen = next ?? null;
  buildList();
  find("#results").hidden = !page.items.length;
  find(page.items.length ? "#results-title" : "#file").focus();
  announce(t("forgotten_one", { name }));
}

// Forgets all X-rays.
export function leave() {
  page.clear();
  Object.assign(page, { items: [], chosen: null });
  buildList();
  find("#card").replaceChildren();
  find("#results").hidden = true;
  showProgress();
  announce("");
}

async function speak(language) {
  await loadTexts(language);
  page.language = language;
  document.documentElement.lang = language;
  document.title = `CLIP-KOA: ${t("title")}`;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = t(element.dataset.text, settings);
  find("#language").value = language;
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
find("#forget").addEventListener("click", () => {
  leave();
  find("#file").focus();
  announce(t("forgotten"));
});
find("#trouble button").addEventListener("click", () => {
  find("#trouble").hidden = true;
  for (const item of page.items.filter((other) => other.error !== undefined)) Object.assign(item, { error: undefined, sent: false });
  page.batch = page.items;
  sendAll();
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

// Shows the page in its language; whoever grades has added his part by now.
export async function start() {
  page.ready = speak(page.language);
  await page.ready;
  document.body.dataset.ready = "true";
}
