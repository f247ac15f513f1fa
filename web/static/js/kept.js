// Pictures that the server keeps, so that a follow-up question need not send them again.

import { keepPicture } from "./api.js";
import { dataURI } from "./pictures.js";

export class KeptPictures {
  #ids = new Map(); // of a picture here -> the server's

  // What stands for `picture` in a request: its id with the server, or the picture itself where the server keeps none.
  async address(picture, signal) {
    if (picture.kind !== "image") return dataURI(typed(picture)); // it keeps pictures only
    if (!this.#ids.has(picture.id)) this.#ids.set(picture.id, await keep(picture, signal));
    return this.#ids.get(picture.id) ?? dataURI(picture.file);
  }

  // The addresses of all, by the pictures' ids.
  async addresses(pictures, signal) {
    const found = new Map();
    for (const picture of pictures) found.set(picture.id, await this.address(picture, signal));
    return found;
  }

  // work(), and once more where the server has dropped a picture meanwhile: then they are sent anew.
  async whileKept(work) {
    try {
      return await work();
    } catch (error) {
      if (error.code !== "image_not_kept") throw error;
      this.#ids.clear();
      return work();
    }
  }
}

// The file of a video or sound, called what it is where the browser does not know.
function typed({ kind, file }) {
  return file.type.startsWith(`${kind}/`) ? file : new Blob([file], { type: "application/octet-stream" });
}

// null where the server does not keep it: what is wrong with it, it says when it is asked about.
async function keep({ file, name }, signal) {
  try {
    return await keepPicture(file, name, signal);
  } catch (error) {
    if (error.name === "AbortError" || error.locked || !error.status) throw error;
    return null;
  }
}
