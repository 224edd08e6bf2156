// The X-rays of the visit as a table that can be sorted; its radio buttons choose whose card is shown.

import { h, percent, t } from "./dom.js";
import { gradeName, isShown, labelOf, sideName } from "./items.js";

const shown = (item, value) => (isShown(item) ? value(item.facts) : undefined);
// What each column is sorted by.
const COLUMNS = {
  xray: (item) => item.name,
  side: (item) => item.side,
  grade: (item) => shown(item, (facts) => facts.expected),
  set: (item) => shown(item, (facts) => facts.set[0]),
  osteoarthritis: (item) => shown(item, (facts) => facts.osteoarthritis),
  warning: (item) => warningOf(item),
};

const SHORT = { cut_off: "cut_off_short", atypical_reminder: "atypical_short", ways: "ways_short", both_knees: "both_knees" };

export function warningOf(item) {
  if (item.error !== undefined) return t("not_graded_short");
  if (item.facts?.trouble) return t(`short_${item.facts.trouble}`);
  const warning = item.facts?.warnings.find((key) => key in SHORT);
  return warning ? t(SHORT[warning]) : "";
}

export class XrayTable {
  // `page` has items, picture(item, kind), level, chosen and choose(item).
  constructor(page) {
    this.page = page;
    this.column = null;
    this.rising = true;
  }

  sortBy(column) {
    this.rising = this.column === column ? !this.rising : true;
    this.column = column;
  }

  sorted(items) {
    if (!this.column) return items;
    const value = COLUMNS[this.column];
    const compare = (a, b) => {
      const [left, right] = [value(a), value(b)];
      const empty = (side) => side === undefined || side === "";
      if (empty(left) || empty(right)) return empty(left) - empty(right); // those without a value stand last
      const order = typeof left === "string" ? left.localeCompare(right, this.page.language, { numeric: true }) : left - right;
      return this.rising ? order : -order;
    };
    return [...items].sort(compare);
  }

  build(items) {
    const heads = Object.keys(COLUMNS).map((column) => {
      const sorted = this.column === column ? (this.rising ? "ascending" : "descending") : "none";
      const sort = () => {
        this.sortBy(column);
        this.page.listChanged();
      };
      const sign = { ascending: "▲", descending: "▼", none: "↕" }[sorted];
      return h(
        "th",
        { scope: "col", "aria-sort": sorted, class: column },
        h("button", { type: "button", "data-focus": column, onclick: sort }, t(`column_${column}`, { level: this.page.level }), " ", h("span", { "aria-hidden": "true" }, sign)),
      );
    });
    const rows = this.sorted(items).map((item) => this.row(item));
    return h(
      "div",
      { class: "table", role: "region", tabindex: 0, "aria-label": t("your_xrays"), "data-focus": "table" },
      h("table", {}, h("caption", {}, `${t("your_xrays")}. ${t("sort_hint")}`), h("thead", {}, h("tr", {}, heads)), h("tbody", {}, rows)),
    );
  }

  row(item) {
    const { page } = this;
    const choose = h("input", {
      type: "radio", name: "xray", "aria-label": t("show", { name: labelOf(item, page.items) }), "data-focus": item.key,
      onchange: () => page.choose(item),
    });
    choose.checked = item === page.chosen;
    choose.disabled = !item.facts && item.error === undefined;
    const thumbnail = item.facts ? h("img", { src: page.picture(item, "thumbnail"), alt: "" }) : h("span", { class: "blank" });
    const cells = [
      h("td", { class: "side" }, item.facts ? sideName(item.side) : ""),
      h("td", { class: "grade" }, shown(item, (facts) => badge(facts.grade)) ?? noGrade(item)),
      h("td", { class: "set" }, shown(item, (facts) => range(facts.set)) ?? ""),
      h("td", { class: "osteoarthritis" }, shown(item, (facts) => percent(facts.osteoarthritis)) ?? ""),
      h("td", { class: "warning" }, warningOf(item)),
    ];
    const row = h("tr", { class: item === page.chosen ? "chosen" : "" },
      h("th", { scope: "row" }, h("label", {}, choose, thumbnail, h("span", { class: "name" }, item.name))), cells);
    row.addEventListener("click", (event) => {
      if (!choose.disabled && !event.target.closest("label")) page.choose(item);
    });
    return row;
  }
}

const range = (set) => (set.length > 1 ? `${set[0]} – ${set[set.length - 1]}` : `${set[0] ?? ""}`);
const noGrade = (item) => (item.facts || item.error !== undefined ? h("span", { class: "alarm", "aria-hidden": "true" }, "⚠ –") : "…");
const badge = (grade) => h("span", { class: `tag grade${grade}` }, gradeName(grade));
