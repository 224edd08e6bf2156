// Whether a crop of a knee shows bone dark on a bright ground, as `is_inverted` of preprocessing_clip_koa.py judges.

import { FILTERS, round } from "./gray.js";

const CROP_ASPECT = 4 / 3;
const GRID = 64;
const SHARES = [0.95, 0.88];
const TOLERANCE = 10;
const DEPTH = 21;
const MARGIN = 2;

export function isInverted(gray) {
  return SHARES.every((share) => [gray, gray.mirror()].every((view) => showsBoneDark(view, share)));
}

function showsBoneDark(gray, share) {
  const box = insideOfFrame(gray, share);
  if (!box) return false;
  const inside = gray.crop(box);
  if (Math.max(...inside.size) > CROP_ASPECT * Math.min(...inside.size)) return false;
  const { data } = boxed(inside, 32);
  const mean = (left, right, top, bottom) => {
    let sum = 0;
    for (let y = top; y < bottom; y++) for (let x = left; x < right; x++) sum += data[32 * y + x];
    return sum / ((right - left) * (bottom - top));
  };
  const middle = mean(0, 32, 0, 32);
  const spread = Math.sqrt(data.reduce((sum, value) => sum + (value - middle) ** 2, 0) / data.length);
  const sides = (mean(0, 3, 0, 32) + mean(29, 32, 0, 32)) / 2;
  if (spread === 0 || (mean(10, 22, 0, 32) - sides) / spread > -0.3) return false;
  const bone = (mean(8, 24, 6, 12) + mean(8, 24, 22, 28)) / 2;
  return mean(8, 24, 15, 19) >= bone - 0.05 * spread;
}

// Means over a grid of `side` by `side` boxes.
function boxed(gray, side) {
  const whole = Math.min(...gray.size) >= 2 * side;
  const reduced = whole ? gray.reduce(Math.floor(gray.width / side), Math.floor(gray.height / side)) : gray;
  return reduced.resize([side, side], FILTERS.box);
}

// The box inside flat frames; nothing where a frame takes more than a third of a side.
function insideOfFrame(gray, share) {
  const { data } = boxed(gray, GRID);
  const row = (y, from, to) => data.subarray(GRID * y + from, GRID * y + to);
  const column = (x, from, to) => Uint8Array.from({ length: to - from }, (_, y) => data[GRID * (from + y) + x]);
  const last = GRID - 1;
  let ends = [0, 0, 0, 0];
  let before = null;
  while (!before || ends.some((end, place) => end !== before[place])) {
    before = ends;
    const [top, bottom, left, right] = ends;
    ends = [
      flatLines((line) => row(line, left, GRID - right), top, share),
      flatLines((line) => row(last - line, left, GRID - right), bottom, share),
      flatLines((line) => column(line, top, GRID - bottom), left, share),
      flatLines((line) => column(last - line, top, GRID - bottom), right, share),
    ];
  }
  if (Math.max(...ends) === DEPTH) return null;
  const [top, bottom, left, right] = ends.map((end) => (end ? Math.min(end + MARGIN, DEPTH) : 0));
  const [width, height] = [gray.width / GRID, gray.height / GRID];
  return [round(left * width), round(top * height), round(gray.width - right * width), round(gray.height - bottom * height)];
}

function flatLines(lineAt, start, share) {
  for (let line = start; line < DEPTH; line++) {
    const values = Uint8Array.from(lineAt(line)).sort();
    const median = values[values.length >> 1];
    let near = 0;
    for (const value of values) if (Math.abs(value - median) <= TOLERANCE) near++;
    if (near < share * values.length) return line;
  }
  return DEPTH;
}
