// One DICOM radiograph: uncompressed, 8 or 16 bits a cell, monochrome, by its rescale and window, as
// dataset_script/dicom_gray_scale.py shows it. What else there is, is refused in a sentence.

import { Gray, round } from "./gray.js";
import { checkSize } from "./images.js";
import { Refused } from "./refused.js";
import { countValues, windowTable } from "./windows.js";

const SYNTAXES = ["1.2.840.10008.1.2", "1.2.840.10008.1.2.1"]; // implicit and explicit VR, little endian
const MODALITIES = ["CR", "DX", "DR", "RG", "XR", "RF", "OT", "SC"];
const NO_MODALITY = ["1", "2", "3"].map((kind) => `1.2.840.10008.5.1.4.1.1.12.${kind}`); // their rescale is not for viewing
const TAGS = {
  SOPClassUID: "x00080016", Modality: "x00080060", Laterality: "x00200060", ImageLaterality: "x00200062",
  SamplesPerPixel: "x00280002", PhotometricInterpretation: "x00280004", NumberOfFrames: "x00280008", Rows: "x00280010",
  Columns: "x00280011", BitsAllocated: "x00280100", BitsStored: "x00280101", HighBit: "x00280102",
  PixelRepresentation: "x00280103", PixelPaddingValue: "x00280120", PixelPaddingRangeLimit: "x00280121",
  WindowCenter: "x00281050", WindowWidth: "x00281051", RescaleIntercept: "x00281052", RescaleSlope: "x00281053",
  VOILUTFunction: "x00281056", ModalityLUTSequence: "x00283000", VOILUTSequence: "x00283010",
  PresentationLUTSequence: "x20500010", PresentationLUTShape: "x20500020", PixelData: "x7fe00010",
};
const TABLES = ["ModalityLUTSequence", "VOILUTSequence", "PresentationLUTSequence"];
const NUMBER = /^[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?$/;
const LARGEST = 1e30;

// `parser` is dicom-parser. Gives { gray, laterality }.
export function readDicom(bytes, parser) {
  const syntax = parse(() => parser.readPart10Header(bytes).string("x00020010")) ?? SYNTAXES[0];
  if (!SYNTAXES.includes(syntax)) throw new Refused("refused_syntax", { syntax });
  const values = new Values(parse(() => parser.parseDicom(bytes)));
  const modality = values.code("Modality");
  if (modality && !MODALITIES.includes(modality)) throw new Refused("refused_modality", { modality });
  const laterality = ["ImageLaterality", "Laterality"].map((name) => values.code(name)).find((side) => ["L", "R", "B"].includes(side)) ?? "";
  const table = TABLES.find((name) => values.element(name)?.items?.length);
  if (table) throw new Refused("refused_table", { name: table });
  const format = readFormat(values);
  const element = values.element("PixelData");
  if (!element?.length) throw new Refused("refused_no_pixels");
  if (element.encapsulatedPixelData || element.hadUndefinedLength) throw new Refused("refused_damaged");
  const size = format.rows * format.columns;
  if (element.length < (size * format.allocated) / 8) throw new Refused("refused_damaged");
  const cells = readCells(bytes, element.dataOffset, size, format.allocated);
  const { first, counts } = countValues(cells);
  const levels = grayLevels(values, format, Array.from(counts, (_, place) => first + place), counts);
  return { gray: new Gray(format.columns, format.rows, Uint8Array.from(cells, (cell) => levels[cell - first])), laterality };
}

function parse(read) {
  try {
    return read();
  } catch {
    throw new Refused("refused_damaged");
  }
}

function readCells(bytes, start, size, allocated) {
  if (allocated === 8) return bytes.subarray(start, start + size);
  const view = new DataView(bytes.buffer, bytes.byteOffset + start, 2 * size);
  return Uint16Array.from({ length: size }, (_, place) => view.getUint16(2 * place, true));
}

// Single values of a parsed file; an empty element is an absent one.
class Values {
  constructor(dataset) {
    this.dataset = dataset;
  }

  element(name) {
    return this.dataset.elements[TAGS[name]];
  }

  text(name) {
    const element = this.element(name);
    return element?.length ? (parse(() => this.dataset.string(TAGS[name])) ?? "").replaceAll("\0", "").trim() : "";
  }

  code(name) {
    return this.text(name).split("\\")[0].trim().toUpperCase();
  }

  // A number written as text; null where there is none.
  decimal(name) {
    const [first] = this.text(name).split("\\");
    if (!first.trim()) return null;
    if (!NUMBER.test(first.trim())) throw new Refused("refused_attribute", { name });
    return Number(first);
  }

  // A whole number of 16 bits; null where there is none.
  whole(name) {
    const element = this.element(name);
    if (!element?.length) return null;
    const value = parse(() => (element.vr === "SS" ? this.dataset.int16(TAGS[name]) : this.dataset.uint16(TAGS[name])));
    if (value === undefined) throw new Refused("refused_attribute", { name });
    return value;
  }

  needed(name) {
    const value = this.whole(name);
    if (value === null) throw new Refused("refused_attribute", { name });
    return value;
  }
}

function readFormat(values) {
  const photometric = values.code("PhotometricInterpretation");
  if (!photometric) throw new Refused("refused_attribute", { name: "PhotometricInterpretation" });
  if (!["MONOCHROME1", "MONOCHROME2"].includes(photometric)) throw new Refused("refused_colour", { photometric });
  const [rows, columns] = [values.needed("Rows"), values.needed("Columns")];
  checkSize(columns, rows);
  if ((values.decimal("NumberOfFrames") || 1) !== 1) throw new Refused("refused_frames");
  const [allocated, bits] = [values.needed("BitsAllocated"), values.needed("BitsStored")];
  if (![8, 16].includes(allocated)) throw new Refused("refused_bits", { bits: allocated });
  const high = values.whole("HighBit") || bits - 1; // 0 is what some write for "unknown"
  if (!(1 <= bits && bits <= high + 1 && high + 1 <= allocated)) throw new Refused("refused_attribute", { name: "BitsStored" });
  const representation = values.needed("PixelRepresentation");
  if (representation > 1) throw new Refused("refused_attribute", { name: "PixelRepresentation" });
  if ((values.whole("SamplesPerPixel") || 1) !== 1) throw new Refused("refused_attribute", { name: "SamplesPerPixel" });
  const half = 2 ** (bits - 1);
  const range = representation ? [-half, half - 1] : [0, 2 * half - 1];
  return { photometric, rows, columns, allocated, bits, high, signed: representation === 1, range };
}

// The stored value of a cell: shifted, masked, sign extended.
function storedValue(cell, { bits, high, signed }) {
  const value = (cell >> (high + 1 - bits)) & (2 ** bits - 1);
  return signed && value >= 2 ** (bits - 1) ? value - 2 ** bits : value;
}

function grayLevels(values, format, cells, counts) {
  const stored = cells.map((cell) => storedValue(cell, format));
  const isPadding = paddingOf(values, format);
  const padding = stored.map((value, place) => isPadding(value, cells[place]));
  const shown = counts.map((count, place) => (padding[place] ? 0 : count));
  const [slope, intercept] = rescaleOf(values);
  const seen = stored.map((value) => value * slope + intercept);
  let gray = byWindow(values, seen);
  if (gray) {
    const used = new Set(gray.filter((_, place) => shown[place] > 0).map(round));
    if (used.size === 1 && shown.filter(Boolean).length > 1) throw new Refused("refused_window");
  } else if (format.bits <= 8) {
    const [low, high] = format.range.map((value) => value * slope + intercept).sort((one, other) => one - other);
    gray = seen.map((value) => (value - low) * (255 / (high - low)));
  } else gray = Array.from(windowTable(seen, shown));
  const shape = values.code("PresentationLUTShape");
  const inverse = shape === "INVERSE" || (shape !== "IDENTITY" && format.photometric === "MONOCHROME1");
  return gray.map((value, place) => (padding[place] ? 0 : inverse ? 255 - round(value) : round(value)));
}

// Which values mean "no X-ray here" (PS3.3 C.7.5.1.1.2).
function paddingOf(values, { allocated, signed, range }) {
  const value = values.whole("PixelPaddingValue");
  if (value === null) return () => false;
  const limit = values.whole("PixelPaddingRangeLimit") ?? value;
  const whole = 2 ** allocated;
  const smallest = signed ? -whole / 2 : 0;
  const inRange = (number) => ((((number - smallest) % whole) + whole) % whole) + smallest;
  const [low, high] = [inRange(value), inRange(limit)].sort((one, other) => one - other);
  const ofCells = low < range[0] || high > range[1]; // it uses bits that no pixel stores
  return (stored, cell) => {
    const compared = ofCells ? inRange(cell) : stored;
    return low <= compared && compared <= high;
  };
}

function rescaleOf(values) {
  if (NO_MODALITY.includes(values.text("SOPClassUID"))) return [1, 0];
  const [slope, intercept] = [values.decimal("RescaleSlope"), values.decimal("RescaleIntercept")];
  if (!slope || intercept === null) return [1, 0];
  if (Math.max(Math.abs(slope), Math.abs(intercept)) > LARGEST) throw new Refused("refused_attribute", { name: "RescaleSlope" });
  return [slope, intercept];
}

// Values in 0..255 by the first window; nothing where the file has none.
function byWindow(values, seen) {
  const [centre, width] = [values.decimal("WindowCenter"), values.decimal("WindowWidth")];
  if (centre === null || width === null) return null;
  const kind = values.code("VOILUTFunction") || "LINEAR";
  const least = kind === "LINEAR" ? 1 : 1e-9;
  if (width < least || Math.max(Math.abs(centre), width) > LARGEST) throw new Refused("refused_attribute", { name: "WindowWidth" });
  const share = {
    SIGMOID: (value) => 1 / (1 + Math.exp(Math.min(500, Math.max(-500, (-4 * (value - centre)) / width)))),
    LINEAR_EXACT: (value) => (value - centre) / width + 0.5,
    LINEAR: (value) => (width > 1 ? (value - (centre - 0.5)) / (width - 1) + 0.5 : Number(value > centre - 0.5)),
  }[kind];
  if (!share) throw new Refused("refused_attribute", { name: "VOILUTFunction" });
  return seen.map((value) => 255 * Math.min(1, Math.max(0, share(value))));
}
