// What the page knows of X-rays: an item for each upload on its way, then one for each knee that the server found in it.

import { t } from "./dom.js";

export const gradeName = (grade) => t(`grade_${grade}`);
export const sideName = (side) => (side ? t(`side_${side}`) : t("side_unknown"));

export const pending = (item) => item.facts === undefined && item.error === undefined;

// Whether there is an answer: a film without a knee, a knee with metal and what is no knee have none.
export const isShown = (item) => item.facts?.grade !== undefined;

// The knees of the same film, in their order.
export const siblings = (item, items) => (item.facts ? items.filter((other) => other.facts?.film === item.facts.film) : [item]);

// Its name, and its side where the name is that of two.
export function labelOf(item, items) {
  return siblings(item, items).length > 1 ? `${item.name}, ${sideName(item.side)}` : item.name;
}

export const isAssumed = (item) => Boolean(item.facts?.side_assumed && !item.sideByHand);

// What a screen reader says of an item.
export function spoken(item) {
  if (!item) return "";
  if (item.error !== undefined) return `${t("announced_error", { name: item.name })} ${item.error}`;
  if (!isShown(item)) return t("announced_none", { name: item.name, reason: t(`title_${item.facts.trouble}`) });
  const values = { name: item.name, grade: gradeName(item.facts.grade), side: sideName(item.side) };
  return t(item.side ? "announced" : "announced_sideless", values);
}

// Puts what the server says of a film's knees into the items: an item stays that of its knee; the one that was asked
// about takes what is new, and further knees get items of their own behind it. Gives the film's items.
export function takeKnees(page, item, knees, newKey) {
  const before = siblings(item, page.items);
  const stays = (other) => knees.some((facts) => facts.id === other.facts?.id);
  const free = [item, ...before.filter((other) => other !== item)].filter((other) => !stays(other));
  const after = knees.map((facts) => {
    const own = before.find((other) => other.facts?.id === facts.id) ?? free.shift();
    return learn(own ?? { key: newKey(), name: item.name, sent: true }, facts);
  });
  const place = page.items.indexOf(before[0]);
  const behind = page.items.slice(place).filter((other) => !before.includes(other));
  page.items = [...page.items.slice(0, place), ...after, ...behind];
  return after;
}

function learn(item, facts) {
  if (item.facts?.grade !== facts.grade) item.against = undefined;
  item.facts = facts;
  if (!item.sideByHand) item.side = facts.laterality;
  return item;
}
