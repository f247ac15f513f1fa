// Many pictures, in requests of several, some requests at a time.

const MOST_TRIES = 6;
const CONNECTIONS = 4; // and one more, so that the next request is there when one ends; browsers hold six to a server
const CHUNK_BYTES = 8 * 2 ** 20; // a request is worked on when all of it is there

// Works on `items` ({file}), `width` at once. work(chunk) yields {index, value} or {index, error} for each of its items;
// what it throws meets all that it had left: where the server is busy these are tried again later, where the server
// failed each by itself, and else the batch ends and the error is thrown. onStart(item) and onResult(item, value, error)
// come for each, onLeft(item) for one that goes back; what is not wanted(item) any more is left out. A stop by `signal`
// leaves the rest undone.
export async function runBatch(items, { width, work, wanted, onStart, onResult, onLeft, signal }) {
  const todo = items.map((item) => ({ item, tries: 0, alone: false }));
  const connections = Math.min(CONNECTIONS, width, items.length);
  const most = Math.ceil(Math.min(width, items.length) / connections);
  const spare = width > CONNECTIONS ? 1 : 0;
  let fatal = null;
  const worker = async () => {
    while (todo.length && !signal.aborted && !fatal) {
      const chunk = take(todo, most, wanted);
      if (!chunk.length) break;
      for (const { item } of chunk) onStart(item);
      const left = new Set(chunk);
      const again = (entry, error, alone = entry.alone) => {
        left.delete(entry);
        onLeft(entry.item);
        todo.push({ ...entry, tries: entry.tries + 1, alone });
        return error;
      };
      let failure = null;
      try {
        for await (const { index, value, error } of work(chunk.map(({ item }) => item))) {
          const entry = chunk[index];
          if (error?.retryAfter != null && entry.tries + 1 < MOST_TRIES) failure = again(entry, error);
          else if (left.delete(entry)) onResult(entry.item, value ?? null, error ?? null);
        }
      } catch (error) {
        failure = error;
        for (const entry of [...left]) {
          const busy = error.retryAfter != null && entry.tries + 1 < MOST_TRIES;
          const split = error.status >= 500 && chunk.length > 1;
          if (busy || split) again(entry, error, entry.alone || (split && !busy));
          else if (error.status >= 500 || error.retryAfter != null) onResult(entry.item, null, error);
          else {
            onLeft(entry.item);
            fatal ??= error;
          }
        }
      }
      if (failure?.retryAfter != null && !fatal) await pause(failure.retryAfter * 1000 * (0.5 + Math.random()), signal);
    }
  };
  await Promise.all(Array.from({ length: connections + spare }, worker));
  if (fatal && !signal.aborted) throw fatal;
}

// The next entries for one request, out of `todo`.
function take(todo, most, wanted) {
  const chunk = [];
  let bytes = 0;
  while (todo.length && chunk.length < most) {
    const [{ item, alone }] = todo;
    const fits = !alone && !chunk[0]?.alone && bytes + item.file.size <= CHUNK_BYTES;
    if (chunk.length && !fits) break;
    const entry = todo.shift();
    if (!wanted(item)) continue;
    bytes += item.file.size;
    chunk.push(entry);
  }
  return chunk;
}

// Returns early, and without a word, when there is a stop.
const pause = (ms, signal) =>
  new Promise((resolve) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      resolve();
    }, { once: true });
  });

// How fast a batch goes, over what finished of late: {rate} in items a second, {left} in seconds; null before it is known.
export class Pace {
  #ends = [];

  note(now) {
    this.#ends.push(now);
    if (this.#ends.length > 60) this.#ends.shift();
  }

  at(remaining) {
    const span = (this.#ends.at(-1) - this.#ends[0]) / 1000;
    if (this.#ends.length < 3 || !(span > 0)) return null;
    const rate = (this.#ends.length - 1) / span;
    return { rate, left: remaining / rate };
  }
}
