// A zip archive whose entries are stored as they are (PKWARE's APPNOTE 6.3, sections 4.3.7, 4.3.12 and 4.3.16).

const TABLE = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = TABLE[(crc ^ byte) & 0xff] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

const UTF8 = 0x0800; // flag: names are UTF-8
const EPOCH = 0x21; // 1980-01-01, the first date that there is

// Numbers in little-endian order: record([value, bytes], ...).
function record(...fields) {
  const view = new DataView(new ArrayBuffer(fields.reduce((sum, [, size]) => sum + size, 0)));
  let at = 0;
  for (const [value, size] of fields) {
    if (size === 2) view.setUint16(at, value, true);
    else view.setUint32(at, value, true);
    at += size;
  }
  return view;
}

// `entries` are [name, text]; at most 65,535, and 4 GiB together.
export function zip(entries) {
  const encoder = new TextEncoder();
  const files = [];
  const directory = [];
  let offset = 0;
  let length = 0;
  for (const [path, text] of entries) {
    const name = encoder.encode(path);
    const data = encoder.encode(text);
    const common = [[20, 2], [UTF8, 2], [0, 2], [0, 2], [EPOCH, 2], [crc32(data), 4], [data.length, 4], [data.length, 4], [name.length, 2], [0, 2]];
    const local = record([0x04034b50, 4], ...common);
    const central = record([0x02014b50, 4], [20, 2], ...common, [0, 2], [0, 2], [0, 2], [0, 4], [offset, 4]);
    files.push(local, name, data);
    directory.push(central, name);
    offset += local.byteLength + name.length + data.length;
    length += central.byteLength + name.length;
  }
  const count = [entries.length, 2];
  const end = record([0x06054b50, 4], [0, 2], [0, 2], count, count, [length, 4], [offset, 4], [0, 2]);
  return new Blob([...files, ...directory, end], { type: "application/zip" });
}
