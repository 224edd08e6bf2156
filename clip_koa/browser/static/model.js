// The model: what it computes in ONNX Runtime, and what is read from that, as grading_clip_koa.py does.

import { measureAppearance, otherwise } from "./appearance.js";
import { FILTERS, same, symmetric } from "./gray.js";
import { readTensors } from "./safetensors.js";

const BATCH = 8; // windows in which knees are looked for together
const ATYPICAL = 0.99;

export class Model {
  // `ort` is ONNX Runtime; `facts` is model.json; `fetchBytes(name)` gives a file of the release.
  static async load(ort, facts, fetchBytes) {
    const create = async (name) => ort.InferenceSession.create(await fetchBytes(name), { executionProviders: ["wasm"], graphOptimizationLevel: "all" });
    const parts = facts.parts;
    const tensors = parts.typicality ? readTensors(await fetchBytes(parts.typicality)) : null;
    const grades = await create(parts.grade);
    const locates = parts.locate ? await create(parts.locate) : null;
    return new Model(ort, facts, tensors, grades, locates);
  }

  constructor(ort, facts, typicality, grades, locates) {
    Object.assign(this, { ort, facts, typicality, grades, locates });
  }

  get canFindKnees() {
    return Boolean(this.locates);
  }

  // The six numbers of each window in which a knee is looked for.
  async locate(windows) {
    const side = this.facts.window;
    const answers = [];
    for (let start = 0; start < windows.length; start += BATCH) {
      const part = windows.slice(start, start + BATCH);
      const values = new Float32Array(part.length * side * side);
      part.forEach((window, place) => values.set(window.data, place * side * side));
      const { found } = await this.locates.run({ windows: new this.ort.Tensor("float32", values, [part.length, side, side]) });
      for (let place = 0; place < part.length; place++) answers.push([...found.data.slice(6 * place, 6 * place + 6)]);
    }
    return answers;
  }

  // What is said of a picture of one knee.
  async grade(picture) {
    const { facts } = this;
    const { size } = facts;
    const pixels = pixelValues(picture, facts);
    const answer = await this.grades.run({ pixel_values: new this.ort.Tensor("float32", pixels, [1, 3, size, size]) });
    const [one, other] = [[...answer.logits.data], [...answer.flipped_logits.data]];
    const probabilities = softmax(one.map((value, grade) => (value + other[grade]) / 2));
    const atypicality = this.typicality ? shareMoreTypical(this.typicality, answer.features.data) : null;
    const isAtypical = atypicality !== null && atypicality >= ATYPICAL;
    const bounds = this.typicality?.bounds;
    let ways = bounds ? otherwise(measureAppearance(picture), pairs(bounds.data)) : [];
    if (isAtypical) ways = ways.filter((way) => way !== "metal");
    return {
      probabilities,
      imageProbabilities: softmax(one),
      mirrorProbabilities: softmax(other),
      grade: likeliest(probabilities),
      set: facts.sets === null ? [] : confidenceSet(probabilities, facts.sets),
      atypicality,
      isAtypical,
      ways,
      trouble: ways.includes("metal") ? "metal" : bounds && isAtypical ? "unlike" : "",
    };
  }
}

export const likeliest = (shares) => shares.indexOf(Math.max(...shares));

const pairs = (data) => Array.from({ length: data.length / 2 }, (_, place) => [data[2 * place], data[2 * place + 1]]);

// (3, size, size) values: the box that the model sees, in its size, each gray level as the model takes it.
export function pixelValues(picture, { size, seen, shades }) {
  const { data } = square(picture, size, seen);
  const values = new Float32Array(3 * data.length);
  shades.forEach((shade, channel) => data.forEach((value, place) => (values[channel * data.length + place] = shade[value])));
  return values;
}

// `seen` is the side of the square that the model sees, in shorter sides of the picture; null: it sees all, squeezed.
function square(picture, size, seen) {
  const [width, height] = picture.size;
  const sides = seen === null ? [width, height] : [Math.min(width, height) * seen, Math.min(width, height) * seen];
  const [left, top] = [(width - sides[0]) / 2, (height - sides[1]) / 2];
  const box = [left, top, width - left, height - top];
  if (width === size && height === size && same(box, picture.whole)) return picture;
  return symmetric(picture, (view) => view.resize([size, size], FILTERS.bicubic, box));
}

function softmax(logits) {
  const most = Math.max(...logits);
  const exponents = logits.map((value) => Math.exp(value - most));
  const sum = exponents.reduce((one, other) => one + other);
  return exponents.map((value) => value / sum);
}

// The grades whose probability is at least their limit, the likeliest, and those between. Of an earlier calibration the
// largest interval that grows from the likeliest grade to its likelier neighbour, within the threshold.
function confidenceSet(probabilities, { least, threshold }) {
  let low = likeliest(probabilities);
  let high = low;
  if (least) {
    const taken = probabilities.map((share, grade) => grade === low || share >= least[grade] - 1e-5);
    return range(taken.indexOf(true), taken.lastIndexOf(true));
  }
  let mass = probabilities[low];
  for (;;) {
    const [down, up] = [probabilities[low - 1] ?? -1, probabilities[high + 1] ?? -1];
    mass += Math.max(down, up);
    if (Math.max(down, up) < 0 || mass > threshold + 1e-9) break;
    if (down > up) low--;
    else high++;
  }
  return range(low, high);
}

const range = (low, high) => Array.from({ length: high - low + 1 }, (_, place) => low + place);

// The share of X-rays that the model was not trained on which are more typical than these features.
function shareMoreTypical({ mean, precision, distances, direction, offset }, features) {
  const centred = Array.from(features, (value, place) => value - mean.data[place]);
  let distance = 0;
  for (let row = 0; row < centred.length; row++) {
    let product = 0;
    for (let place = 0; place < centred.length; place++) product += centred[place] * precision.data[place * centred.length + row];
    distance += product * centred[row];
  }
  if (direction) {
    const along = features.reduce((sum, value, place) => sum + value * direction.data[place], 0);
    distance *= 1 + Math.max(0, along - offset.data[0]);
  }
  const measured = Math.fround(distance);
  let count = 0;
  while (count < distances.data.length && distances.data[count] < measured) count++;
  return count / distances.data.length;
}
