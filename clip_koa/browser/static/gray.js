// 8-bit gray pictures and what is done to them, in the arithmetic of Pillow, so that the same file has the same pixels
// here and in Python (Pillow's Resample.c, Reduce.c and Geometry.c; tests/clip_koa/browser/test_browser_pixels.py).

const PRECISION = 22; // bits behind the point of a coefficient
const clip8 = (value) => (value < 0 ? 0 : value > 255 ? 255 : value);

// Rounds halves to the even number, as Python and NumPy do.
export function round(value) {
  const low = Math.floor(value);
  const rest = value - low;
  return rest > 0.5 || (rest === 0.5 && low % 2 !== 0) ? low + 1 : low;
}

export class Gray {
  constructor(width, height, data = new Uint8Array(width * height)) {
    Object.assign(this, { width, height, data });
  }

  get size() {
    return [this.width, this.height];
  }

  get whole() {
    return [0, 0, this.width, this.height];
  }

  mirror() {
    const { width, height, data } = this;
    const out = new Uint8Array(data.length);
    for (let y = 0; y < height; y++) {
      const row = y * width;
      for (let x = 0; x < width; x++) out[row + width - 1 - x] = data[row + x];
    }
    return new Gray(width, height, out);
  }

  invert() {
    return new Gray(this.width, this.height, this.data.map((value) => 255 - value));
  }

  // What lies outside of the picture is black.
  crop([left, top, right, bottom]) {
    const out = new Gray(right - left, bottom - top);
    const [from, to] = [Math.max(0, left), Math.min(this.width, right)];
    for (let y = Math.max(0, top); y < Math.min(this.height, bottom) && from < to; y++)
      out.data.set(this.data.subarray(y * this.width + from, y * this.width + to), (y - top) * out.width + from - left);
    return out;
  }

  // Means of boxes of `across` by `down` pixels; the last ones may have fewer.
  reduce(across, down, [left, top, right, bottom] = this.whole) {
    const [width, height] = [Math.ceil((right - left) / across), Math.ceil((bottom - top) / down)];
    const out = new Uint8Array(width * height);
    for (let y = 0; y < height; y++) {
      const rows = [top + y * down, Math.min(bottom, top + (y + 1) * down)];
      for (let x = 0; x < width; x++) {
        const columns = [left + x * across, Math.min(right, left + (x + 1) * across)];
        const count = (rows[1] - rows[0]) * (columns[1] - columns[0]);
        let sum = Math.floor(count / 2);
        for (let row = rows[0]; row < rows[1]; row++)
          for (let place = row * this.width + columns[0]; place < row * this.width + columns[1]; place++) sum += this.data[place];
        out[y * width + x] = Math.floor((sum * Math.floor(Math.fround(2 ** 32 / (256 * count)))) / 2 ** 24);
      }
    }
    return new Gray(width, height, out);
  }

  // `filter` is of `FILTERS`; `box` may lie between pixels; `gap` lets whole pixels be averaged first.
  resize([width, height], filter, box = this.whole, gap = 0) {
    if (width === this.width && height === this.height && same(box, this.whole)) return this;
    let picture = this;
    if (gap) {
      const factors = [0, 1].map((axis) => Math.trunc((box[axis + 2] - box[axis]) / [width, height][axis] / gap) || 1);
      if (Math.max(...factors) > 1) {
        const safe = safeBox(this.size, [width, height], filter, box);
        picture = this.reduce(...factors, safe);
        box = box.map((edge, place) => (edge - safe[place % 2]) / factors[place % 2]);
      }
    }
    const [left, top, right, bottom] = box.map(Math.fround);
    if (width !== picture.width || left !== 0 || right !== width) picture = horizontally(picture, width, coefficients(picture.width, left, right, width, filter));
    if (height !== picture.height || top !== 0 || bottom !== height) picture = vertically(picture, height, coefficients(picture.height, top, bottom, height, filter));
    return picture;
  }

  // A window of `side` by `side` pixels through [a, b, c, d, e, f]: it has at (x, y) what lies at (ax + by + c, dx + ey + f).
  sample(side, [a, b, c, d, e, f]) {
    const { width, height, data } = this;
    const out = new Uint8Array(side * side);
    const column = (x) => (x < 0 ? 0 : x < width ? x : width - 1);
    for (let y = 0; y < side; y++)
      for (let x = 0; x < side; x++) {
        let across = a * (x + 0.5) + b * (y + 0.5) + c;
        let below = d * (x + 0.5) + e * (y + 0.5) + f;
        if (across < 0 || across >= width || below < 0 || below >= height) continue;
        across -= 0.5;
        below -= 0.5;
        const [left, top] = [Math.floor(across), Math.floor(below)];
        const [dx, dy] = [across - left, below - top];
        const [one, other] = [column(left), column(left + 1)];
        const line = (row) => data[row + one] + (data[row + other] - data[row + one]) * dx;
        const upper = line((top < 0 ? 0 : top) * width);
        const lower = top + 1 < height ? line((top + 1) * width) : upper;
        out[y * side + x] = Math.trunc(upper + (lower - upper) * dy);
      }
    return new Gray(side, side, out);
  }

  // The smallest (or, with `most`, the largest) value around each pixel, in squares of `size` pixels.
  extreme(size, most) {
    const reach = (size - 1) / 2;
    const pick = most ? Math.max : Math.min;
    const along = (source, count, step, lines, next) => {
      const out = new Uint8Array(source.length);
      for (let line = 0; line < lines; line++)
        for (let place = 0; place < count; place++) {
          let value = source[line * next + place * step];
          for (let other = Math.max(0, place - reach); other <= Math.min(count - 1, place + reach); other++) value = pick(value, source[line * next + other * step]);
          out[line * next + place * step] = value;
        }
      return out;
    };
    const rows = along(this.data, this.width, 1, this.height, this.width);
    return new Gray(this.width, this.height, along(rows, this.height, this.width, this.width, 1));
  }

  histogram() {
    const counts = new Float64Array(256);
    for (const value of this.data) counts[value]++;
    return counts;
  }
}

// A picture and what comes of its mirror image, averaged: so mirrored pictures give mirrored ones to the bit.
export function symmetric(picture, make) {
  const [one, other] = [make(picture), make(picture.mirror()).mirror()];
  return new Gray(one.width, one.height, one.data.map((value, place) => (value + other.data[place] + 1) >> 1));
}

export const same = (one, other) => one.every((value, place) => value === other[place]);

export const FILTERS = {
  box: { support: 0.5, weight: (x) => (x > -0.5 && x <= 0.5 ? 1 : 0) },
  bicubic: {
    support: 2,
    weight(x) {
      const far = Math.abs(x);
      if (far < 1) return (1.5 * far - 2.5) * far * far + 1;
      return far < 2 ? (((far - 5) * far + 8) * far - 4) * -0.5 : 0;
    },
  },
};

function safeBox([width, height], size, filter, box) {
  const reach = [0, 1].map((axis) => ((filter.support - 0.5) * (box[axis + 2] - box[axis])) / size[axis]);
  return [
    Math.max(0, Math.trunc(box[0] - reach[0])), Math.max(0, Math.trunc(box[1] - reach[1])),
    Math.min(width, Math.ceil(box[2] + reach[0])), Math.min(height, Math.ceil(box[3] + reach[1])),
  ];
}

// For each pixel that is wanted where it begins in the given ones, and the weights from there on.
function coefficients(given, start, end, wanted, filter) {
  const scale = Math.fround(end - start) / wanted;
  const stretch = Math.max(1, scale);
  const support = filter.support * stretch;
  return Array.from({ length: wanted }, (_, place) => {
    const centre = start + (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(given, Math.trunc(centre + support + 0.5));
    const weights = [];
    let sum = 0;
    for (let x = 0; x < last - first; x++) {
      weights.push(filter.weight((x + first - centre + 0.5) * (1 / stretch)));
      sum += weights[x];
    }
    const fixed = weights.map((weight) => {
      const share = sum === 0 ? weight : weight / sum;
      return Math.trunc(share * 2 ** PRECISION + (share < 0 ? -0.5 : 0.5));
    });
    return { first, weights: Int32Array.from(fixed) };
  });
}

function horizontally(picture, width, table) {
  const out = new Uint8Array(width * picture.height);
  for (let y = 0; y < picture.height; y++)
    for (let x = 0; x < width; x++) {
      const { first, weights } = table[x];
      const start = y * picture.width + first;
      let sum = 1 << (PRECISION - 1);
      for (let place = 0; place < weights.length; place++) sum += picture.data[start + place] * weights[place];
      out[y * width + x] = clip8(sum >> PRECISION);
    }
  return new Gray(width, picture.height, out);
}

function vertically(picture, height, table) {
  const { width } = picture;
  const out = new Uint8Array(width * height);
  const sums = new Int32Array(width);
  for (let y = 0; y < height; y++) {
    const { first, weights } = table[y];
    sums.fill(1 << (PRECISION - 1));
    for (let row = 0; row < weights.length; row++) {
      const [start, weight] = [(first + row) * width, weights[row]];
      for (let x = 0; x < width; x++) sums[x] += picture.data[start + x] * weight;
    }
    for (let x = 0; x < width; x++) out[y * width + x] = clip8(sums[x] >> PRECISION);
  }
  return new Gray(width, height, out);
}
