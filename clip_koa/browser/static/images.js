// From the bytes of a PNG, JPEG or WebP file to an 8-bit gray picture, upright, as preprocessing_clip_koa.py reads it.

import { Gray } from "./gray.js";
import { Refused } from "./refused.js";
import { countValues, windowTable } from "./windows.js";

const LEAST_SIDE = 32;
const MOST_PIXELS = 50_000_000; // which take four bytes each while they are decoded
const FRAME_MARKERS = new Set([0xc0, 0xc1, 0xc2, 0xc3, 0xc5, 0xc6, 0xc7, 0xc9, 0xca, 0xcb, 0xcd, 0xce, 0xcf]);
const CHANNELS = { 0: 1, 2: 3, 3: 1, 4: 2, 6: 4 }; // of a pixel, by the PNG's colour type

const text = (bytes, start, end) => String.fromCharCode(...bytes.subarray(start, end));
const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

export function checkSize(width, height) {
  if (width * height > MOST_PIXELS) throw new Refused("refused_large", { width, height, megapixels: MOST_PIXELS / 1e6 });
  if (Math.min(width, height) < LEAST_SIDE) throw new Refused("refused_small", { width, height, least: LEAST_SIDE });
}

export function kindOf(bytes) {
  if (text(bytes, 1, 4) === "PNG" && bytes[0] === 0x89) return "png";
  if (bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff) return "jpeg";
  if (text(bytes, 0, 4) === "RIFF" && text(bytes, 8, 12) === "WEBP") return "webp";
  return text(bytes, 128, 132) === "DICM" ? "dicom" : "";
}

export async function readImage(bytes, kind) {
  const header = { png: pngHeader, jpeg: jpegHeader, webp: webpHeader }[kind](bytes);
  checkSize(header.width, header.height);
  if (header.animated) throw new Refused("refused_frames");
  if (header.plain) return readPng(header);
  if (header.bits === 16 || header.channels > 4) throw new Refused("refused_deep_colour");
  if (kind === "jpeg" && header.channels === 4) throw new Refused("refused_cmyk");
  return byBrowser(bytes, kind, header.channels === 1);
}

async function byBrowser(bytes, kind, isGray) {
  const options = { colorSpaceConversion: "none", premultiplyAlpha: "none", imageOrientation: "from-image" };
  const bitmap = await createImageBitmap(new Blob([bytes], { type: `image/${kind}` }), options).catch(() => {
    throw new Refused("refused_damaged");
  });
  const { width, height } = bitmap;
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const { data } = context.getImageData(0, 0, width, height);
  const gray = new Gray(width, height);
  for (let place = 0; place < gray.data.length; place++) {
    const [red, green, blue, alpha] = [data[4 * place], data[4 * place + 1], data[4 * place + 2], data[4 * place + 3]];
    const value = isGray ? red : (red * 19595 + green * 38470 + blue * 7471 + 0x8000) >> 16;
    const product = value * alpha + 128;
    gray.data[place] = alpha === 255 ? value : (product + (product >> 8)) >> 8; // it lies on black
  }
  return gray;
}

function pngHeader(bytes) {
  const view = viewOf(bytes);
  const header = { parts: [], animated: false };
  for (let place = 8; place + 12 <= bytes.length; ) {
    const [size, name] = [view.getUint32(place), text(bytes, place + 4, place + 8)];
    const body = bytes.subarray(place + 8, place + 8 + size);
    if (name === "IHDR" && size >= 13)
      Object.assign(header, { width: view.getUint32(place + 8), height: view.getUint32(place + 12), bits: body[8], colour: body[9], interlaced: body[12] });
    if (name === "acTL") header.animated = true;
    if (name === "tRNS") header.transparent = true;
    if (name === "eXIf") header.turned = true;
    if (name === "IDAT") header.parts.push(body);
    if (name === "IEND") break;
    place += 12 + size;
  }
  if (!header.width || !header.parts.length || !(header.colour in CHANNELS)) throw new Refused("refused_damaged");
  header.channels = CHANNELS[header.colour];
  // Gray values are read here, exactly: a browser keeps 8 of 16 bits, and may change what is read back from a canvas.
  header.plain = header.colour === 0 && header.bits >= 8 && !header.interlaced && !header.turned && !(header.transparent && header.bits === 8);
  return header;
}

async function readPng({ width, height, bits, parts }) {
  const stride = (width * bits) / 8;
  const lines = await inflate(parts, height * (stride + 1));
  const step = bits / 8;
  let above = new Uint8Array(stride);
  const values = new (bits === 16 ? Uint16Array : Uint8Array)(width * height);
  for (let y = 0; y < height; y++) {
    const filter = lines[y * (stride + 1)];
    const line = lines.subarray(y * (stride + 1) + 1, (y + 1) * (stride + 1));
    unfilter(filter, line, above, step);
    for (let x = 0; x < width; x++) values[y * width + x] = bits === 16 ? (line[2 * x] << 8) | line[2 * x + 1] : line[x];
    above = line;
  }
  if (bits === 8) return new Gray(width, height, values);
  const { first, counts } = countValues(values);
  const table = windowTable(Array.from(counts, (_, place) => first + place), counts);
  return new Gray(width, height, Uint8Array.from(values, (value) => table[value - first]));
}

async function inflate(parts, size) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const out = new Uint8Array(size);
  let filled = 0;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const part = value.subarray(0, size - filled);
      out.set(part, filled);
      filled += part.length;
      if (filled === size) break;
    }
  } catch {
    throw new Refused("refused_damaged");
  }
  if (filled < size) throw new Refused("refused_damaged");
  reader.cancel().catch(() => {});
  return out;
}

// Each byte from its neighbours at the left, above, and above left (PNG, section 9).
function unfilter(filter, line, above, step) {
  if (filter > 4) throw new Refused("refused_damaged");
  for (let place = 0; filter && place < line.length; place++) {
    const left = place >= step ? line[place - step] : 0;
    const corner = place >= step ? above[place - step] : 0;
    const up = above[place];
    if (filter === 1) line[place] += left;
    else if (filter === 2) line[place] += up;
    else if (filter === 3) line[place] += (left + up) >> 1;
    else {
      const [far, farther, farthest] = [Math.abs(up - corner), Math.abs(left - corner), Math.abs(left + up - 2 * corner)];
      line[place] += far <= farther && far <= farthest ? left : farther <= farthest ? up : corner;
    }
  }
}

function jpegHeader(bytes) {
  const view = viewOf(bytes);
  for (let place = 2; place + 9 < bytes.length; ) {
    if (bytes[place] !== 0xff) break;
    const marker = bytes[place + 1];
    if (marker === 0xff) place += 1;
    else if (FRAME_MARKERS.has(marker))
      return { bits: bytes[place + 4], height: view.getUint16(place + 5), width: view.getUint16(place + 7), channels: bytes[place + 9] };
    else place += 2 + view.getUint16(place + 2);
  }
  throw new Refused("refused_damaged");
}

function webpHeader(bytes) {
  const view = viewOf(bytes);
  const [kind, start] = [text(bytes, 12, 16), 20];
  if (bytes.length < 30) throw new Refused("refused_damaged");
  const three = (place) => bytes[place] | (bytes[place + 1] << 8) | (bytes[place + 2] << 16);
  const size = { bits: 8, channels: 3 };
  if (kind === "VP8X") return { ...size, animated: Boolean(bytes[start] & 2), width: 1 + three(start + 4), height: 1 + three(start + 7) };
  if (kind === "VP8L") {
    const packed = view.getUint32(start + 1, true);
    return { ...size, width: 1 + (packed & 0x3fff), height: 1 + ((packed >> 14) & 0x3fff) };
  }
  if (kind === "VP8 ") return { ...size, width: view.getUint16(start + 6, true) & 0x3fff, height: view.getUint16(start + 8, true) & 0x3fff };
  throw new Refused("refused_damaged");
}
