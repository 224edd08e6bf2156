// Building elements, and the texts of the chosen language.

let texts = {};

export async function loadTexts(language) {
  const answer = await fetch(`texts/${language}`);
  texts = await answer.json();
}

// The text of a key, its {words} filled in.
export function t(key, values = {}) {
  return texts[key].replace(/\{(\w+)\}/g, (_, name) => values[name] ?? "");
}

// An element: h("p", {class: "sure", onclick: f}, "words", otherElement).
export function h(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

// A group of radio buttons; `choices` are [value, label].
export function radios(name, legend, choices, chosen, onchange) {
  return h(
    "fieldset",
    { class: "radios" },
    h("legend", {}, legend),
    choices.map(([value, label]) => {
      const input = h("input", { type: "radio", name, value, "data-focus": `${name}-${value}`, onchange: () => onchange(value) });
      input.checked = value === chosen;
      return h("label", {}, input, h("span", {}, label));
    }),
  );
}

export const percent = (share) => `${Math.round(100 * share)} %`;
