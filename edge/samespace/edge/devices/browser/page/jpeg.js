// JPEG files: what must be known of one before a browser decodes it, and the decoding. A browser turns pictures by their EXIF
// orientation and applies colour profiles, each in its own way; it is given a copy of the file that has neither.

/** Whether these bytes begin like a JPEG file. */
export function isJpeg(bytes) {
  return bytes[0] === 0xff && bytes[1] === 0xd8 && bytes[2] === 0xff;
}

/**
 * Decode a JPEG file by the browser's own decoder.
 *
 * Exact where that is libjpeg-turbo in its default mode, as in Chromium; another decoder may differ by a grey level or so.
 *
 * @param {Uint8Array} bytes the file.
 * @param {(width: number, height: number) => void} admit called with the size before anything is decoded; throws to refuse.
 * @returns {Promise<{width: number, height: number, rgb: Uint8Array, exif: Uint8Array?, xmp: string?}>}
 */
export async function decodeJpeg(bytes, admit) {
  const jpeg = readSegments(bytes);
  admit(jpeg.width, jpeg.height);
  if (jpeg.components === 4) throw new Error("a CMYK JPEG, which browsers convert each in its own way; save it as RGB");
  if (typeof createImageBitmap === "undefined") throw new Error("no JPEG decoder here: this is no browser");
  let bitmap;
  try {
    const options = { colorSpaceConversion: "none", premultiplyAlpha: "none" };
    bitmap = await createImageBitmap(new Blob(jpeg.kept, { type: "image/jpeg" }), options);
  } catch (error) {
    throw new Error(`broken image (JPEG: ${error.message})`);
  }
  const { width, height } = bitmap;
  if (width !== jpeg.width || height !== jpeg.height) throw new Error("broken image (JPEG: the browser sees another size)");
  // Kept in memory: a canvas of the graphics card may be read back with other rounding.
  const context = new OffscreenCanvas(width, height).getContext("2d", { willReadFrequently: true, colorSpace: "srgb", alpha: false });
  context.drawImage(bitmap, 0, 0);
  bitmap.close();
  const rgba = context.getImageData(0, 0, width, height).data;
  const rgb = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < rgba.length; from += 4, to += 3) {
    rgb[to] = rgba[from];
    rgb[to + 1] = rgba[from + 1];
    rgb[to + 2] = rgba[from + 2];
  }
  return { width, height, rgb, exif: jpeg.exif, xmp: jpeg.xmp };
}

/** Size, EXIF and XMP blocks of a JPEG file, and the parts of it that say anything about the stored pixels. */
export function readSegments(bytes) {
  const found = { width: 0, height: 0, components: 0, exif: null, xmp: null, kept: [bytes.subarray(0, 2)] };
  const broken = (why) => new Error(`broken image (JPEG: ${why})`);
  let offset = 2;
  for (;;) {
    while (bytes[offset] === 0xff && bytes[offset + 1] === 0xff) offset++;
    if (offset + 1 >= bytes.length) throw broken("cut short");
    if (bytes[offset] !== 0xff) {
      offset++; // between segments decoders skip what is no marker
      continue;
    }
    const marker = bytes[offset + 1];
    if (marker === 0xd9) break;
    if (marker === 0x00 || marker === 0x01 || (marker >= 0xd0 && marker <= 0xd8)) {
      offset += 2;
      continue;
    }
    const length = (bytes[offset + 2] << 8) | bytes[offset + 3];
    const end = offset + 2 + length;
    if (length < 2 || !(end <= bytes.length)) throw broken("cut short");
    const body = bytes.subarray(offset + 4, end);
    if (marker >= 0xc0 && marker <= 0xcf && ![0xc4, 0xc8, 0xcc].includes(marker)) readFrame(found, marker, body);
    if (marker === 0xe1) readApplication(found, body);
    let next = end;
    if (marker === 0xda) next = endOfScan(bytes, end);
    const about = marker < 0xe0 || marker === 0xe0 || marker === 0xee; // JFIF and Adobe say what the components are
    if (about) found.kept.push(bytes.subarray(offset, next));
    offset = next;
  }
  if (!found.components) throw broken("no pixels");
  found.kept.push(Uint8Array.of(0xff, 0xd9));
  return found;
}

function readFrame(found, marker, body) {
  if (marker > 0xc2) throw new Error("a kind of JPEG (lossless or arithmetic) that browsers do not decode; save it again as JPEG");
  if (body[0] !== 8) throw new Error("a JPEG with 12 bits, which browsers do not decode; save it with 8");
  found.height = (body[1] << 8) | body[2];
  found.width = (body[3] << 8) | body[4];
  found.components = body[5];
  if (!found.width || !found.height) throw new Error("broken image (JPEG: no size)");
}

function readApplication(found, body) {
  const text = new TextDecoder("latin1").decode(body);
  if (text.startsWith("Exif\0\0")) {
    const block = body.subarray(6);
    const before = found.exif ?? new Uint8Array();
    found.exif = new Uint8Array(before.length + block.length);
    found.exif.set(before);
    found.exif.set(block, before.length);
  } else if (text.startsWith("http://ns.adobe.com/xap/1.0/\0")) found.xmp = text.slice(29);
}

/** Where the compressed data that begins at ``offset`` ends: at the next marker that is no part of them. */
function endOfScan(bytes, offset) {
  for (let i = offset; i + 1 < bytes.length; i++) {
    if (bytes[i] === 0xff && bytes[i + 1] !== 0 && bytes[i + 1] !== 0xff && !(bytes[i + 1] >= 0xd0 && bytes[i + 1] <= 0xd7)) return i;
  }
  throw new Error("broken image (JPEG: cut short)");
}
