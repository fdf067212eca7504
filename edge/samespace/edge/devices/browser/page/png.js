// A PNG decoder that gives what samespace.sdk's preprocessing sees, and does not ask the browser: that would bring in colour
// profiles, premultiplied alpha, and its own way to make 8 bits of 16. Source: PNG specification (third edition).

const SIGNATURE = [0x89, 0x50, 0x4e, 0x47, 0x0d, 0x0a, 0x1a, 0x0a];
/** Colour type -> samples a pixel, and the bit depths that go with it. */
const KINDS = {
  0: [1, [1, 2, 4, 8, 16]],
  2: [3, [8, 16]],
  3: [1, [1, 2, 4, 8]],
  4: [2, [8, 16]],
  6: [4, [8, 16]],
};
/** Adam7: first column, first row, step of columns, step of rows of each pass. */
const PASSES = [
  [0, 0, 8, 8], [4, 0, 8, 8], [0, 4, 4, 8], [2, 0, 4, 4], [0, 2, 2, 4], [1, 0, 2, 2], [0, 1, 1, 2],
];

/** Whether these bytes begin like a PNG file. */
export function isPng(bytes) {
  return SIGNATURE.every((value, i) => bytes[i] === value);
}

/**
 * Decode a PNG file.
 *
 * @param {Uint8Array} bytes the file.
 * @param {(width: number, height: number) => void} admit called with the size before anything is decoded; throws to refuse.
 * @param {number[]} background RGB under transparent pixels.
 * @returns {Promise<{width: number, height: number, rgb: Uint8Array, exif: Uint8Array?, xmp: string?}>}
 */
export async function decodePng(bytes, admit, background) {
  const png = readChunks(bytes, admit);
  const { width, height, depth, samples, interlaced } = png;
  const passes = interlaced ? PASSES : [[0, 0, 1, 1]];
  const sizes = passes.map(([x, y, dx, dy]) => [Math.ceil((width - x) / dx), Math.ceil((height - y) / dy)]);
  const total = sizes.reduce((sum, [w, h]) => sum + (w && h ? h * (1 + Math.ceil((w * samples * depth) / 8)) : 0), 0);
  const raw = await inflate(png.data, total);
  const rgb = new Uint8Array(width * height * 3);
  const convert = converter(png, background);
  let offset = 0;
  for (const [i, [x0, y0, dx, dy]] of passes.entries()) {
    const [w, h] = sizes[i];
    if (!w || !h) continue;
    const stride = Math.ceil((w * samples * depth) / 8);
    let previous = new Uint8Array(stride);
    for (let row = 0; row < h; row++, offset += stride + 1) {
      const line = raw.subarray(offset + 1, offset + 1 + stride);
      unfilter(raw[offset], line, previous, Math.max(1, (samples * depth) >> 3));
      for (let column = 0; column < w; column++) {
        convert(line, column, rgb, ((y0 + row * dy) * width + x0 + column * dx) * 3);
      }
      previous = line;
    }
  }
  return { width, height, rgb, exif: png.exif, xmp: png.xmp };
}

function readChunks(bytes, admit) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const png = { data: [], palette: null, transparency: null, exif: null, xmp: null };
  let offset = 8;
  let ended = false;
  while (!ended && offset < bytes.length) {
    if (offset + 12 > bytes.length) throw new Error("broken image (PNG: cut short)");
    const length = view.getUint32(offset);
    const type = String.fromCharCode(...bytes.subarray(offset + 4, offset + 8));
    if (offset + 12 + length > bytes.length) throw new Error("broken image (PNG: cut short)");
    const body = bytes.subarray(offset + 8, offset + 8 + length);
    if (crc32(bytes.subarray(offset + 4, offset + 8 + length)) !== view.getUint32(offset + 8 + length)) {
      throw new Error(`broken image (PNG: wrong checksum of ${type})`);
    }
    offset += 12 + length;
    if (type === "IHDR") readHeader(png, new DataView(body.buffer, body.byteOffset, length), admit);
    else if (png.width === undefined) throw new Error("broken image (PNG: no header)");
    else if (type === "PLTE") png.palette = body;
    else if (type === "tRNS") png.transparency = body;
    else if (type === "IDAT") png.data.push(body);
    else if (type === "eXIf") png.exif = body;
    else if (type === "iTXt") readText(png, body);
    ended = type === "IEND";
  }
  if (!png.data.length) throw new Error("broken image (PNG: no pixels)");
  if (png.type === 3 && !png.palette) throw new Error("broken image (PNG: no palette)");
  return png;
}

function readHeader(png, view, admit) {
  if (view.byteLength !== 13 || png.width !== undefined) throw new Error("broken image (PNG: header)");
  [png.width, png.height, png.depth, png.type] = [view.getUint32(0), view.getUint32(4), view.getUint8(8), view.getUint8(9)];
  const [samples, depths] = KINDS[png.type] ?? [0, []];
  if (!depths.includes(png.depth) || view.getUint8(10) || view.getUint8(11) || view.getUint8(12) > 1) {
    throw new Error("broken image (PNG: no such kind of pixels)");
  }
  if (!png.width || !png.height) throw new Error("broken image (PNG: no pixels)");
  png.samples = samples;
  png.interlaced = view.getUint8(12) === 1;
  admit(png.width, png.height);
}

/** Keep the XMP block, of which an orientation may be taken. */
function readText(png, body) {
  const key = "XML:com.adobe.xmp\0";
  if (new TextDecoder("latin1").decode(body.subarray(0, key.length)) === key && body[key.length] === 0) {
    png.xmp = new TextDecoder().decode(body.subarray(key.length + 2));
  }
}

async function inflate(parts, total) {
  const reader = new Blob(parts).stream().pipeThrough(new DecompressionStream("deflate")).getReader();
  const raw = new Uint8Array(total);
  let filled = 0;
  try {
    while (filled < total) {
      const { done, value } = await reader.read();
      if (done) break;
      raw.set(value.subarray(0, total - filled), filled);
      filled += value.length;
    }
    // What follows the pixels is nobody's; a bomb is not unpacked further.
    await reader.cancel().catch(() => {});
  } catch (error) {
    throw new Error(`broken image (PNG: ${error.message || "cannot be unpacked"})`);
  }
  if (filled < total) throw new Error("broken image (PNG: cut short)");
  return raw;
}

function unfilter(filter, line, above, step) {
  const length = line.length;
  if (filter === 1) {
    for (let i = step; i < length; i++) line[i] += line[i - step];
  } else if (filter === 2) {
    for (let i = 0; i < length; i++) line[i] += above[i];
  } else if (filter === 3) {
    for (let i = 0; i < length; i++) line[i] += ((i < step ? 0 : line[i - step]) + above[i]) >> 1;
  } else if (filter === 4) {
    for (let i = 0; i < length; i++) {
      const [a, b, c] = i < step ? [0, above[i], 0] : [line[i - step], above[i], above[i - step]];
      const [pa, pb, pc] = [Math.abs(b - c), Math.abs(a - c), Math.abs(a + b - 2 * c)];
      line[i] += pa <= pb && pa <= pc ? a : pb <= pc ? b : c;
    }
  } else if (filter !== 0) throw new Error("broken image (PNG: no such filter)");
}

/** A function that writes pixel ``column`` of a line as RGB at ``to``: grey repeated, high byte of 16 bits, background under alpha. */
function converter({ type, depth, samples, palette, transparency }, background) {
  const bytes = depth === 16 ? 2 : 1;
  const put = (rgb, to, r, g, b, alpha) => {
    rgb[to] = over(r, alpha, background[0]);
    rgb[to + 1] = over(g, alpha, background[1]);
    rgb[to + 2] = over(b, alpha, background[2]);
  };
  const key = transparency && transparency.length >= 2 ? (i) => (transparency[2 * i] << 8) | transparency[2 * i + 1] : null;
  if (type === 2) {
    // The reference compares the bytes that it keeps of each sample with the low bytes of the transparent colour.
    const hole = key && transparency.length >= 6 ? [0, 1, 2].map((i) => key(i) & 255) : null;
    return (line, column, rgb, to) => {
      const at = column * 3 * bytes;
      const [r, g, b] = [line[at], line[at + bytes], line[at + 2 * bytes]];
      put(rgb, to, r, g, b, hole && r === hole[0] && g === hole[1] && b === hole[2] ? 0 : 255);
    };
  }
  if (type === 4 || type === 6) {
    return (line, column, rgb, to) => {
      const at = column * samples * bytes;
      const [g, b] = type === 6 ? [line[at + bytes], line[at + 2 * bytes]] : [line[at], line[at]];
      put(rgb, to, line[at], g, b, line[at + (samples - 1) * bytes]);
    };
  }
  if (type === 0 && depth === 16) {
    const hole = key ? key(0) : -1;
    return (line, column, rgb, to) => {
      const value = line[2 * column];
      put(rgb, to, value, value, value, ((value << 8) | line[2 * column + 1]) === hole ? 0 : 255);
    };
  }
  const mask = (1 << depth) - 1;
  const sample = (line, column) => (line[(column * depth) >> 3] >> (8 - depth - ((column * depth) & 7))) & mask;
  if (type === 0) {
    // As in the reference, the transparent value is compared after the samples have been stretched to 8 bits.
    const [stretch, hole] = [255 / mask, key ? key(0) : -1];
    return (line, column, rgb, to) => {
      const value = sample(line, column) * stretch;
      put(rgb, to, value, value, value, value === hole ? 0 : 255);
    };
  }
  return (line, column, rgb, to) => {
    const index = sample(line, column);
    const known = 3 * index + 2 < palette.length;
    const [r, g, b] = known ? palette.subarray(3 * index, 3 * index + 3) : [0, 0, 0];
    put(rgb, to, r, g, b, transparency && index < transparency.length ? transparency[index] : 255);
  };
}

/** ``(value * alpha + below * (255 - alpha)) / 255``, rounded. */
function over(value, alpha, below) {
  return alpha === 255 ? value : Math.floor((2 * (value * alpha + below * (255 - alpha)) + 255) / 510);
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  let c = n;
  for (let k = 0; k < 8; k++) c = c & 1 ? 0xedb88320 ^ (c >>> 1) : c >>> 1;
  return c >>> 0;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (let i = 0; i < bytes.length; i++) crc = CRC_TABLE[(crc ^ bytes[i]) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}
