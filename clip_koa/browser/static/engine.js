// The worker: holds the model and the films that were read, and answers the page's questions one after the other.

import { frameFilm, describe, pictureOf, placeBox, readFilm, readXray } from "./reader.js";
import { Model } from "./model.js";
import { Refused } from "./refused.js";
import { FILTERS } from "./gray.js";

const SIDES = { xray: 1600, film: 1600, mirror: 192, thumbnail: 192 }; // pixels of pictures' longer sides, at most
const films = new Map();
const filmPictures = new Map(); // by film and polarity: each film is shown with every knee of it
let model = null;

const tasks = {
  async load({ base, threads }) {
    const at = (name) => new URL(name, base).href;
    const ort = await import(at("vendor/ort.wasm.min.mjs"));
    ort.env.wasm.wasmPaths = { mjs: at("vendor/ort-wasm-simd-threaded.mjs"), wasm: at("vendor/ort-wasm-simd-threaded.wasm") };
    ort.env.wasm.numThreads = threads;
    const read = async (name) => {
      const answer = await fetch(at(name));
      if (!answer.ok) throw new Error(`${name}: ${answer.status}`);
      return new Uint8Array(await answer.arrayBuffer());
    };
    const facts = JSON.parse(new TextDecoder().decode(await read("model/model.json")));
    model = await Model.load(ort, facts, (name) => read(`model/${name}`));
    return { facts, threads };
  },

  // `example` is { grade, side } of an example.
  async read({ name, bytes, framing, example }) {
    const xray = await readXray(new Uint8Array(bytes), name);
    const known = example ? { laterality: example.side, trueGrade: example.grade } : {};
    return kept(await readFilm(model, { ...xray, ...known }, framing));
  },

  async frame({ film, framing }) {
    return kept(await frameFilm(model, films.get(film), framing));
  },

  async place({ film, reading, box, isNew }) {
    const known = films.get(film);
    return kept(await placeBox(model, known, box, isNew ? null : known.readings.find((one) => one.id === reading)));
  },

  async forget({ film, reading }) {
    const known = films.get(film);
    if (!known) return {};
    const readings = known.readings.filter((one) => one.id !== reading);
    if (readings.length) films.set(film, { ...known, readings });
    else forgetFilm(film);
    return {};
  },

  async leave() {
    for (const film of [...films.keys()]) forgetFilm(film);
    return {};
  },
};

function forgetFilm(id) {
  films.delete(id);
  for (const inverted of [true, false]) filmPictures.delete(`${id} ${inverted}`);
}

// Keeps a film; gives its knees as the page takes them, with pictures of those that are new.
async function kept(film) {
  const before = films.get(film.id);
  films.set(film.id, film);
  const isNew = (one) => !before?.readings.some((other) => other.id === one.id);
  const knees = film.readings.map((one) => describe(model, film, one));
  const pictures = {};
  const key = `${film.id} ${film.inverted}`;
  if (!filmPictures.has(key)) filmPictures.set(key, await asPng(film.gray, SIDES.film));
  for (const one of film.readings.filter(isNew)) {
    const picture = pictureOf(film, one);
    pictures[one.id] = {
      xray: await asPng(picture, SIDES.xray), thumbnail: await asPng(picture, SIDES.thumbnail),
      mirror: await asPng(picture.mirror(), SIDES.mirror), film: filmPictures.get(key),
    };
  }
  return { knees, pictures };
}

async function asPng(gray, most) {
  const scale = Math.min(1, most / Math.max(...gray.size));
  const small = gray.resize(gray.size.map((length) => Math.max(1, Math.round(scale * length))), FILTERS.bicubic);
  const pixels = new ImageData(small.width, small.height);
  const words = new Uint32Array(pixels.data.buffer);
  for (let place = 0; place < words.length; place++) words[place] = 0xff000000 | (0x10101 * small.data[place]);
  const canvas = new OffscreenCanvas(small.width, small.height);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
  return canvas.convertToBlob({ type: "image/png" });
}

let last = Promise.resolve();
self.onmessage = ({ data: { id, task, ...given } }) => {
  last = last.then(async () => {
    try {
      self.postMessage({ id, answer: await tasks[task](given) });
    } catch (error) {
      const refused = error instanceof Refused ? { code: error.code, values: error.values } : { code: "failed_here", values: {}, cause: String(error) };
      self.postMessage({ id, refused });
    }
  });
};
self.postMessage({ id: 0, answer: {} }); // it listens now
