// SPDX-License-Identifier: Apache-2.0
// What a stream starts from: a picture of the gallery or of the user, a seed, a prompt; or a replay file.

import { announce, attempt, byId } from "./page.js";

const MOST_THUMBNAILS = 16;
const GREETING = "wave";  // the first motion, where a model has it

export class Start {
  /** @param {import("./stage.js").Stage} stage */
  constructor(stage) {
    this.stage = stage;
    this.connection = stage.connection;
    /** What the checked picture means to the server: {gallery}, {image}. @type {Map<string, object>} */
    this.firsts = new Map();
    const { model } = stage;
    byId("gallery").replaceChildren();
    for (let number = 0; number < Math.min(model.gallery, MOST_THUMBNAILS); number += 1) this.#galleryPicture(number);
    byId("prompt-row").hidden = !model.has_prompt;
    stage.addEventListener("adopted", ({ detail }) => this.#show(detail));
    byId("start").disabled = false;
    byId("start").onclick = attempt(() => this.start());
    byId("set-prompt").onclick = attempt(() => stage.active.request("prompt", { prompt: byId("prompt").value }));
    byId("dice").onclick = () => (byId("seed").value = String(Math.floor(Math.random() * 2 ** 32)));
    byId("upload").onchange = attempt(() => this.#upload(byId("upload")));
    byId("open-replay").onchange = attempt(() => this.#replay(byId("open-replay")));
  }

  /** Start with what is chosen, for a click. */
  async start() {
    await this.open();
    announce("The stream starts from the picture that is chosen.");
  }

  /** Start with what is chosen: the steered stream anew, or a stream where there is none. */
  async open() {
    const checked = document.querySelector("#gallery input:checked");
    if (!checked) throw new Error("This model has no pictures of its own: upload a first picture, then press Start.");
    const first = this.firsts.get(checked.value);
    const { actions, has_prompt } = this.stage.model;
    const prompt = byId("prompt").value;
    const seed = byId("seed");
    if (seed.value === "" || !seed.checkValidity()) throw new Error(`Seed: give a whole number from 0 to ${seed.max}.`);
    this.stage.letGo();
    const fields = { first, seed: Number(seed.value), ...(has_prompt && prompt ? { prompt } : {}) };
    const lane = this.stage.active;
    const action = actions.includes(GREETING) ? GREETING : actions[0];
    if (lane && lane.stream !== null) {
      await lane.restart(fields);
      if (lane.paused) await lane.request("resume");
    } else {
      await this.stage.open({ ...fields, ...(action ? { action } : {}) });
    }
  }

  /** Show what a stream started from. */
  #show({ first, seed }) {
    if (seed !== undefined) byId("seed").value = String(seed);
    const known = [...this.firsts].find(([, each]) => JSON.stringify(each) === JSON.stringify(first));
    const input = known && document.querySelector(`#gallery input[value="${known[0]}"]`);
    if (input) input.checked = true;
  }

  #galleryPicture(number) {
    const image = this.#thumbnail(`gallery-${number}`, { gallery: number }, `Picture ${number + 1}`);
    const fill = async () => {
      const response = await this.connection.fetch(`v1/gallery/${number}.png`);
      image.src = URL.createObjectURL(await response.blob());
    };
    attempt(fill)();
    if (number === 0) image.previousElementSibling.checked = true;
  }

  #thumbnail(value, first, label) {
    const box = byId("gallery").appendChild(document.createElement("label"));
    const input = Object.assign(document.createElement("input"), { type: "radio", name: "first", value });
    input.setAttribute("aria-label", label);
    const image = Object.assign(document.createElement("img"), { alt: "" });
    box.append(input, image);
    box.ondblclick = attempt(() => this.start());
    this.firsts.set(value, first);
    return image;
  }

  async #upload(input) {
    const file = input.files[0];
    if (!file) return;
    const response = await this.connection.fetch("v1/images", { method: "POST", body: file });
    const { image: id, note } = await response.json();
    const image = this.#thumbnail(`image-${id}`, { image: id }, `Own picture ${file.name}`);
    image.src = URL.createObjectURL(file);
    image.previousElementSibling.checked = true;
    input.value = "";
    announce(`The picture is chosen. Press Start.${note ? ` But ${note}.` : ""}`);
  }

  async #replay(input) {
    const file = input.files[0];
    if (!file) return;
    const response = await this.connection.fetch("v1/replays", { method: "POST", body: file });
    const { replay } = await response.json();
    input.value = "";
    await this.stage.open({ first: { replay } });
    announce("The replay plays.");
  }
}
