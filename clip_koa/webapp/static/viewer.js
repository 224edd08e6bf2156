// The X-ray under its heat map: zoom, move, window, invert; by mouse, touch, buttons and keys.

import { h, radios, t } from "./dom.js";

const START = { zoom: 1, x: 0, y: 0, centre: 127.5, width: 255, inverted: false };
const SVG = "http://www.w3.org/2000/svg";
const clamp = (value, low, high) => Math.min(high, Math.max(low, value));

export class Viewer {
  // `item` keeps how its X-ray is looked at, so that it stands so again when it is chosen again.
  constructor(item, source, withHeat) {
    this.item = item;
    this.view = item.view ??= { ...START };
    this.pointers = new Map();
    const { facts } = item;
    this.picture = h("img", { class: "picture", src: source, alt: t("xray_alt", { name: facts.name }) });
    this.heat = h("img", { class: "heat", alt: "" });
    this.frame = h("div", { class: "frame" });
    this.layers = h("div", { class: "layers" }, this.picture, withHeat ? this.heat : null, this.frame);
    this.marks = ["left", "right"].map((side) => h("span", { class: `mark ${side}` }));
    this.stage = h(
      "div",
      { class: "stage", tabindex: 0, role: "group", "aria-label": t("viewer", { name: facts.name }) },
      this.layers,
      this.marks,
    );
    this.stage.style.aspectRatio = `${facts.width} / ${facts.height}`;
    this.stage.style.maxWidth = `${(75 * facts.width) / facts.height}vh`;
    this.frameSeen(facts.seen);
    this.element = h("div", { class: "viewer" }, this.filter(), this.stage, this.tools());
    this.listen();
    this.markSides();
    this.paint();
  }

  frameSeen([left, top, right, bottom]) {
    this.framed = left > 0.005 || top > 0.005;
    this.frame.hidden = !this.framed;
    const inset = [top, 1 - right, 1 - bottom, left].map((share) => `${100 * share}%`);
    this.frame.style.inset = inset.join(" ");
  }

  // Which border of the image is lateral: radiographs are shown as seen from the front.
  markSides() {
    const words = { L: ["medial", "lateral"], R: ["lateral", "medial"] }[this.item.side];
    this.marks.forEach((mark, place) => {
      mark.textContent = words ? t(words[place]) : "";
      mark.hidden = !words;
    });
  }

  filter() {
    const make = (tag, attributes) => {
      const element = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
      return element;
    };
    const svg = make("svg", { width: 0, height: 0, "aria-hidden": "true", class: "filter" });
    const filter = make("filter", { id: "window", "color-interpolation-filters": "sRGB", x: 0, y: 0, width: 1, height: 1 });
    const transfer = make("feComponentTransfer", {});
    this.functions = ["R", "G", "B"].map((channel) => make(`feFunc${channel}`, { type: "linear" }));
    transfer.append(...this.functions);
    filter.append(transfer);
    svg.append(filter);
    return svg;
  }

  tools() {
    const button = (key, sign, action) =>
      h("button", { type: "button", class: "tool", title: t(key), "aria-label": t(key), onclick: action }, sign);
    this.invert = button("invert", "◐", () => this.change({ inverted: !this.view.inverted }));
    const slider = (name, key) => {
      const input = h("input", { type: "range", min: 1, max: 255, step: 1, "aria-label": t(key) });
      input.addEventListener("input", () => this.change({ [name]: Number(input.value) }));
      return input;
    };
    this.centre = slider("centre", "window_centre");
    this.width = slider("width", "window_width");
    const dragging = [
      ["move", t("drag_move")],
      ["window", t("drag_window")],
    ];
    return h(
      "div",
      { class: "viewing" },
      h(
        "div",
        { class: "buttons" },
        button("zoom_out", "−", () => this.zoomBy(1 / 1.5)),
        button("zoom_in", "+", () => this.zoomBy(1.5)),
        this.invert,
        button("reset", "↺", () => this.change({ ...START })),
        radios("drag", t("drag"), dragging, this.item.dragging ?? "move", (value) => {
          this.item.dragging = value;
          this.paint();
        }),
      ),
      h("label", { class: "slider" }, h("span", {}, t("window_centre")), this.centre),
      h("label", { class: "slider" }, h("span", {}, t("window_width")), this.width),
    );
  }

  listen() {
    const { stage } = this;
    stage.addEventListener("pointerdown", (event) => {
      stage.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, event);
      this.windowing = this.item.dragging === "window" || event.shiftKey || event.button === 2;
    });
    stage.addEventListener("pointermove", (event) => this.drag(event));
    for (const end of ["pointerup", "pointercancel"])
      stage.addEventListener(end, (event) => this.pointers.delete(event.pointerId));
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    stage.addEventListener("dblclick", (event) => {
      if (this.view.zoom > 1) this.change({ zoom: 1, x: 0, y: 0 });
      else this.zoomBy(2.5, event);
    });
    stage.addEventListener(
      "wheel",
      (event) => {
        if (!event.ctrlKey) return; // the wheel alone scrolls the page
        event.preventDefault();
        this.zoomBy(Math.exp(-event.deltaY / 200), event);
      },
      { passive: false },
    );
    stage.addEventListener("keydown", (event) => this.key(event));
  }

  drag(event) {
    const before = this.pointers.get(event.pointerId);
    if (!before) return;
    const others = [...this.pointers.values()].filter((other) => other.pointerId !== event.pointerId);
    this.pointers.set(event.pointerId, event);
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (others.length) {
      const apart = (point) => Math.hypot(point.clientX - others[0].clientX, point.clientY - others[0].clientY);
      this.zoomBy(apart(event) / Math.max(1, apart(before)), event);
    } else if (this.windowing) this.windowBy(dx, dy);
    else this.change({ x: this.view.x + dx, y: this.view.y + dy });
  }

  key(event) {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
    if (arrows[event.key]) {
      const [dx, dy] = arrows[event.key].map((step) => 16 * step);
      if (this.item.dragging === "window") this.windowBy(dx, dy);
      else this.change({ x: this.view.x - dx, y: this.view.y - dy });
    } else if (event.key === "+" || event.key === "=") this.zoomBy(1.5);
    else if (event.key === "-") this.zoomBy(1 / 1.5);
    else if (event.key === "i") this.change({ inverted: !this.view.inverted });
    else if (event.key === "0") this.change({ ...START });
    else return;
    event.preventDefault();
  }

  // To the right widens the window, down raises its centre, which darkens: as at a radiologist's workplace.
  windowBy(dx, dy) {
    const step = 255 / this.stage.clientWidth;
    this.change({ width: this.view.width + step * dx, centre: this.view.centre + step * dy });
  }

  zoomBy(factor, event) {
    const box = this.stage.getBoundingClientRect();
    const [px, py] = event
      ? [event.clientX - box.left - box.width / 2, event.clientY - box.top - box.height / 2]
      : [0, 0];
    const zoom = clamp(this.view.zoom * factor, 1, 12);
    const grown = zoom / this.view.zoom;
    this.change({ zoom, x: px - grown * (px - this.view.x), y: py - grown * (py - this.view.y) });
  }

  change(changes) {
    Object.assign(this.view, changes);
    this.paint();
  }

  paint() {
    const { view, stage } = this;
    const room = (length) => (Math.max(0, length) * (view.zoom - 1)) / 2;
    view.x = clamp(view.x, -room(stage.clientWidth), room(stage.clientWidth));
    view.y = clamp(view.y, -room(stage.clientHeight), room(stage.clientHeight));
    view.width = clamp(view.width, 1, 255);
    view.centre = clamp(view.centre, 1, 255);
    this.layers.style.transform = `translate(${view.x}px, ${view.y}px) scale(${view.zoom})`;
    const sign = view.inverted ? -1 : 1;
    const slope = (sign * 255) / view.width;
    const intercept = 0.5 - (slope * view.centre) / 255;
    for (const channel of this.functions) {
      channel.setAttribute("slope", slope);
      channel.setAttribute("intercept", intercept);
    }
    this.centre.value = view.centre;
    this.width.value = view.width;
    this.invert.setAttribute("aria-pressed", view.inverted);
    stage.classList.toggle("grabs", view.zoom > 1 || this.item.dragging === "window");
  }
}
