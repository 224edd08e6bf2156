// Flat frames around an X-ray, as frames_clip_koa.py finds them.

import { FILTERS, round, symmetric } from "./gray.js";

const LINES = 128;
const LEAST_LINES = 8;
const SHARE = 0.98;
const TOLERANCE = 6;

export const shrink = (picture, size) => symmetric(picture, (view) => view.resize(size, FILTERS.bicubic, undefined, 2));

// The box (left, top, right, bottom) inside flat frames; the whole where all is flat.
export function insideOfFrames(picture) {
  const { size } = picture;
  const lines = size.map((length) => Math.min(LINES, length));
  const whole = [0, 0, ...lines];
  const grid = lines[0] === size[0] && lines[1] === size[1] ? picture : shrink(picture, lines);
  const box = [...whole];
  let before = null;
  while (!before || box.some((edge, place) => edge !== before[place])) {
    before = [...box];
    const part = grid.crop(box);
    if (Math.min(...part.size) <= LEAST_LINES) return [0, 0, ...size];
    [column(part, 0), row(part, 0), column(part, part.width - 1), row(part, part.height - 1)].forEach((line, edge) => {
      if (isFlat(line)) box[edge] += edge < 2 ? 1 : -1;
    });
  }
  return box.map((place, edge) => (place === whole[edge] ? [0, 0, ...size][edge] : exactEdge(picture, box, edge, lines)));
}

// Where in the pixels a frame ends that ends near a line of the coarse box.
function exactEdge(picture, box, edge, lines) {
  const axis = edge % 2;
  const length = picture.size[axis];
  const [step, across] = [length / lines[axis], picture.size[1 - axis] / lines[1 - axis]];
  const [from, to] = [Math.ceil(box[1 - axis] * across), Math.floor(box[3 - axis] * across)];
  const [low, high] = [-2, 2].map((more) => Math.min(length, Math.max(0, round((box[edge] + more) * step))));
  const begins = edge < 2;
  for (let count = 0; count < high - low; count++) {
    const place = begins ? low + count : high - 1 - count;
    const line = picture.crop(axis ? [from, place, to, place + 1] : [place, from, place + 1, to]).data;
    if (!isFlat(line)) return begins ? place : place + 1;
  }
  return begins ? high : low;
}

const column = (part, x) => Uint8Array.from({ length: part.height }, (_, y) => part.data[y * part.width + x]);
const row = (part, y) => part.data.subarray(y * part.width, (y + 1) * part.width);

function isFlat(line) {
  const sorted = Uint8Array.from(line).sort();
  const half = sorted.length >> 1;
  const median = sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  let near = 0;
  for (const value of line) if (Math.abs(value - median) <= TOLERANCE) near++;
  return near / line.length >= SHARE;
}

