// Small copies of the images that the table shows: two thousand photos in full size would fill the memory.

import { LIMITS } from "./messages.js";
import { sizeOf } from "./shrink.js";

const [WIDTH, HEIGHT, AT_ONCE] = [192, 144, 2]; // px, twice what is shown
const wanted = new Map(); // item → what to do with its thumbnail's address
let working = 0;

// Calls `then` with an address, or with "" if the browser cannot display the image. The latest is made first.
export function want(item, then) {
  wanted.set(item, then);
  if (working < AT_ONCE) work();
}

export const forget = (item) => wanted.delete(item);

async function work() {
  working++;
  while (wanted.size) {
    const [item, then] = [...wanted].at(-1);
    wanted.delete(item);
    item.thumbnail ??= await made(item);
    then(item.thumbnail);
  }
  working--;
}

async function made(item) {
  try {
    const file = await item.open();
    const { width, height } = await sizeOf(file);
    if (width * height > LIMITS.source_pixels) return "";
    const scale = Math.min(1, Math.max(WIDTH / width, HEIGHT / height));
    const size = { resizeWidth: Math.ceil(width * scale), resizeHeight: Math.ceil(height * scale) };
    const bitmap = await createImageBitmap(file, { ...size, resizeQuality: "medium" });
    const canvas = Object.assign(document.createElement("canvas"), { width: WIDTH, height: HEIGHT });
    canvas.getContext("2d").drawImage(bitmap, (WIDTH - bitmap.width) / 2, (HEIGHT - bitmap.height) / 2);
    bitmap.close();
    return URL.createObjectURL(await new Promise((resolve) => canvas.toBlob(resolve, "image/webp", 0.8)));
  } catch {
    return "";
  }
}
