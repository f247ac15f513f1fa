// Folders that are dropped, as the files in them.

// The files of a drop; of folders the pictures in them and below, each with the path in `place`.
export async function droppedFiles(transfer) {
  const files = [...transfer.files]; // a transfer is empty once its event is over
  const entries = [...transfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean);
  if (!entries.some((entry) => entry.isDirectory)) return files;
  const found = [];
  for (const entry of entries) await collect(entry, found);
  return found;
}

async function collect(entry, found) {
  if (entry.isFile) {
    const file = await new Promise((resolve, reject) => entry.file(resolve, reject));
    file.place = entry.fullPath.replace(/^\//, "");
    if (!file.place.includes("/") || isPicture(file)) found.push(file);
    return;
  }
  const reader = entry.createReader();
  for (;;) {
    const some = await new Promise((resolve, reject) => reader.readEntries(resolve, reject)); // some at a time, then none
    if (!some.length) return;
    for (const each of some) await collect(each, found);
  }
}

export const isPicture = (file) => file.type.startsWith("image/");

// Where a file lies, as far as the browser tells.
export const placeOf = (file) => file.place || file.webkitRelativePath || file.name;
