// From the bytes of an X-ray file to readings of the knees in it, as clip_koa/grading/grader.py and webapp/knees.py do.

import { readDicom } from "./dicom.js";
import { kindOf, readImage } from "./images.js";
import { cutKnee, findKnees, MOST_OUTSIDE, nameSides, outsideOf } from "./locate.js";
import { likeliest } from "./model.js";
import { isInverted } from "./polarity.js";
import { Refused } from "./refused.js";
import { same } from "./gray.js";

const LEAST_UNLIKE = 0.9;
const ATYPICAL = 0.99;
const CROP_ASPECT = 1.1;
const LEAST_BOX = 32;
const NAME = /^[0-9]{7}(?![0-9])([LR](?![A-Za-z0-9]))?/; // a person's seven digits and the side

let count = 0;
const newId = () => `${++count}`;

// An X-ray as it is read: { name, gray, laterality, inverted, isDicom }.
export async function readXray(bytes, name) {
  if (!bytes.length) throw new Refused("refused_empty");
  const kind = kindOf(bytes);
  if (!kind) throw new Refused("refused_format");
  const sideOfName = NAME.exec(name)?.[1] ?? "";
  if (kind === "dicom") {
    const { gray, laterality } = readDicom(bytes, self.dicomParser);
    return { name, gray, laterality: laterality || sideOfName, inverted: false, isDicom: true };
  }
  const gray = await readImage(bytes, kind);
  const inverted = isInverted(gray);
  return { name, gray: inverted ? gray.invert() : gray, laterality: sideOfName, inverted, isDicom: false };
}

const negative = (xray) => ({ ...xray, gray: xray.gray.invert(), inverted: !xray.inverted });
const isDoubtful = ({ gray, inverted }) => inverted && Math.max(...gray.size) > CROP_ASPECT * Math.min(...gray.size);
const unlikeness = (knees) => (knees.length ? Math.max(...knees.map(({ said }) => said.atypicality ?? 0)) : 1);

// A film with its readings: { id, name, gray, laterality, inverted, framing, trueGrade, readings }.
export async function readFilm(model, xray, framing, more = {}) {
  const film = { ...xray, id: newId(), framing: model.canFindKnees ? framing : "as_is", trueGrade: null, ...more };
  return frameFilm(model, film, film.framing);
}

// The same film with its knees looked for anew, or taken as it is.
export async function frameFilm(model, film, framing) {
  if (framing === "as_is" || !model.canFindKnees) return { ...film, framing, readings: [reading(null, await model.grade(film.gray))] };
  let [xray, knees] = await findAndGrade(model, isDoubtful(film) ? negative(film) : film);
  const framed = knees.length === 1 && same(knees[0].knee.box, xray.gray.whole);
  const isSure = framed || unlikeness(knees) < (film.inverted ? LEAST_UNLIKE : ATYPICAL);
  if (!isSure && !film.isDicom) {
    const [other, found] = await findAndGrade(model, negative(xray));
    if (found.length > knees.length || (found.length === knees.length && unlikeness(found) < unlikeness(knees))) [xray, knees] = [other, found];
  }
  const readings = knees.map(({ knee, said }) => reading(knee, said, knee.box));
  return { ...film, gray: xray.gray, inverted: xray.inverted, framing, readings: readings.length ? readings : [reading(null, null)] };
}

async function findAndGrade(model, xray) {
  const found = await findKnees(xray.gray, (windows) => model.locate(windows), model.facts.window);
  const known = ["L", "R"].includes(xray.laterality) ? xray.laterality : "";
  const knees = [];
  for (const knee of nameSides(found, known)) knees.push({ knee, said: await model.grade(cutKnee(xray.gray, knee)) });
  return [xray, knees];
}

const reading = (knee, said, found = null) => ({ id: newId(), knee, said, found });

// The film with the knee of a box that a reader placed: in place of `moved`, a reading, or beside.
export async function placeBox(model, film, box, moved) {
  checkBox(box, film.gray.size);
  const before = moved?.knee ?? { side: "", sideAssumed: false, angle: 0 };
  const knee = { ...before, box, framed: false, outside: outsideOf(box, film.gray.size) };
  const placed = reading(knee, await model.grade(cutKnee(film.gray, knee)), moved?.found ?? null);
  if (moved?.knee) return { ...film, framing: "auto", readings: film.readings.map((one) => (one === moved ? placed : one)) };
  const others = film.readings.filter((one) => one.knee);
  if (others.length > 1) throw new Refused("box_refused");
  const middle = ({ knee: { box: edges } }) => edges[0] + edges[2];
  const inOrder = [...others, placed].sort((one, other) => middle(one) - middle(other));
  const named = nameSides(inOrder.map((one) => one.knee), ["L", "R"].includes(film.laterality) ? film.laterality : "");
  return { ...film, framing: "auto", readings: inOrder.map((one, place) => ({ ...one, knee: named[place] })) };
}

function checkBox([left, top, right, bottom], size) {
  const sides = [right - left, bottom - top];
  const inside = [[left, right], [top, bottom]].every(([low, high], axis) => low + high >= 0 && low + high <= 2 * size[axis]);
  const fits = Math.min(...sides) >= LEAST_BOX && Math.max(...sides) <= Math.max(...size, LEAST_BOX) && Math.max(...sides) < 2 * Math.min(...sides);
  if (!inside || !fits) throw new Refused("box_refused");
}

// The picture of one knee, as it was graded.
export const pictureOf = (film, { knee }) => (knee ? cutKnee(film.gray, knee) : film.gray);

// A reading as the page takes it; see `describe` in clip_koa/webapp/readings.py.
export function describe(model, film, one) {
  const { knee, said, found } = one;
  const laterality = knee?.side || film.laterality;
  const trouble = said ? said.trouble : "no_knee";
  const facts = {
    id: one.id, name: film.name, error: "", trouble,
    laterality: knee && laterality === "B" ? "" : laterality,
    side_assumed: Boolean(knee?.sideAssumed),
    film: film.id, film_size: film.gray.size,
    framing: model.canFindKnees ? film.framing : null,
    cut: film.framing === "auto" && !knee?.framed,
    box: knee?.box ?? null, angle: knee?.angle ?? 0, found,
    by_hand: Boolean(knee) && !(found && same(knee.box, found)),
    inverted: film.inverted, true_grade: film.trueGrade,
  };
  return trouble ? facts : { ...facts, ...answer(model, film, one) };
}

function answer(model, film, { knee, said }) {
  const [width, height] = pictureOf(film, { knee }).size;
  const bothKnees = film.laterality === "B" && !knee;
  const holds = {
    cut_off: (knee?.outside ?? 0) > MOST_OUTSIDE, atypical_reminder: said.isAtypical, ways: said.ways.length > 0,
    both_knees: bothKnees, inverted: film.inverted,
  };
  const side = Math.min(width, height) * (model.facts.seen ?? 1);
  const [left, top] = model.facts.seen === null ? [0, 0] : [(1 - side / width) / 2, (1 - side / height) / 2];
  return {
    width, height, seen: [left, top, 1 - left, 1 - top],
    grade: said.grade, probabilities: said.probabilities,
    image_grade: likeliest(said.imageProbabilities), mirror_grade: likeliest(said.mirrorProbabilities),
    mirror_probabilities: said.mirrorProbabilities, set: said.set, atypicality: said.atypicality,
    osteoarthritis: said.probabilities.slice(2).reduce((sum, share) => sum + share, 0),
    expected: said.probabilities.reduce((sum, share, grade) => sum + grade * share, 0),
    warnings: Object.keys(holds).filter((key) => holds[key]), ways: said.ways, both_knees: bothKnees,
  };
}
