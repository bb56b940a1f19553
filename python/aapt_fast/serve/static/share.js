// SPDX-License-Identifier: Apache-2.0
// A link to watch and steer the active stream, and its replay file.

import { save, timestamp } from "./files.js";
import { announce, attempt, byId } from "./page.js";

export class Share {
  /** @param {import("./stage.js").Stage} stage */
  constructor(stage) {
    this.stage = stage;
    byId("open-share").onclick = () => this.open();
    byId("copy-link").onclick = attempt(() => this.#copy());
    byId("download-replay").onclick = attempt(() => this.#download());
    stage.addEventListener("change", () => (byId("open-share").disabled = !stage.usable));
  }

  open() {
    byId("watch-link").value = `${location.origin}${location.pathname}#watch=${this.stage.active.key}`;
    byId("token-note").hidden = !this.stage.connection.token;
    byId("share").showModal();
  }

  /** The clipboard exists on localhost and over TLS only; elsewhere the link is selected for the user to copy. */
  async #copy() {
    byId("watch-link").select();
    if (navigator.clipboard) await navigator.clipboard.writeText(byId("watch-link").value);
    announce(navigator.clipboard ? "The link is copied." : "The link is selected: copy it.");
    byId("copy-link").textContent = navigator.clipboard ? "Copied" : "Selected";
    setTimeout(() => (byId("copy-link").textContent = "Copy"), 2000);
  }

  async #download() {
    const { key } = this.stage.active;
    const response = await this.stage.connection.fetch(`v1/streams/${encodeURIComponent(key)}/replay`);
    save(await response.blob(), `aapt-fast-replay-${timestamp()}.safetensors`);
    announce("The replay is saved.");
  }
}
