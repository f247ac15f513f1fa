// Small copies of pictures, made when they come into view and two at a time, so that hundreds stay light.

const SIDE = 96; // CSS pixels

export class Thumbnails {
  #waiting = [];
  #running = 0;
  #files = new WeakMap();
  #seen = new IntersectionObserver((entries) => this.#notice(entries), { rootMargin: "400px" });

  // Draws `file` on `canvas` once that is near the window.
  watch(canvas, file) {
    canvas.width = canvas.height = SIDE;
    this.#files.set(canvas, file);
    this.#seen.observe(canvas);
  }

  #notice(entries) {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      this.#seen.unobserve(entry.target);
      this.#waiting.push(entry.target);
    }
    while (this.#running < 2 && this.#waiting.length) this.#draw(this.#waiting.shift());
  }

  async #draw(canvas) {
    this.#running++;
    try {
      const whole = await createImageBitmap(this.#files.get(canvas), { resizeWidth: 2 * SIDE, resizeQuality: "medium" });
      const scale = Math.max(SIDE / whole.width, SIDE / whole.height);
      const [width, height] = [whole.width * scale, whole.height * scale];
      canvas.getContext("2d").drawImage(whole, (SIDE - width) / 2, (SIDE - height) / 2, width, height);
      whole.close();
    } catch {
      canvas.classList.add("broken"); // no preview; the server may still read it
    }
    this.#running--;
    if (this.#waiting.length) this.#draw(this.#waiting.shift());
  }
}
