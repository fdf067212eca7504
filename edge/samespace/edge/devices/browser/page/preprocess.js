// samespace's preprocessing for browsers: the same bytes as samespace.sdk.preprocess gives (version 1), which says what it does.
// A web app needs this file, png.js and jpeg.js, and the field "model.preprocess" of its bundle's manifest.json:
//
//   import { preprocess } from "./preprocess.js";
//   const tensor = await preprocess(await file.arrayBuffer(), manifest.model.preprocess);  // Uint8Array, (size, size, 3) RGB
//
// PNG files are decoded here, exactly. JPEG files are decoded by the browser (see jpeg.js).

import { decodeJpeg, isJpeg } from "./jpeg.js";
import { decodePng, isPng } from "./png.js";

/** Pixels of the largest picture that resizing may make on its way. */
const MAX_RESIZED = 64_000_000;
const COEFFICIENT_BITS = 22;
const OTHERS = [
  [/^RIFF[^]{4}WEBP/, "WebP"],
  [/^GIF8/, "GIF"],
  [/^BM/, "BMP"],
  [/^(II\*\0|MM\0\*)/, "TIFF"],
  [/^[^]{4}ftyp(avif|avis)/, "AVIF"],
  [/^[^]{4}ftyp/, "HEIF or a video"],
  [/^P[1-6]\s/, "PPM"],
];

/**
 * Decode and resize one picture.
 *
 * @param {Uint8Array | ArrayBuffer} source an encoded picture: JPEG or PNG.
 * @param {object} spec as in a bundle's manifest: version, size, fit, background, max_pixels.
 * @returns {Promise<Uint8Array>} ``(size, size, 3)``, RGB.
 * @throws {Error} another format, a broken or too large picture, or a spec of another version; says which.
 */
export async function preprocess(source, spec) {
  const bytes = source instanceof Uint8Array ? source : new Uint8Array(source);
  if (spec.version !== 1) throw new Error(`preprocessing of version ${spec.version}; this preprocess.js knows version 1`);
  const admit = (width, height) => {
    if (width * height > spec.max_pixels) {
      throw new Error(`${width}x${height} is more than ${spec.max_pixels} pixels; scale it down first`);
    }
  };
  let picture;
  if (isPng(bytes)) picture = await decodePng(bytes, admit, spec.background);
  else if (isJpeg(bytes)) picture = await decodeJpeg(bytes, admit);
  else throw new Error(`${formatName(bytes)}; browsers are given JPEG or PNG here: save it as one of them`);
  return fit(upright(picture, orientation(picture)), spec);
}

function formatName(bytes) {
  const head = new TextDecoder("latin1").decode(bytes.subarray(0, 16));
  const known = OTHERS.find(([pattern]) => pattern.test(head));
  return known ? `not JPEG or PNG but ${known[1]}` : "not an image that can be decoded";
}

/** The EXIF orientation, 1 to 8, of a decoded picture's metadata; 1 where there is none that can be read. */
export function orientation({ exif, xmp }) {
  const fromExif = exif ? exifOrientation(exif) : undefined;
  if (fromExif !== undefined) return fromExif;
  const match = xmp ? /tiff:Orientation(?:="|>)([0-9])/.exec(xmp) : null;
  return match ? Number(match[1]) : 1;
}

function exifOrientation(block) {
  const view = new DataView(block.buffer, block.byteOffset, block.byteLength);
  if (block.length < 8) return undefined;
  const little = block[0] === 0x49;
  if (!(little ? block[1] === 0x49 : block[0] === 0x4d && block[1] === 0x4d)) return 1;
  let offset = view.getUint32(4, little);
  if (offset + 2 > block.length) return undefined;
  let found;
  for (let left = view.getUint16(offset, little), at = offset + 2; left > 0 && at + 12 <= block.length; left--, at += 12) {
    if (view.getUint16(at, little) !== 0x0112) continue;
    // SHORT or LONG; of several values the first counts. More than four bytes lie elsewhere.
    const bytes = { 3: 2, 4: 4 }[view.getUint16(at + 2, little)];
    const length = bytes * view.getUint32(at + 4, little);
    const place = length > 4 ? view.getUint32(at + 8, little) : at + 8;
    if (!length || place + length > block.length) found = length > 4 ? found : 1;
    else found = bytes === 2 ? view.getUint16(place, little) : view.getUint32(place, little);
  }
  return found;
}

/** The picture mirrored and turned as an EXIF orientation says. */
export function upright({ width, height, rgb }, code) {
  if (!(code >= 2 && code <= 8)) return { width, height, rgb };
  const turned = code >= 5;
  const [w, h] = turned ? [height, width] : [width, height];
  const out = new Uint8Array(rgb.length);
  const [mirrorX, mirrorY] = [[2, 3, 7, 8].includes(code), [3, 4, 6, 7].includes(code)];
  for (let y = 0, to = 0; y < h; y++) {
    for (let x = 0; x < w; x++, to += 3) {
      // (a, b): column and row in the stored picture.
      const [a, b] = turned ? [y, x] : [x, y];
      const from = ((mirrorY ? height - 1 - b : b) * width + (mirrorX ? width - 1 - a : a)) * 3;
      out[to] = rgb[from];
      out[to + 1] = rgb[from + 1];
      out[to + 2] = rgb[from + 2];
    }
  }
  return { width: w, height: h, rgb: out };
}

/** Resize an upright picture, and crop or pad it to ``(size, size, 3)``. */
export function fit({ width, height, rgb }, spec) {
  const size = spec.size;
  const edge = { stretch: 0, crop: Math.min(width, height), pad: Math.max(width, height) }[spec.fit];
  if (edge === undefined) throw new Error(`fit is ${JSON.stringify(spec.fit)}; known are stretch, crop and pad`);
  const scaled = (length) => Math.max(1, Math.floor((length * size * 2 + edge) / (2 * edge)));
  const [w, h] = edge ? [scaled(width), scaled(height)] : [size, size];
  if (w * Math.max(h, height) > MAX_RESIZED) {
    throw new Error(`${width}x${height} is too thin to be resized with fit=${spec.fit}; crop it first`);
  }
  const resized = resizeColumns(resizeRows(rgb, width, height, w), w, height, h);
  if (w === size && h === size) return resized;
  const out = new Uint8Array(size * size * 3);
  for (let i = 0; i < out.length; i++) out[i] = spec.background[i % 3];
  const crop = spec.fit === "crop";
  const [fromX, fromY] = crop ? [Math.floor((w - size) / 2), Math.floor((h - size) / 2)] : [0, 0];
  const [toX, toY] = crop ? [0, 0] : [Math.floor((size - w) / 2), Math.floor((size - h) / 2)];
  const [columns, rows] = [Math.min(w, size), Math.min(h, size)];
  for (let y = 0; y < rows; y++) {
    const from = ((fromY + y) * w + fromX) * 3;
    out.set(resized.subarray(from, from + columns * 3), ((toY + y) * size + toX) * 3);
  }
  return out;
}

/** For each output position: first input position, and fixed-point weights of a triangle filter that grows with the reduction. */
function coefficients(input, output) {
  const scale = input / output;
  const support = Math.max(scale, 1);
  return Array.from({ length: output }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(input, Math.trunc(centre + support + 0.5));
    const weights = new Float64Array(last - first);
    let sum = 0;
    for (let k = 0; k < weights.length; k++) {
      weights[k] = Math.max(0, 1 - Math.abs((k + first - centre + 0.5) * (1 / support)));
      sum += weights[k];
    }
    return [first, Int32Array.from(weights, (weight) => Math.trunc(0.5 + (weight / sum) * (1 << COEFFICIENT_BITS)))];
  });
}

function resizeRows(rgb, width, height, output) {
  if (width === output) return rgb;
  const out = new Uint8Array(output * height * 3);
  for (const [x, [first, weights]] of coefficients(width, output).entries()) {
    for (let y = 0; y < height; y++) filter(rgb, (y * width + first) * 3, 3, weights, out, (y * output + x) * 3);
  }
  return out;
}

function resizeColumns(rgb, width, height, output) {
  if (height === output) return rgb;
  const out = new Uint8Array(width * output * 3);
  for (const [y, [first, weights]] of coefficients(height, output).entries()) {
    for (let x = 0; x < width; x++) filter(rgb, (first * width + x) * 3, width * 3, weights, out, (y * width + x) * 3);
  }
  return out;
}

/** One pixel of a pass: a weighted sum of input pixels that lie ``step`` bytes apart, rounded and clipped to 8 bits. */
function filter(rgb, from, step, weights, out, to) {
  const half = 1 << (COEFFICIENT_BITS - 1);
  let [r, g, b] = [half, half, half];
  for (let k = 0; k < weights.length; k++, from += step) {
    r += rgb[from] * weights[k];
    g += rgb[from + 1] * weights[k];
    b += rgb[from + 2] * weights[k];
  }
  out[to] = Math.min(255, r >> COEFFICIENT_BITS);
  out[to + 1] = Math.min(255, g >> COEFFICIENT_BITS);
  out[to + 2] = Math.min(255, b >> COEFFICIENT_BITS);
}
