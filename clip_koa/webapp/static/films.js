// The film with the boxes of its knees. The box of the chosen knee is moved by mouse, touch, buttons and keys, and the
// knee is graded anew.

import { h, radios, t } from "./dom.js";
import { siblings, sideName } from "./items.js";

const LEAST = 32; // pixels of a box's sides
const STEP = 0.01; // of the film's longer side
const PATIENCE = 500; // ms after the last key until the knee is graded
const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const CORNERS = [[-1, -1], [1, -1], [-1, 1], [1, 1]];
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const same = (one, other) => one?.every((edge, place) => edge === other?.[place]);

export class FilmView {
  // `page` has items, picture(item, kind), placeBox(item, box, isNew), frame(item, to), take(item, knees), choose(item), settled(item, focus), busy(item, words), failed(error).
  constructor(item, page) {
    Object.assign(this, { item, page, box: null, moving: false, sending: false, news: false });
    this.picture = h("img", { src: page.picture(item, "film"), draggable: "false" });
  }

  // The box as it stands on the screen, which the server may not know yet.
  get shown() {
    return this.box ?? this.item.facts.box;
  }

  build() {
    const { item, page } = this;
    const { facts } = item;
    const [width, height] = facts.film_size;
    const knees = siblings(item, page.items).filter((other) => other.facts.box);
    this.picture.alt = t("film_alt", { name: item.name });
    this.mark = facts.box ? this.ownBox() : null;
    this.stage = h("div", { class: "film-stage" }, this.picture, knees.filter((other) => other !== item).map((other) => this.otherBox(other)), this.mark);
    this.stage.style.aspectRatio = `${width} / ${height}`;
    this.stage.style.maxWidth = `${(48 * width) / height}vh`;
    const tools = facts.box ? this.tools() : null;
    this.place();
    return h(
      "section",
      { class: "film", "aria-label": t("film") },
      this.stage,
      facts.box ? h("p", { class: "small", id: "box-hint" }, t("box_hint")) : null,
      h("div", { class: "buttons" }, tools, knees.length < 2 ? this.adding(knees) : null),
    );
  }

  ownBox() {
    const { item } = this;
    const mark = h(
      "div",
      {
        class: "box", tabindex: 0, role: "application", "aria-roledescription": t("box_role"), "data-focus": "box",
        "aria-label": item.side ? `${t("box")}: ${sideName(item.side)}` : t("box"), "aria-describedby": "box-hint",
      },
      item.side ? h("span", { class: "letter", "aria-hidden": "true" }, item.side) : null,
      CORNERS.map(([across, down]) => h("span", { class: "corner", "data-across": across, "data-down": down })),
    );
    mark.addEventListener("pointerdown", (event) => this.grab(event));
    mark.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"]) mark.addEventListener(end, () => this.release());
    mark.addEventListener("keydown", (event) => this.key(event));
    return mark;
  }

  otherBox(other) {
    const label = t("box_other", { side: sideName(other.side) });
    const mark = h("button", { type: "button", class: "box other", "aria-label": label, title: label, onclick: () => this.page.choose(other) });
    if (other.side) mark.append(h("span", { class: "letter", "aria-hidden": "true" }, other.side));
    lay(mark, other.facts.box, other.facts);
    return mark;
  }

  tools() {
    const step = this.step();
    const button = (key, sign, action) =>
      h("button", { type: "button", class: "tool", title: t(key), "aria-label": t(key), "data-focus": key, onclick: action }, sign);
    this.back = button("box_found", "↺", () => this.change(this.item.facts.found, 0));
    return [
      button("box_left", "←", () => this.moveBy(-step, 0)),
      button("box_right", "→", () => this.moveBy(step, 0)),
      button("box_up", "↑", () => this.moveBy(0, -step)),
      button("box_down", "↓", () => this.moveBy(0, step)),
      button("box_smaller", "−", () => this.growBy(-2 * step)),
      button("box_larger", "+", () => this.growBy(2 * step)),
      this.item.facts.found ? this.back : null,
    ];
  }

  // Where no knee was found, or only one: a box beside it, or in the middle.
  adding(knees) {
    const place = () => {
      const [width, height] = this.item.facts.film_size;
      const [left, top, right, bottom] = knees[0]?.facts.box ?? [];
      const middle = knees.length ? clamp(width - (left + right) / 2, 0, width) : width / 2;
      const side = knees.length ? right - left : Math.max(LEAST, 0.6 * Math.min(width, height));
      const centre = knees.length ? clamp((top + bottom) / 2, 0, height) : height / 2;
      this.add([middle - side / 2, centre - side / 2, middle + side / 2, centre + side / 2].map(Math.round));
    };
    return h("button", { type: "button", class: "button quiet", "data-focus": "box_add", onclick: place }, t("box_add"));
  }

  place() {
    if (this.mark) lay(this.mark, this.shown, this.item.facts);
    if (this.back) this.back.disabled = Boolean(same(this.shown, this.item.facts.found));
  }

  // --- moving

  step() {
    return Math.max(1, Math.round(STEP * Math.max(...this.item.facts.film_size)));
  }

  grab(event) {
    if (event.button) return;
    this.mark.setPointerCapture(event.pointerId);
    const { across, down } = event.target.dataset;
    this.moving = { x: event.clientX, y: event.clientY, box: this.shown, across: Number(across ?? 0), down: Number(down ?? 0) };
  }

  drag(event) {
    if (!this.moving) return;
    const { x, y, box, across, down } = this.moving;
    const scale = this.item.facts.film_size[0] / this.stage.clientWidth;
    const [dx, dy] = [scale * (event.clientX - x), scale * (event.clientY - y)];
    if (!across) return this.change(moved(box, dx, dy));
    this.change(resized(box, (across * dx + down * dy) / 2, this.item.facts.film_size, across, down));
  }

  release() {
    if (!this.moving) return;
    this.moving = false;
    if (this.box || this.news) this.settle(0);
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const direction = DIRECTIONS[event.key];
    const step = this.step();
    if (direction && event.shiftKey) this.growBy(2 * step * (direction[0] - direction[1]));
    else if (direction) this.moveBy(step * direction[0], step * direction[1]);
    else if (event.key === "+" || event.key === "=") this.growBy(2 * step);
    else if (event.key === "-") this.growBy(-2 * step);
    else if (event.key === "0" && this.item.facts.found) this.change(this.item.facts.found, PATIENCE);
    else return;
    event.preventDefault();
  }

  moveBy(dx, dy) {
    this.change(moved(this.shown, dx, dy), PATIENCE);
  }

  growBy(more) {
    this.change(resized(this.shown, more, this.item.facts.film_size), PATIENCE);
  }

  // Shows another box, and has it graded `patience` ms after the last change; undefined: not yet.
  change(box, patience) {
    const [width, height] = this.item.facts.film_size;
    const [dx, dy] = [0, 1].map((axis) => {
      const middle = (box[axis] + box[axis + 2]) / 2;
      return clamp(middle, 1, [width, height][axis] - 1) - middle; // it stays inside
    });
    const inside = moved(box, dx, dy).map(Math.round);
    this.box = same(inside, this.item.facts.box) && !this.sending ? null : inside;
    this.place();
    if (patience !== undefined) this.settle(patience);
  }

  // --- grading anew

  settle(patience) {
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.send(), patience);
  }

  // One request at a time, and the newest box last.
  async send() {
    if (this.sending) return;
    const { item, page } = this;
    this.sending = true;
    try {
      while (this.box && !this.moving && !same(this.box, item.facts.box)) {
        const asked = this.box;
        page.busy(item, t("regrading"));
        const answer = await page.placeBox(item, asked, false);
        if (!answer) return;
        page.take(item, answer.knees);
        this.news = true;
        if (same(this.box, asked)) this.box = null;
      }
    } catch (error) {
      this.box = null;
      this.place();
      page.failed(error);
    } finally {
      this.sending = false;
    }
    if (!this.news || this.moving) return;
    this.news = false;
    page.settled(item);
  }

  async add(box) {
    const { item, page } = this;
    const before = siblings(item, page.items).map((other) => other.facts.id);
    try {
      page.busy(item, t("regrading"));
      const answer = await page.placeBox(item, box, true);
      if (!answer) return;
      page.settled(page.take(item, answer.knees).find((other) => !before.includes(other.facts.id)), "box");
    } catch (error) {
      page.failed(error);
    }
  }
}

// Whether the film's knees are looked for, or it is taken as it is.
export function framingChoice(item, page) {
  const { facts } = item;
  if (facts.framing === null || (facts.framing === "auto" && !facts.cut)) return null;
  const choices = [["auto", t("framing_auto")], ["as_is", t("framing_as_is")]];
  return radios("framing", t("framing_here"), choices, facts.framing, async (to) => {
    try {
      page.busy(item, t("progress", { done: 0, all: 1 }));
      const answer = await page.frame(item, to);
      if (answer) page.settled(page.take(item, answer.knees)[0]);
    } catch (error) {
      page.failed(error);
    }
  });
}

const moved = ([left, top, right, bottom], dx, dy) => [left + dx, top + dy, right + dx, bottom + dy];

// A box larger by `more` pixels a side, of the same shape: about its middle, or with the corner opposite of one fixed.
function resized([left, top, right, bottom], more, film, across = 0, down = 0) {
  const [width, height] = [right - left, bottom - top];
  const factor = clamp((width + more) / width, LEAST / Math.min(width, height), Math.max(...film) / Math.max(width, height));
  const grown = [width * (factor - 1), height * (factor - 1)];
  return [
    left - (grown[0] * (1 - across)) / 2, top - (grown[1] * (1 - down)) / 2,
    right + (grown[0] * (1 + across)) / 2, bottom + (grown[1] * (1 + down)) / 2,
  ];
}

// Lays a box over the film.
function lay(mark, [left, top, right, bottom], { film_size: [width, height], angle }) {
  Object.assign(mark.style, {
    left: `${(100 * left) / width}%`, top: `${(100 * top) / height}%`,
    width: `${(100 * (right - left)) / width}%`, height: `${(100 * (bottom - top)) / height}%`,
    transform: angle ? `rotate(${angle}deg)` : "",
  });
  const letter = mark.querySelector(".letter"); // in the part of the box that is seen
  if (letter) Object.assign(letter.style, { left: `${(100 * Math.max(0, -left)) / (right - left)}%`, top: `${(100 * Math.max(0, -top)) / (bottom - top)}%` });
}
