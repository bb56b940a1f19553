// SPDX-License-Identifier: Apache-2.0
// The bar of time: pause, step, reset, the film strip of the past, going back and branching, recording.

import { announce, attempt, byId, complain, setIcon } from "./page.js";
import { Recorder } from "./recorder.js";

const STRIP_MS = 250;

/** @typedef {import("./lane.js").Lane} Lane */
/** A step of the past that is looked at. @typedef {{lane: Lane, step: number, resume: boolean}} Look */

export class Transport {
  /** @param {import("./stage.js").Stage} stage */
  constructor(stage) {
    this.stage = stage;
    /** Null: the present. Its lane stands still, and runs again afterwards if `resume`. @type {Look | null} */
    this.looking = null;
    this.recorder = new Recorder();
    byId("pause").onclick = attempt(() => this.togglePause());
    byId("step").onclick = attempt(() => this.singleStep());
    byId("reset").onclick = attempt(() => this.reset());
    byId("rewind").onclick = attempt(() => this.goBack());
    byId("fork").onclick = attempt(() => this.tryAnotherWay());
    byId("cancel-preview").onclick = attempt(() => this.leavePast());
    byId("record").onclick = attempt(() => this.toggleRecord());
    byId("fullscreen").onclick = attempt(() => this.toggleFullscreen());
    byId("scrubber").oninput = attempt(() => this.look(Number(byId("scrubber").value)));
    stage.addEventListener("change", () => this.#changed());
    setInterval(() => this.#refreshOften(), STRIP_MS);
  }

  async togglePause() {
    const lane = this.stage.active;
    if (this.looking) await this.leavePast(true);
    else await lane.request(lane.paused ? "resume" : "pause");
  }

  /** Take one step of a stream that is paused; one that runs is paused. */
  async singleStep() {
    const lane = this.stage.active;
    if (this.looking) await this.leavePast(false);
    await lane.request(lane.paused ? "step" : "pause");
  }

  async reset() {
    const lane = this.stage.active;
    await this.leavePast();
    await lane.restart();
    announce("The stream starts again from its first picture.");
  }

  /** Look at a step of the past. @param {number} step */
  async look(step) {
    const lane = this.stage.active;
    const entering = !this.looking;
    if (entering) this.looking = { lane, step, resume: !lane.paused };
    else this.looking.step = step;
    lane.preview(step);
    this.#refresh();
    if (entering && !lane.paused) await lane.request("pause");
  }

  /** Back to the present. @param {boolean} [run] whether the stream runs then; as before if not given */
  async leavePast(run) {
    if (!this.looking) return;
    const { lane, resume } = this.#endLook();
    if (run ?? resume) await lane.request("resume");
  }

  /** Make the step that is looked at the present: what came later is forgotten. */
  async goBack() {
    if (!this.looking) return;
    const { lane, step } = this.looking;
    await lane.rewind(step);
    await this.leavePast();
    announce(`Back at step ${step}.`);
  }

  /** Branch off at the step that is looked at, or here: two videos side by side. */
  async tryAnotherWay() {
    if (this.stage.lanes.length > 1) {
      complain("Two branches are on the page: keep one of them first.");
      return;
    }
    const look = this.looking && this.#endLook();
    const lane = await this.stage.fork(look?.step ?? null);
    if (look?.resume) await Promise.all([look.lane.request("resume"), lane.request("resume")]);
    announce(`Branch B goes another way from step ${lane.step} on. You steer B.`);
  }

  async toggleRecord() {
    if (this.recorder.running) {
      const { name } = await this.recorder.stop();
      announce(`${name} is saved.`);
    } else if (Recorder.format()) {
      this.recorder.start(this.stage.active.canvas, this.stage.model.fps);
      announce("Recording.");
    } else {
      throw new Error("This browser cannot record video.");
    }
    this.#refreshOften();
  }

  async toggleFullscreen() {
    if (document.fullscreenElement) await document.exitFullscreen();
    else await document.querySelector(".play").requestFullscreen();
  }

  #endLook() {
    const look = this.looking;
    this.looking = null;
    look.lane.preview(null);
    this.#refresh();
    return look;
  }

  /** Another lane is steered, or its state is another. */
  #changed() {
    if (this.looking && this.looking.lane !== this.stage.active) attempt(() => this.leavePast())();
    this.#refresh();
  }

  #refresh() {
    const { looking } = this;
    const lane = this.stage.active;
    const { usable } = this.stage;
    for (const id of ["pause", "step", "reset", "fork", "record", "scrubber"]) byId(id).disabled = !usable;
    if (!lane) return;
    const stopped = lane.paused || looking !== null;
    const pause = byId("pause");
    if (pause.dataset.stopped !== String(stopped)) {
      pause.dataset.stopped = String(stopped);
      pause.setAttribute("aria-label", stopped ? "Resume" : "Pause");
      setIcon(pause, stopped ? "play" : "pause");
    }
    const focused = document.activeElement;
    byId("rewind").hidden = byId("cancel-preview").hidden = looking === null;
    byId("fork").classList.toggle("ghost", looking === null);
    byId("fork").hidden = this.stage.lanes.length > 1;
    if (focused?.hidden) pause.focus();
    const scrubber = byId("scrubber");
    scrubber.min = String(lane.oldest);
    scrubber.max = String(lane.step);
    scrubber.value = String(looking?.step ?? lane.step);
    scrubber.setAttribute("aria-valuetext", `step ${scrubber.value} of ${lane.step}`);
  }

  #refreshOften() {
    const lane = this.stage.active;
    const { model } = this.stage;
    if (!lane || document.hidden) return;
    this.#refresh();
    const seconds = ((this.looking?.step ?? lane.step) * model.frames_per_step) / model.fps;
    byId("clock").textContent = `${Math.floor(seconds / 60)}:${(seconds % 60).toFixed(1).padStart(4, "0")}`;
    byId("record").setAttribute("aria-pressed", String(this.recorder.running));
    byId("record-label").textContent = this.recorder.running ? `Stop ${this.recorder.seconds.toFixed(0)} s` : "Record";
    this.#filmstrip(lane);
  }

  #filmstrip(lane) {
    const canvas = byId("filmstrip");
    const [width, height] = [canvas.clientWidth * devicePixelRatio, canvas.clientHeight * devicePixelRatio];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    const context = canvas.getContext("2d");
    context.clearRect(0, 0, width, height);
    const tile = height * (this.stage.model.width / this.stage.model.height);
    const tiles = Math.ceil(width / tile);
    for (let number = 0; number < tiles; number += 1) {
      const share = tiles > 1 ? number / (tiles - 1) : 1;
      const picture = lane.past.at(Math.round(lane.oldest + share * (lane.step - lane.oldest)));
      if (picture) context.drawImage(picture, number * tile, 0, tile, height);
    }
  }
}
