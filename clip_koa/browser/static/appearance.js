// In which ways an X-ray was taken or stored otherwise than those of training, as appearance_clip_koa.py measures it.

import { insideOfFrames } from "./frames.js";
import { FILTERS, Gray, symmetric } from "./gray.js";

export const WAYS = ["contrast", "brightness", "sharpness", "resolution", "frame", "metal"];
const SIDE = 224;
const BRIGHT = 0.06;
const WIDTH = 3;
const EDGE = 2;
const DARKER = 0.25;

export function measureAppearance(picture) {
  const square = centralSquare(picture);
  const half = halved(square);
  const box = insideOfFrames(half);
  const inside = square.crop(box.map((edge) => 2 * edge));
  const [low, middle, high] = percentiles(inside, [5, 50, 95]).map((value) => value / 255);
  return {
    contrast: high - low,
    brightness: middle,
    sharpness: sharpness(inside),
    resolution: Math.min(1, Math.min(...picture.size) / SIDE),
    frame: 1 - inside.data.length / SIDE ** 2,
    metal: metal(half.crop(box)),
  };
}

// `bounds` are [lowest, highest] of each way.
export const otherwise = (measures, bounds) => WAYS.filter((way, place) => !(bounds[place][0] <= measures[way] && measures[way] <= bounds[place][1]));

function centralSquare(picture) {
  const side = Math.min(...picture.size);
  const [left, top] = [(picture.width - side) / 2, (picture.height - side) / 2];
  if (picture.width === SIDE && picture.height === SIDE) return picture;
  return symmetric(picture, (view) => view.resize([SIDE, SIDE], FILTERS.bicubic, [left, top, left + side, top + side], 2));
}

function halved({ width, height, data }) {
  const out = new Gray(width / 2, height / 2);
  for (let y = 0; y < out.height; y++)
    for (let x = 0; x < out.width; x++) {
      const place = 2 * y * width + 2 * x;
      out.data[y * out.width + x] = (data[place] + data[place + 1] + data[place + width] + data[place + width + 1] + 2) >> 2;
    }
  return out;
}

// The gray levels below which these percents of the pixels lie.
function percentiles(picture, percents) {
  const shares = picture.histogram();
  for (let level = 1; level < 256; level++) shares[level] += shares[level - 1];
  return percents.map((percent) => shares.findIndex((share) => share >= (percent / 100) * shares[255]));
}

function sharpness({ width, height, data }) {
  let [sum, squares, differences] = [0, 0, 0];
  for (const value of data) {
    sum += value;
    squares += value * value;
  }
  for (let y = 1; y < height - 1; y++)
    for (let x = 1; x < width - 1; x++) {
      const place = y * width + x;
      differences += (4 * data[place] - data[place - width] - data[place + width] - data[place - 1] - data[place + 1]) ** 2;
    }
  const variance = data.length * squares - sum ** 2;
  if (!variance) return 0;
  return Math.sqrt(differences / ((width - 2) * (height - 2)) / (variance / data.length ** 2)) / 4;
}

// The share of the middle that is bright all over, in pieces of some width, times how sharp these end, squared.
function metal(picture) {
  const { width, height, data } = picture;
  const [low, top] = percentiles(picture, [1, 99.5]);
  const scale = Math.max(1, top - low);
  const bright = new Gray(width, height, data.map((value) => (value >= top - BRIGHT * scale ? 255 : 0)));
  const mask = bright.extreme(WIDTH, false).extreme(WIDTH, true);
  const inner = mask.extreme(3, false);
  const darkest = picture.extreme(2 * EDGE + 1, false);
  let [edges, sharp] = [0, 0];
  mask.data.forEach((value, place) => {
    if (!value || inner.data[place]) return;
    edges++;
    if (darkest.data[place] <= top - DARKER * scale) sharp++;
  });
  if (!edges) return 0;
  const [across, down] = [width >> 3, height >> 3];
  const middle = mask.crop([across, down, width - across, height - down]).data;
  return (middle.reduce((sum, value) => sum + (value > 0), 0) / middle.length) * (sharp / edges) ** 2;
}
