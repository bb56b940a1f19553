// SPDX-License-Identifier: Apache-2.0
// The lanes side by side: one stream, or two branches of it, one of which is steered.

import { Lane } from "./lane.js";
import { announce, byId } from "./page.js";

const NAMES = ["A", "B"];

/** Emits "change" when a lane changes, comes, goes or becomes the active one; "adopted" with the server's `opened`. */
export class Stage extends EventTarget {
  /**
   * @param {import("./connection.js").Connection} connection
   * @param {object} model `welcome.model`
   * @param {import("./live.js").Live} live
   * @param {import("./body.js").Body | null} body
   */
  constructor(connection, model, live, body) {
    super();
    Object.assign(this, { connection, model, live, body });
    /** @type {Lane[]} */
    this.lanes = [];
    /** The lane that is steered. @type {Lane | null} */
    this.active = null;
    this.settings = { crisp: false, skeleton: true, hold: false };
    /** Called with every new lane. @type {(lane: Lane) => void} */
    this.onLane = () => {};
    connection.addEventListener("picture", ({ detail }) => this.#laneOf(detail.stream)?.picture(detail));
    for (const type of ["state", "pose", "applied", "ended"]) {
      connection.addEventListener(type, ({ detail }) => this.#laneOf(detail.stream)?.take(detail));
    }
  }

  /** Begin a stream in the place of what is there. @param {object} options of `open`: first, seed, prompt, action */
  async open(options) {
    const opened = await this.connection.request("open", options);
    this.lanes.splice(0).forEach((lane) => lane.close());
    this.#add(opened);
  }

  /** See and steer a stream of somebody. @param {string} key */
  async watch(key) {
    const opened = await this.connection.request("watch", { key });
    this.lanes.splice(0).forEach((lane) => lane.close());
    this.#add(opened);
  }

  /** After the connection was lost: see the same streams again. If all are gone, one starts anew as it had begun. */
  async resume() {
    const { first, seed, action } = this.active ?? {};
    for (const lane of [...this.lanes]) {
      try {
        lane.adopt(await this.connection.request("watch", { key: lane.key }));
      } catch {
        lane.take({ type: "ended", why: "the server does not have it any more" });
      }
    }
    if (first && this.lanes.every((lane) => lane.stream === null)) {
      await this.open({ first, seed, ...(action ? { action } : {}) });
      announce("The server was started again, and its streams are gone: this one starts anew.");
    }
    this.#changed();
  }

  /** Let go of held poses, and hold no more: something else moves the body. */
  letGo() {
    this.settings.hold = byId("hold-pose").checked = false;
    this.applySettings();
  }

  /** Bring everything on the page that depends on lanes or the connection up to date. */
  refresh() {
    this.#changed();
  }

  /** True while the steered stream can be told something. */
  get usable() {
    return this.active !== null && this.active.stream !== null && this.connection.state === "open";
  }

  /**
   * A second lane that goes another way than the active one, from a step of the past or from here on.
   * @param {number | null} step null: from here
   */
  async fork(step) {
    const origin = this.active;
    const opened = await origin.request("fork");
    const lane = this.#add(opened);
    lane.past = origin.past.upTo(step ?? opened.step);
    if (origin.skeleton?.points) lane.skeleton.follow(origin.skeleton.points);
    lane.player.show(origin.canvas);
    if (step === null) return lane;
    lane.player.frozen = true;  // what comes before the rewind is not to be seen
    try {
      await lane.rewind(step);
    } finally {
      lane.player.frozen = false;
    }
    return lane;
  }

  /** Close the other lane. @param {Lane} kept */
  keep(kept) {
    for (const lane of this.lanes) if (lane !== kept) lane.close();
    this.lanes = [kept];
    this.activate(kept);
    announce("One branch is kept, the other is closed.");
  }

  /** Steer this lane from now on. @param {Lane} lane */
  activate(lane) {
    this.active = lane;
    this.#changed();
  }

  /** Draw what is due in every lane. @param {number} now */
  tick(now) {
    for (const lane of this.lanes) lane.player.tick(now);
  }

  /** Apply the settings to every lane. */
  applySettings() {
    for (const lane of this.lanes) {
      lane.player.setCrisp(this.settings.crisp);
      lane.showSkeleton(this.settings.skeleton);
      lane.holdsPose = this.settings.hold;
      if (!this.settings.hold) lane.releasePose();
    }
  }

  #add(opened) {
    const lane = new Lane(this.connection, this.model, this.live, this.body);
    lane.addEventListener("change", () => this.#changed());
    lane.element.addEventListener("pointerdown", () => this.active !== lane && this.activate(lane), { capture: true });
    lane.element.querySelector(".choose").onclick = () => this.activate(lane);
    lane.element.querySelector(".keep").onclick = () => this.keep(lane);
    byId("waiting").hidden = true;
    byId("lanes").append(lane.element);
    this.lanes.push(lane);
    this.active = lane;
    lane.adopt(opened);
    this.applySettings();
    this.onLane(lane);
    this.#changed();
    this.dispatchEvent(new CustomEvent("adopted", { detail: opened }));
    return lane;
  }

  #laneOf(stream) {
    return this.lanes.find((lane) => lane.stream === stream);
  }

  #changed() {
    const several = this.lanes.length > 1;
    byId("lanes").dataset.count = String(this.lanes.length);
    this.lanes.forEach((lane, number) => {
      const active = lane === this.active;
      const name = NAMES[number];
      lane.element.toggleAttribute("data-active", active);
      lane.element.querySelector(".lane-bar").hidden = !several;
      lane.element.querySelector(".lane-name").textContent = name;
      lane.canvas.setAttribute("aria-label", several ? `Generated video, branch ${name}` : "Generated video");
      const choose = lane.element.querySelector(".choose");
      choose.setAttribute("aria-pressed", String(active));
      choose.querySelector("span").textContent = active ? "Steering" : "Steer this one";
      choose.setAttribute("aria-label", `Steer branch ${name}`);
      lane.element.querySelector(".keep").setAttribute("aria-label", `Keep branch ${name} and close the other`);
    });
    this.dispatchEvent(new Event("change"));
  }
}
