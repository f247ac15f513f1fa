// Many requests, some at a time.

const MOST_TRIES = 6;

// Does work(item) for each item, `width` at once; waits and tries again where the server is busy. onResult(item, value,
// error) comes for each; a stop by `signal` leaves the rest undone.
export async function runBatch(items, { width, work, onStart, onResult, signal }) {
  const todo = [...items];
  const worker = async () => {
    while (todo.length && !signal.aborted) {
      const item = todo.shift();
      onStart(item);
      try {
        onResult(item, await persist(() => work(item), signal), null);
      } catch (error) {
        onResult(item, null, error);
      }
    }
  };
  await Promise.all(Array.from({ length: Math.min(width, items.length) }, worker));
}

async function persist(attempt, signal) {
  for (let tries = 1; ; tries++) {
    try {
      return await attempt();
    } catch (error) {
      if (error.retryAfter == null || tries === MOST_TRIES) throw error;
      await pause(error.retryAfter * 1000 * (0.5 + Math.random()), signal);
    }
  }
}

const pause = (ms, signal) =>
  new Promise((resolve, reject) => {
    const timer = setTimeout(resolve, ms);
    signal.addEventListener("abort", () => {
      clearTimeout(timer);
      reject(new DOMException("stopped", "AbortError"));
    }, { once: true });
  });

// How fast a batch goes, over what finished of late: {rate} in items a second, {left} in seconds; null before it is known.
export class Pace {
  #ends = [];

  note(now) {
    this.#ends.push(now);
    if (this.#ends.length > 40) this.#ends.shift();
  }

  at(remaining) {
    const span = (this.#ends.at(-1) - this.#ends[0]) / 1000;
    if (this.#ends.length < 3 || !(span > 0)) return null;
    const rate = (this.#ends.length - 1) / span;
    return { rate, left: remaining / rate };
  }
}
