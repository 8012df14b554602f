// Shrinks an image that is over the server's limits before it is sent. All other images are sent as they are.

import { LIMITS } from "./messages.js";

const MIB = 2 ** 20;
let turn = Promise.resolve();

// Runs one task at a time, because of the memory.
function inTurn(task) {
  const mine = turn.then(task);
  turn = mine.catch(() => {});
  return mine;
}

// Returns { file, from }: the file to send, and the size of the original if it was shrunk, otherwise "". A file that
// the browser cannot decode is returned unchanged: the server's error says what is wrong.
export async function fit(file) {
  const unchanged = { file, from: "" };
  if (file.size > LIMITS.source_bytes) return unchanged;
  try {
    const { width, height } = await sizeOf(file);
    const [pixels, longest, shortest] = [width * height, Math.max(width, height), Math.min(width, height)];
    const within = file.size <= LIMITS.bytes && longest <= LIMITS.side && pixels <= LIMITS.pixels;
    const scale = Math.min(1, Math.max(LIMITS.target / longest, LIMITS.min_side / shortest));
    if (within || pixels > LIMITS.source_pixels || longest * scale > LIMITS.side) return unchanged;
    const blob = await inTurn(() => encoded(file, Math.round(width * scale), Math.round(height * scale)));
    const from = `${width}x${height} px, ${(file.size / MIB).toFixed(1)} MiB`;
    return blob ? { file: new File([blob], file.name, { type: blob.type }), from } : unchanged;
  } catch {
    return unchanged;
  }
}

// The size as shown, after rotation. The browser reads it without decoding the pixels.
export async function sizeOf(file) {
  const image = new Image();
  const url = URL.createObjectURL(file);
  try {
    await new Promise((resolve, reject) => Object.assign(image, { onload: resolve, onerror: reject, src: url }));
    return { width: image.naturalWidth, height: image.naturalHeight };
  } finally {
    URL.revokeObjectURL(url);
  }
}

// JPEG, or PNG if there is transparency, of at most LIMITS.bytes.
async function encoded(file, width, height) {
  const bitmap = await createImageBitmap(file, { resizeWidth: width, resizeHeight: height, resizeQuality: "high" });
  const canvas = document.createElement("canvas");
  for (let scale = 1; ; scale *= 0.75) {
    Object.assign(canvas, { width: Math.round(width * scale), height: Math.round(height * scale) });
    const context = canvas.getContext("2d");
    context.drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    const { data } = context.getImageData(0, 0, canvas.width, canvas.height);
    let transparent = false;
    for (let i = 3; i < data.length && !transparent; i += 4) transparent = data[i] < 255;
    const type = transparent ? "image/png" : "image/jpeg";
    const blob = await new Promise((resolve) => canvas.toBlob(resolve, type, LIMITS.quality));
    if (!blob || blob.size <= LIMITS.bytes) return bitmap.close(), blob;
  }
}
