// The window of values deeper than 8 bits, as preprocessing_clip_koa.py opens it.

import { round } from "./gray.js";

const PERCENTILES = [0.5, 99.5];

// The gray value of each level; `counts` says how many pixels have it, 0 leaves it out of the percentiles.
export function windowTable(levels, counts) {
  const order = levels.map((_, place) => place).filter((place) => counts[place] > 0);
  order.sort((one, other) => levels[one] - levels[other] || one - other);
  if (!order.length) return new Uint8Array(levels.length);
  const sums = [];
  order.reduce((sum, place) => (sums[sums.length] = sum + counts[place]), 0);
  const at = (percent) => {
    const rank = (percent / 100) * (sums.at(-1) - 1);
    return levels[order[sums.findIndex((sum) => sum > rank)]];
  };
  let [low, high] = PERCENTILES.map(at);
  if (high <= low) [low, high] = [levels[order[0]], levels[order.at(-1)]];
  const scale = high > low ? 255 / (high - low) : 0;
  return Uint8Array.from(levels, (value) => round((Math.min(high, Math.max(low, value)) - low) * scale));
}

// The smallest value, and how often it and each one up to the largest occur.
export function countValues(values) {
  let [first, last] = [Infinity, -Infinity];
  for (const value of values) {
    if (value < first) first = value;
    if (value > last) last = value;
  }
  const counts = new Float64Array(last - first + 1);
  for (const value of values) counts[value - first]++;
  return { first, counts };
}
