// Conversations in the browser's IndexedDB: a record each, and their pictures beside. Bounded; the oldest go first.

export const MOST = { conversations: 50, bytes: 200 * 2 ** 20 };

const done = (request) =>
  new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });

const committed = (transaction) =>
  new Promise((resolve, reject) => {
    transaction.oncomplete = resolve;
    transaction.onerror = transaction.onabort = () => reject(transaction.error);
  });

function open() {
  const request = indexedDB.open("mmserve", 1);
  request.onupgradeneeded = () => {
    request.result.createObjectStore("conversations", { keyPath: "id" });
    request.result.createObjectStore("pictures", { keyPath: "id" }).createIndex("conversation", "conversation");
  };
  return done(request);
}

export class Store {
  #opened = null;

  async #begin(mode) {
    this.#opened ??= open();
    return (await this.#opened).transaction(["conversations", "pictures"], mode);
  }

  // The records without their pictures, newest first.
  async list() {
    const found = await done((await this.#begin("readonly")).objectStore("conversations").getAll());
    return found.sort((a, b) => b.updated - a.updated);
  }

  // A record, with `file` and `name` in each of its turns' pictures.
  async load(id) {
    const transaction = await this.#begin("readonly");
    const [record, pictures] = await Promise.all([
      done(transaction.objectStore("conversations").get(id)),
      done(transaction.objectStore("pictures").index("conversation").getAll(id)),
    ]);
    const known = new Map(pictures.map((picture) => [picture.id, picture]));
    const turns = record.turns.map((turn) => ({ ...turn, pictures: turn.pictures.map((p) => ({ ...known.get(p.id) })) }));
    return { ...record, turns };
  }

  // Keeps a conversation in place of what was kept of it.
  async save({ id, title, created, system, turns }) {
    const pictures = turns.flatMap((turn) => turn.pictures);
    const bytes = pictures.reduce((sum, { file }) => sum + file.size, 0);
    const slim = turns.map((turn) => ({ ...turn, pictures: turn.pictures.map((picture) => ({ id: picture.id })) }));
    const transaction = await this.#begin("readwrite");
    transaction.objectStore("conversations").put({ id, title, created, updated: Date.now(), system, bytes, turns: slim });
    const kept = transaction.objectStore("pictures");
    const before = new Set(await done(kept.index("conversation").getAllKeys(id)));
    for (const picture of pictures) {
      if (!before.delete(picture.id)) kept.put({ id: picture.id, conversation: id, name: picture.name, file: picture.file });
    }
    for (const old of before) kept.delete(old);
    await committed(transaction);
    await this.#bound(id);
  }

  async rename(id, title) {
    const transaction = await this.#begin("readwrite");
    const conversations = transaction.objectStore("conversations");
    conversations.put({ ...(await done(conversations.get(id))), title });
    await committed(transaction);
  }

  async remove(id) {
    const transaction = await this.#begin("readwrite");
    transaction.objectStore("conversations").delete(id);
    const pictures = transaction.objectStore("pictures");
    for (const key of await done(pictures.index("conversation").getAllKeys(id))) pictures.delete(key);
    await committed(transaction);
  }

  async #bound(current) {
    let bytes = 0;
    for (const [i, record] of (await this.list()).entries()) {
      bytes += record.bytes;
      const over = i >= MOST.conversations || bytes > MOST.bytes;
      if (over && record.id !== current) await this.remove(record.id);
    }
  }
}
