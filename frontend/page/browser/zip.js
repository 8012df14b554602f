// Read and write zip archives without a library: those that read one file of a large archive at a time come from a
// package manager for scripts, which `make run` does not have. The format is section 4.3 of PKWARE's APPNOTE.

const CENTRAL = 0x02014b50, LOCAL = 0x04034b50, END = 0x06054b50;
const UTF8 = 0x800, ENCRYPTED = 1, STORED = 0, DEFLATED = 8;
const SLASH = 0x2f, BACKSLASH = 0x5c;

// What the bytes 128 to 255 of a name mean without the UTF-8 flag, as MS-DOS wrote them (code page 437).
const CP437 =
  "ÇüéâäàåçêëèïîìÄÅÉæÆôöòûùÿÖÜ¢£¥₧ƒáíóúñÑªº¿⌐¬½¼¡«»░▒▓│┤╡╢╖╕╣║╗╝╜╛┐└┴┬├─┼╞╟╚╔╩╦╠═╬╧╨╤╥╙╘╒╓╫╪┘┌█▄▌▐▀αßΓπΣσµτΦΘΩδ∞φε∩≡±≥≤⌠⌡÷≈°∙·√ⁿ²■ ";

// Yields {name, identity, open} for each file of an archive. `identity` is equal for files of equal content, and
// `open()` returns the content as a Blob.
export async function* filesOf(archive) {
  const tail = await bytes(archive.slice(-65557)); // the end record and a comment of maximum length
  let at = tail.byteLength - 22;
  while (at >= 0 && tail.getUint32(at, true) !== END) at--;
  if (at < 0) throw new Error("this file is not a zip archive, or it is truncated");
  const [count, size] = [tail.getUint16(at + 10, true), tail.getUint32(at + 12, true)];
  const start = tail.getUint32(at + 16, true);
  if (count === 0xffff || start === 0xffffffff) {
    throw new Error("zip64 archives are not supported; unpack the archive and drop the folder");
  }
  const directory = await bytes(archive.slice(start, start + size));
  for (let entry = 0; entry + 46 <= directory.byteLength && directory.getUint32(entry, true) === CENTRAL; ) {
    const field = (offset, wide) => directory[wide ? "getUint32" : "getUint16"](entry + offset, true);
    const nameLength = field(28);
    const raw = new Uint8Array(directory.buffer, directory.byteOffset + entry + 46, nameLength);
    const [flags, method, packed, local] = [field(8), field(10), field(20, true), field(42, true)];
    const name = nameOf(raw);
    const identity = `${field(16, true)}:${field(24, true)}`; // CRC-32 and size
    const open = () => unpack(archive, { name, flags, method, packed, local });
    if (name && raw.at(-1) !== SLASH && raw.at(-1) !== BACKSLASH) yield { name, identity, open };
    entry += 46 + nameLength + field(30) + field(32);
  }
}

// A path within the archive, with slashes: Windows programs write backslashes, and Unix programs UTF-8 without its flag.
function nameOf(raw) {
  let name;
  try {
    name = new TextDecoder("utf-8", { fatal: true }).decode(raw);
  } catch {
    name = Array.from(raw, (byte) => (byte < 128 ? String.fromCharCode(byte) : CP437[byte - 128])).join("");
  }
  return name.split(/[\\/]/).filter((part) => part && part !== "." && part !== "..").join("/");
}

async function unpack(archive, { name, flags, method, packed, local }) {
  if (flags & ENCRYPTED) throw new Error(`${name} is encrypted`);
  const header = await bytes(archive.slice(local, local + 30));
  if (header.byteLength < 30 || header.getUint32(0, true) !== LOCAL) throw new Error(`${name} is truncated`);
  const start = local + 30 + header.getUint16(26, true) + header.getUint16(28, true);
  const data = archive.slice(start, start + packed);
  if (method === STORED) return data;
  if (method !== DEFLATED) throw new Error(`${name} uses compression method ${method}, which is not supported`);
  return new Response(data.stream().pipeThrough(new DecompressionStream("deflate-raw"))).blob();
}

// Returns an archive of [name, text] entries, stored without compression.
export function zipOf(texts) {
  const encode = new TextEncoder();
  const [files, directory] = [[], []];
  let offset = 0;
  for (const [name, text] of texts) {
    const [path, data] = [encode.encode(name), encode.encode(text)];
    const common = [20, UTF8, STORED, 0, 0x21]; // version, flags, method, time, date: 1 January 1980
    const rest = record("LLLSS", [crc32(data), data.length, data.length, path.length, 0]);
    const local = [record("LSSSSS", [LOCAL, ...common]), rest, path, data];
    const central = [record("LSSSSSS", [CENTRAL, 20, ...common]), rest, record("SSSLL", [0, 0, 0, 0, offset]), path];
    offset += local.reduce((sum, part) => sum + part.length, 0);
    files.push(...local);
    directory.push(...central);
  }
  const size = directory.reduce((sum, part) => sum + part.length, 0);
  const end = record("LSSSSLLS", [END, 0, 0, texts.length, texts.length, size, offset, 0]);
  return new Blob([...files, ...directory, end], { type: "application/zip" });
}

function record(kinds, values) {
  const view = new DataView(new ArrayBuffer([...kinds].reduce((sum, kind) => sum + (kind === "L" ? 4 : 2), 0)));
  let at = 0;
  [...kinds].forEach((kind, index) => {
    kind === "L" ? view.setUint32(at, values[index], true) : view.setUint16(at, values[index], true);
    at += kind === "L" ? 4 : 2;
  });
  return new Uint8Array(view.buffer);
}

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(data) {
  let sum = 0xffffffff;
  for (const byte of data) sum = TABLE[(sum ^ byte) & 0xff] ^ (sum >>> 8);
  return (sum ^ 0xffffffff) >>> 0;
}

async function bytes(blob) {
  return new DataView(await blob.arrayBuffer());
}
