// The page of a browser that grades by itself: its worker holds the model and the X-rays, and nothing is sent anywhere.

import { h, t } from "./dom.js";
import { Engine } from "./engine_client.js";
import { printReport } from "./print.js";
import { announce, find, page, settings, show, start } from "./shell.js";

const base = new URL("./", document.baseURI).href;
const engine = new Engine(base);
const pictures = new Map(); // of each knee the addresses of its pictures

Object.assign(page, {
  grade,
  picture: (item, kind) => pictures.get(item.facts.id)[kind],
  placeBox: async (item, box, isNew) => keep(await engine.ask("place", { film: item.facts.film, reading: item.facts.id, box, isNew })),
  frame: async (item, framing) => keep(await engine.ask("frame", { film: item.facts.film, framing })),
  reports: (item) => [
    h("button", { type: "button", class: "button", onclick: () => printReport(item, page, facts) }, t("report_print")),
  ],
  drop(item) {
    engine.ask("forget", { film: item.facts.film, reading: item.facts.id });
    forgetPictures(item.facts.id);
  },
  clear() {
    engine.ask("leave", {});
    for (const id of [...pictures.keys()]) forgetPictures(id);
  },
  failed(error) {
    if (page.chosen) show(page.chosen);
    announce(words(error));
  },
});

let facts = null; // of the model, once it is loaded

const words = (error) => t(error.code ?? "failed_here", error.values);

async function grade(item) {
  try {
    if (item.file && item.file.size > Number(settings.fileBytes)) throw Object.assign(new Error(), { code: "too_large", values: settings });
    if (!facts) announce(t("loading_model"));
    facts ??= (await engine.load()).facts;
    const { bytes, example } = await read(item);
    const framing = find("#framing :checked")?.value ?? "auto";
    const { knees } = keep(await engine.ask("read", { name: item.name, bytes, framing, example }, [bytes]));
    if (page.items.includes(item)) page.take(item, knees);
    else knees.forEach((knee) => page.drop({ facts: knee }));
  } catch (error) {
    item.error = words(error);
  }
}

async function read(item) {
  if (!item.example) {
    const bytes = await item.file.arrayBuffer().catch(() => {
      throw Object.assign(new Error(), { code: "unreadable" }); // a folder
    });
    return { bytes };
  }
  const { grade: shown, side } = find(`[data-example="${item.example}"]`).dataset;
  const answer = await fetch(`examples/${item.example}`);
  return { bytes: await answer.arrayBuffer(), example: { grade: Number(shown), side } };
}

// Gives the pictures of new knees an address each, and forgets those of knees that the film no longer has.
function keep(answer) {
  const stay = answer.knees.map((knee) => knee.id);
  for (const [id, { of }] of [...pictures]) if (of === answer.knees[0].film && !stay.includes(id)) forgetPictures(id);
  for (const [id, blobs] of Object.entries(answer.pictures)) {
    const addresses = Object.entries(blobs).map(([kind, blob]) => [kind, URL.createObjectURL(blob)]);
    pictures.set(id, { of: answer.knees[0].film, ...Object.fromEntries(addresses) });
  }
  return answer;
}

function forgetPictures(id) {
  const { of: _, ...addresses } = pictures.get(id) ?? {};
  for (const address of Object.values(addresses)) URL.revokeObjectURL(address);
  pictures.delete(id);
}

// The first language of the browser that the page has, but for one that the address names.
function chooseLanguage() {
  const known = [...find("#language").options].map(({ value }) => value);
  const liked = [new URLSearchParams(location.search).get("lang"), ...navigator.languages.map((name) => name.slice(0, 2).toLowerCase())];
  return liked.find((name) => known.includes(name)) ?? "en";
}

// The registration once its worker is active; an error where it could not be installed.
function readyWorker(registration) {
  return new Promise((resolve, reject) => {
    navigator.serviceWorker.ready.then(resolve);
    const { installing } = registration;
    installing?.addEventListener("statechange", () => installing.state === "redundant" && reject(new Error("not installed")));
  });
}

// Keeps the page for visits without a network. Its first answer comes without the headers that let the model use all
// cores: the page is then loaded once more, which the worker for it answers.
async function workOffline() {
  if (!("serviceWorker" in navigator)) return false;
  try {
    const { active } = await readyWorker(await navigator.serviceWorker.register("sw.js", { updateViaCache: "none" }));
    if (!crossOriginIsolated && window === window.top && !sessionStorage.getItem("loaded-again")) {
      sessionStorage.setItem("loaded-again", "true");
      location.reload();
      return true;
    }
    active.postMessage("fill");
  } catch (error) {
    console.warn(`Without a network this page will not open: ${error}`);
  }
  return false;
}

page.language = chooseLanguage();
if (!(await workOffline())) {
  document.body.dataset.threads = engine.threads;
  await start();
  engine.load().then((loaded) => {
    facts = loaded.facts;
    document.body.dataset.model = "loaded";
  }, () => {}); // told when an X-ray is given
}
