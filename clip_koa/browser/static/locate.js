// Where the knees lie in a picture, as localisation_clip_koa.py finds them.

import { insideOfFrames, shrink } from "./frames.js";
import { Gray, round, same } from "./gray.js";

export const MOST_OUTSIDE = 0.1;
const UNIT_DEGREES = 15;
const STEP = Math.SQRT2;
const FRAMED = { offset: 0.08, scale: 0.14, aspect: 1.1 };
const TURNED = 5;
const SEARCHED = [[1, 0.5], [0.27]];
const STRIDE = 0.45;
const MOST_WINDOWS = 160;
const HINT = 0.25;
const SURE = 0.7;
const FOLLOWED = 6;
const STEPS = 3;
const SAME = 0.3;
const MOST_RATIO = 1.5;
const MOST_HIGHER = 0.8;

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const radians = (degrees) => (degrees * Math.PI) / 180;

// A picture in several sizes, out of which windows of any place, size and angle are cut. `x` is from its middle.
class Pyramid {
  constructor(picture) {
    this.picture = picture;
    this.levels = new Map();
  }

  window([x, y], side, size, angle = 0) {
    const [level, mirrored] = this.level(round(Math.log(Math.max(1, side / size)) / Math.log(STEP)));
    const scale = [level.width / this.picture.width, level.height / this.picture.height];
    const [across, down] = [x * scale[0], y * scale[1]];
    const step = [(side / size) * scale[0], (side / size) * scale[1]];
    const one = level.sample(size, turned([level.width / 2 + across, down], step, size, angle));
    const other = mirrored.sample(size, turned([level.width / 2 - across, down], step, size, -angle)).mirror();
    return new Gray(size, size, one.data.map((value, place) => (value + other.data[place] + 1) >> 1));
  }

  level(number) {
    if (!this.levels.has(number)) {
      const size = this.picture.size.map((length) => Math.max(1, round(length / STEP ** number)));
      const level = number ? shrink(this.picture, size) : this.picture;
      this.levels.set(number, [level, level.mirror()]);
    }
    return this.levels.get(number);
  }
}

function turned(centre, step, size, angle) {
  const [cosine, sine] = [Math.cos(radians(angle)), Math.sin(radians(angle))];
  const across = [step[0] * cosine, -step[0] * sine];
  const down = [step[1] * sine, step[1] * cosine];
  const half = size / 2;
  return [...across, centre[0] - half * (across[0] + across[1]), ...down, centre[1] - half * (down[0] + down[1])];
}

const isSure = (guess) => guess.confidence >= SURE && guess.strange <= 1;

// The box that the locator sees from this one as a window.
function moved(guess, [across, down, scale, turn, confidence, strange]) {
  const [cosine, sine] = [Math.cos(radians(guess.angle)), Math.sin(radians(guess.angle))];
  return {
    x: guess.x + guess.side * (cosine * across - sine * down),
    y: guess.y + guess.side * (sine * across + cosine * down),
    side: guess.side * Math.exp(clamp(scale, -1.2, 1.2)),
    angle: clamp(guess.angle + UNIT_DEGREES * turn, -30, 30),
    confidence,
    strange,
  };
}

function overlap(one, other) {
  const shared = [[one.x, other.x], [one.y, other.y]]
    .map(([a, b]) => Math.max(0, (one.side + other.side) / 2 - Math.max(Math.abs(a - b), Math.abs(one.side - other.side) / 2)))
    .reduce((product, length) => product * length);
  return shared / (one.side ** 2 + other.side ** 2 - shared);
}

// The knees in a picture, at most two, the one at its left first. `locate` gives six numbers of each of some windows.
export async function findKnees(picture, locate, windowSide) {
  const pyramid = new Pyramid(picture);
  const look = async (guesses) => {
    const answers = await locate(guesses.map((guess) => pyramid.window([guess.x, guess.y], guess.side, windowSide, guess.angle)));
    return guesses.map((guess, place) => [answers[place], moved(guess, answers[place])]);
  };
  const inside = insideOfFrames(picture);
  const boxes = same(inside, picture.whole) ? [picture.whole] : [picture.whole, inside];
  const first = await look(boxes.map((box) => central(box, picture.width)));
  const framed = boxes.find((box, place) => isFramed(first[place][0], box));
  if (framed) return [knee(framed, { framed: same(framed, picture.whole) })];
  const likeliest = first.map(([, guess]) => guess).reduce((best, guess) => (guess.confidence > best.confidence ? guess : best));
  const second = likeliest.confidence >= HINT ? await look([likeliest]) : [];
  let found = second.map(([, guess]) => guess).filter(isSure);
  if (!found.length || hasRoomBeside(found[0], inside, picture.width)) found = await search(look, inside, picture.width);
  return choose(found).sort((one, other) => one.x - other.x).map((guess) => asKnee(guess, picture.size));
}

const knee = (box, known = {}) => ({ box, side: "", sideAssumed: false, angle: 0, framed: false, outside: 0, ...known });

function central([left, top, right, bottom], width) {
  return { x: (left + right - width) / 2, y: (top + bottom) / 2, side: Math.min(right - left, bottom - top), angle: 0 };
}

function isFramed(answer, box) {
  const [across, down, scale, turn, confidence, strange] = answer.map(Math.abs);
  const placed = Math.max(across, down) <= FRAMED.offset && scale <= FRAMED.scale && turn * UNIT_DEGREES <= TURNED;
  const sides = [box[2] - box[0], box[3] - box[1]];
  return placed && confidence >= SURE && strange <= 1 && Math.max(...sides) <= FRAMED.aspect * Math.min(...sides);
}

function hasRoomBeside(guess, inside, width) {
  const middle = guess.x + width / 2;
  return Math.max(middle - inside[0], inside[2] - middle) > 1.3 * guess.side;
}

// The surest first, without those that overlap a surer one.
function distinct(guesses) {
  const kept = [];
  for (const guess of [...guesses].sort((one, other) => other.confidence - one.confidence))
    if (kept.every((other) => overlap(guess, other) <= SAME)) kept.push(guess);
  return kept;
}

// Knees of any size inside a box: windows over all of it, and steps from the likeliest ones.
async function search(look, inside, width) {
  const hinted = async (guesses) => distinct((await look(guesses)).map(([, guess]) => guess).filter((guess) => guess.confidence >= HINT));
  for (const shares of SEARCHED) {
    const starts = shares.flatMap((share) => grid(inside, share, width)).slice(0, MOST_WINDOWS);
    let guesses = (await hinted(starts)).slice(0, FOLLOWED);
    for (let step = 0; step < STEPS; step++) guesses = await hinted(guesses);
    const found = guesses.filter(isSure);
    if (found.length) return found;
  }
  return [];
}

// Square windows over a box, placed alike from both its sides.
function grid([left, top, right, bottom], share, width) {
  [left, right] = [left - width / 2, right - width / 2];
  const side = share * Math.min(right - left, bottom - top);
  const [columns, rows] = [[left, right], [top, bottom]].map(([low, high]) => {
    const count = 1 + Math.ceil((high - low - side) / (STRIDE * side) - 1e-6);
    const [middle, step] = [(low + high) / 2, (high - low - side) / Math.max(1, count - 1)];
    return Array.from({ length: count }, (_, number) => middle + step * (number - (count - 1) / 2));
  });
  return rows.flatMap((y) => columns.map((x) => ({ x, y, side, angle: 0 })));
}

// The surest knee, and one that lies beside it and is of its size.
function choose(guesses) {
  const [first, ...others] = distinct(guesses);
  if (!first) return [];
  const beside = others.find((other) => {
    const ratio = Math.max(first.side, other.side) / Math.min(first.side, other.side);
    const most = MOST_HIGHER * ((first.side + other.side) / 2);
    return ratio <= MOST_RATIO && Math.abs(first.y - other.y) <= most && most < 1.6 * Math.abs(first.x - other.x);
  });
  return beside ? [first, beside] : [first];
}

function asKnee(guess, [width, height]) {
  const side = Math.max(2, 2 * round((guess.side - (width % 2)) / 2) + (width % 2));
  const left = round(guess.x) + Math.floor((width - side) / 2);
  const top = round(guess.y - side / 2);
  const box = [left, top, left + side, top + side];
  return knee(box, { angle: Math.abs(guess.angle) > TURNED ? guess.angle : 0, outside: outsideOf(box, [width, height]) });
}

// The share of a box that lies outside of a picture.
export function outsideOf(box, size) {
  const [across, down] = [0, 1].map((axis) => Math.max(0, Math.min(box[axis + 2], size[axis]) - Math.max(box[axis], 0)));
  return 1 - (across * down) / ((box[2] - box[0]) * (box[3] - box[1]));
}

// Knees, from left to right of their picture, with their sides; right knee first. `known` is "", "L" or "R".
export function nameSides(knees, known) {
  if (knees.length === 1 && known) return [{ ...knees[0], side: known }];
  if (knees.length !== 2) return knees;
  return knees.map((one, place) => ({ ...one, side: "RL"[place], sideAssumed: true }));
}

// The picture of one knee, as training crops are.
export function cutKnee(picture, { box, angle, framed }) {
  if (framed) return picture;
  if (!angle) return picture.crop(box);
  const [left, top, right, bottom] = box;
  return new Pyramid(picture).window([(left + right - picture.width) / 2, (top + bottom) / 2], right - left, right - left, angle);
}
