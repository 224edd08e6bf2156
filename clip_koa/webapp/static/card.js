// The card of one X-ray: what the model says of it, how sure it is, and what it leans on.

import { h, percent, radios, t } from "./dom.js";
import { FilmView, framingChoice } from "./films.js";
import { gradeName, isAssumed, isShown, labelOf, sideName } from "./items.js";
import { Viewer } from "./viewer.js";

export function describeSet(set, level) {
  if (!set.length) return "";
  const values = { low: set[0], high: set[set.length - 1], level };
  return t(set.length === 1 ? "set_one" : "set_many", values);
}

// `page` has what `FilmView` takes, and level, sideChanged(item), forget(item), reports(item), the buttons for a report,
// and, where there are heat maps, heatControls(item, viewer).
export function buildCard(item, page) {
  const forget = h("button", { type: "button", class: "button quiet", onclick: () => page.forget(item) }, t("forget_one"));
  if (item.error !== undefined) return refusedCard(item, forget);
  if (!isShown(item)) return troubleCard(item, page, forget);
  return answerCard(item, page, forget);
}

function refusedCard(item, forget) {
  return h(
    "article",
    { class: "card", "aria-label": item.name },
    h("div", { class: "refused" }, h("h3", {}, t("not_graded", { name: item.name })), h("p", item.foreign ? { lang: "en" } : {}, item.error)),
    h("p", {}, forget),
  );
}

// A film in which no knee was found, or a knee that has no grade: why, and where it lies.
function troubleCard(item, page, forget) {
  const { facts } = item;
  const thumbnail = facts.cut ? null : h("img", { src: page.picture(item, "thumbnail"), alt: t("xray_alt", { name: item.name }) });
  return h(
    "article",
    { class: "card", "aria-label": labelOf(item, page.items) },
    h(
      "div",
      { class: "unlike" },
      thumbnail,
      h("div", {}, h("p", { class: "file" }, labelOf(item, page.items)), h("h3", {}, t(`title_${facts.trouble}`)), h("p", {}, t(`body_${facts.trouble}`)), facts.box && facts.cut ? h("p", {}, t("box_beside")) : null),
    ),
    film(item, page),
    framingChoice(item, page),
    h("p", {}, forget),
  );
}

function film(item, page) {
  if (!item.facts.cut) return null;
  item.film ??= new FilmView(item, page);
  return item.film.build();
}

function answerCard(item, page, forget) {
  const viewer = new Viewer(item, page.picture(item, "xray"), Boolean(page.heatControls));
  const card = h("article", { class: "card", "aria-label": labelOf(item, page.items) });
  const controls = [page.heatControls?.(item, viewer), sideChoice(item, page, viewer), framingChoice(item, page)];
  card.append(
    h(
      "div",
      { class: "columns" },
      answer(item, page),
      h("div", { class: "views" }, film(item, page), viewer.element, controls.filter(Boolean)),
      details(item, page, forget),
    ),
  );
  requestAnimationFrame(() => viewer.paint()); // once it has a size
  return card;
}

function sideChoice(item, page, viewer) {
  if (item.facts.both_knees) return null;
  const choices = ["R", "L", ""].map((side) => [side, sideName(side)]);
  const choice = radios("side", t("side"), choices, item.side, (side) => {
    Object.assign(item, { side, sideByHand: true });
    viewer.markSides();
    page.sideChanged(item);
  });
  choice.append(h("p", { class: "small" }, t("side_note")));
  return choice;
}

function answer(item, page) {
  const { facts } = item;
  const ways = facts.ways.map((way) => t(`way_${way}`)).join(", ");
  const notes = facts.warnings.map((key) => t(key, { ways }));
  if (isAssumed(item)) notes.push(t("side_assumed"));
  if (facts.by_hand) notes.push(t("by_hand"));
  return h(
    "div",
    { class: "answer" },
    h("p", { class: "file" }, `${labelOf(item, page.items)} · ${facts.width} × ${facts.height}`),
    notes.map((note) => h("p", { class: "warning" }, note)),
    h(
      "div",
      { class: "headline", tabindex: -1 },
      h("span", { class: `badge grade${facts.grade}`, "aria-hidden": "true" }, String(facts.grade)),
      h("div", {}, h("h3", {}, gradeName(facts.grade)), h("p", {}, t(`meaning_${facts.grade}`))),
    ),
    facts.true_grade === null ? null : h("p", { class: "truth" }, t("true_grade", { grade: gradeName(facts.true_grade) })),
    facts.set.length ? h("p", { class: "sure" }, describeSet(facts.set, page.level)) : null,
  );
}

function details(item, page, forget) {
  const { facts } = item;
  return h(
    "div",
    { class: "details" },
    bars(facts.probabilities, facts.grade, facts.set, t("bars")),
    h(
      "dl",
      {},
      h("dt", {}, t("osteoarthritis")),
      h("dd", {}, percent(facts.osteoarthritis)),
      h("dt", {}, t("expected")),
      h("dd", {}, facts.expected.toFixed(1)),
      facts.atypicality === null ? null : [h("dt", {}, t("typicality")), h("dd", {}, percent(facts.atypicality))],
    ),
    mirror(item, page),
    h("p", { class: "reports" }, page.reports(item), forget),
  );
}

function mirror(item, page) {
  const { facts } = item;
  const values = { grade: gradeName(facts.image_grade), mirror: gradeName(facts.mirror_grade) };
  const agrees = facts.image_grade === facts.mirror_grade;
  return h(
    "section",
    { class: "mirror", "aria-label": t("mirror") },
    h("img", { src: page.picture(item, "mirror"), alt: t("mirror_alt") }),
    h(
      "div",
      {},
      h("p", agrees ? {} : { class: "differs" }, t(agrees ? "mirror_agrees" : "mirror_differs", values)),
      bars(facts.mirror_probabilities, facts.mirror_grade, [], `${t("mirror")}: ${t("bars")}`),
    ),
  );
}

// The whole width of a track is 100 %.
function bars(probabilities, chosen, set, label) {
  return h(
    "ul",
    { class: "bars", "aria-label": label },
    probabilities.map((share, grade) => {
      const bar = h("span", { class: "bar" });
      bar.style.width = `${100 * share}%`;
      const kind = `${grade === chosen ? "chosen" : ""} ${set.includes(grade) ? "inset" : ""}`;
      return h(
        "li",
        { class: kind },
        h("span", { class: "grade" }, gradeName(grade)),
        h("span", { class: "track" }, bar),
        h("span", { class: "share" }, percent(share)),
      );
    }),
  );
}
