// What the card of an X-ray shows that only a server computes: heat maps and reports as files.

import { h, radios, t } from "./dom.js";
import { gradeName } from "./items.js";

const GRADES = [0, 1, 2, 3, 4];

export function heatControls(item, page, viewer) {
  const { facts } = item;
  const grade = gradeName(facts.grade);
  const caption = h("p", { class: "caption" });
  const load = () => {
    const against = item.against ?? "";
    viewer.heat.src = `${page.url(item)}/heat${against === "" ? "" : `?against=${against}`}`;
    const sentence = against === "" ? t("heat_for", { grade }) : t("heat_rather", { grade, against: gradeName(against) });
    caption.textContent = viewer.framed ? `${sentence} ${t("heat_frame")}` : sentence;
    renewReports(item, page);
  };
  viewer.heat.addEventListener("error", () => {
    caption.textContent = t("heat_failed");
  });
  item.opacity ??= 60;
  viewer.heat.style.opacity = item.opacity / 100;
  const slider = h("input", { type: "range", min: 0, max: 100, value: item.opacity, "aria-label": t("heat_opacity"), class: "opacity" });
  slider.addEventListener("input", () => {
    item.opacity = Number(slider.value);
    viewer.heat.style.opacity = item.opacity / 100;
  });
  const others = [facts.grade - 1, facts.grade + 1].filter((other) => GRADES.includes(other));
  const choices = [["", t("for_grade", { grade })], ...others.map((other) => [other, t("rather_than", { grade: gradeName(other) })])];
  const question = radios("heat", t("heat_question"), choices, item.against ?? "", (value) => {
    item.against = value === "" ? undefined : value;
    load();
  });
  load();
  return h(
    "div",
    { class: "heat-controls" },
    h("label", { class: "slider" }, h("span", {}, t("heat_map")), slider),
    h("div", { class: "legend" }, h("span", {}, t("heat_weak")), h("span", { class: "scale", "aria-hidden": "true" }), h("span", {}, t("heat_strong"))),
    question,
    caption,
  );
}

// The reports of an X-ray, as links to files.
export function reports(item, page) {
  return ["html", "pdf"].map((kind) =>
    h("a", { class: "button", "data-kind": kind, href: reportUrl(item, page, kind), download: true }, `${t("report")}, ${kind.toUpperCase()}`),
  );
}

// Has the links say what is chosen on the card now.
export function renewReports(item, page) {
  for (const link of document.querySelectorAll("#card .reports a")) link.href = reportUrl(item, page, link.dataset.kind);
}

function reportUrl(item, page, kind) {
  const query = new URLSearchParams({ lang: page.language, side: item.side });
  if (item.against !== undefined) query.set("against", item.against);
  return `${page.url(item)}/report.${kind}?${query}`;
}
