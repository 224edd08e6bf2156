// The report of one knee, on one page of paper; a browser's print dialog also saves it as a PDF.

import { describeSet } from "./card.js";
import { h, percent, t } from "./dom.js";
import { gradeName, isAssumed, sideName } from "./items.js";

export function printReport(item, page, model) {
  const report = buildReport(item, page, model);
  document.querySelector("#report").replaceChildren(report);
  const pictures = [...report.querySelectorAll("img")].map((image) => image.decode().catch(() => {}));
  Promise.all(pictures).then(() => window.print());
}

export function buildReport(item, page, model) {
  const { facts } = item;
  const bars = facts.probabilities.map((share, grade) => {
    const bar = h("span", { class: "bar" });
    bar.style.width = `${100 * share}%`;
    const kind = `${grade === facts.grade ? "chosen" : ""} ${facts.set.includes(grade) ? "inset" : ""}`;
    return h("tr", { class: kind }, h("th", { scope: "row" }, gradeName(grade)), h("td", {}, h("span", { class: "track" }, bar)), h("td", { class: "share" }, percent(share)));
  });
  const values = { grade: gradeName(facts.image_grade), mirror: gradeName(facts.mirror_grade) };
  const mirror = t(facts.image_grade === facts.mirror_grade ? "mirror_agrees" : "mirror_differs", values);
  const ways = facts.ways.map((way) => t(`way_${way}`)).join(", ");
  const warnings = facts.warnings.map((key) => t(key, { ways }));
  const sentence = `${t("osteoarthritis")}: ${percent(facts.osteoarthritis)}. ${t("expected")}: ${facts.expected.toFixed(1)}. ${mirror}`;
  return h(
    "article",
    {},
    h("h1", {}, t("report_title")),
    h("p", { class: "notice" }, h("b", {}, t("research_only")), " ", t("research_detail")),
    h("figure", {}, h("img", { src: page.picture(item, "xray"), alt: t("report_bare") }), h("figcaption", {}, t("report_bare"))),
    h(
      "div",
      { class: "headline" },
      h("span", { class: `badge grade${facts.grade}`, "aria-hidden": "true" }, String(facts.grade)),
      h("div", {}, h("h2", {}, gradeName(facts.grade)), h("p", {}, t(`meaning_${facts.grade}`))),
    ),
    warnings.map((warning) => h("p", { class: "warning" }, warning)),
    h("p", {}, describeSet(facts.set, page.level)),
    h("table", { class: "shares", "aria-label": t("bars") }, h("tbody", {}, bars)),
    h("p", {}, sentence),
    h("table", { class: "facts" }, h("tbody", {}, rows(item, page, model).map(([name, value]) => h("tr", {}, h("th", { scope: "row" }, name), h("td", {}, value))))),
    h("p", { class: "small" }, t("report_scale")),
  );
}

function rows(item, page, model) {
  const { facts } = item;
  const [left, top, right, bottom] = facts.box ?? [];
  const [width, height] = facts.film_size;
  const box = facts.cut && facts.box ? t("report_box_value", { left, top, right, bottom }) : t("report_box_none");
  return [
    [t("report_file"), item.name],
    [t("report_size"), t("report_size_value", { width, height })],
    [t("side"), isAssumed(item) ? t("report_side_assumed", { side: sideName(item.side) }) : sideName(item.side)],
    [t("report_box"), facts.by_hand ? `${box} ${t("report_box_by_hand")}` : box],
    [t("report_model"), model.name],
    [t("report_digest"), model.digest],
    [t("report_settings"), t("report_settings_value", { precision: model.precision, level: page.level })],
    [t("report_software"), model.software],
    [t("report_date"), new Date().toLocaleString(page.language)],
  ];
}
