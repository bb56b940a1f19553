// SPDX-License-Identifier: Apache-2.0
// One stream on the page: its video, its past, its skeleton, and the controls that go to it.

import { Decoder } from "./decoder.js";
import { ControlToPhoton } from "./measures.js";
import { Past } from "./past.js";
import { Player } from "./player.js";
import { Poses } from "./poses.js";
import { Skeleton } from "./skeleton.js";

/** Emits "change" when its state is another. */
export class Lane extends EventTarget {
  /**
   * @param {import("./connection.js").Connection} connection
   * @param {object} model `welcome.model`
   * @param {import("./live.js").Live} live where its times go
   * @param {import("./body.js").Body | null} body
   */
  constructor(connection, model, live, body) {
    super();
    this.connection = connection;
    this.model = model;
    this.live = live;
    this.element = document.querySelector("#lane-template").content.firstElementChild.cloneNode(true);
    this.screen = this.element.querySelector(".screen");
    this.caption = this.element.querySelector(".caption");
    this.badge = this.element.querySelector(".badge.live");
    this.audience = this.element.querySelector(".badge.viewers");
    this.canvas = this.element.querySelector(".picture");
    this.ambient = this.element.querySelector(".ambient").getContext("2d", { alpha: false });
    this.element.style.setProperty("--shape", model.width / model.height);
    this.player = new Player(this.canvas, model, (queued, now) => this.#drawn(queued, now));
    this.decoder = new Decoder((image, picture, ms) => this.#decoded(image, picture, ms));
    this.past = new Past(model);
    this.photons = new ControlToPhoton(live.controlToPhoton);
    this.skeleton = body && this.#skeleton(body);
    this.poses = new Poses(model.history + 1);
    /** If set, a pose stays when its joint is let go. */
    this.holdsPose = false;
    /** Counts rewinds and resets: pictures that came before the newest one are not drawn. */
    this.epoch = 0;
    this.#forget();
  }

  /** Show a stream. @param {{stream: number, key: string, step: number, first: object, seed: number}} opened */
  adopt(opened) {
    this.#forget();
    this.stream = opened.stream;
    this.key = opened.key;
    this.first = opened.first;
    this.seed = opened.seed;
    this.step = opened.step;
    this.#changed();
  }

  /** The earliest step that `rewind` reaches. */
  get oldest() {
    return Math.max(0, this.step - this.model.history);
  }

  /** Set one track; the latest value wins. @param {"action" | "pose" | "camera"} track */
  control(track, value) {
    if (this.stream === null) return;
    const id = ++this.controls;
    this.photons.send(id);
    this.connection.send({ type: "control", stream: this.stream, id, track, value });
  }

  /** Play a motion; a held pose is let go. @param {string} name */
  play(name) {
    if (this.skeleton?.held) this.releasePose();
    this.action = name;
    this.control("action", name);
    this.#changed();
  }

  /** Back from a held pose to the action. */
  releasePose() {
    if (!this.skeleton?.held) return;
    this.skeleton.release();
    this.control("pose", null);
    this.#changed();
  }

  /** Ask for something of this stream, such as "pause". @returns {Promise<any>} */
  request(type, fields = {}) {
    return this.connection.request(type, { stream: this.stream, ...fields });
  }

  /** Go back: the step of the past becomes the present. @param {number} step */
  async rewind(step) {
    await this.request("rewind", { step });
    this.epoch += 1;
    this.step = step;
    this.photons.clear();
    this.poses.forgetAfter(step * this.model.frames_per_step);
    this.player.clear();
    const picture = this.past.at(step);
    if (picture) this.player.show(picture);
    const pose = this.poses.at(step * this.model.frames_per_step);
    if (pose) this.skeleton?.follow(pose);
    this.#changed();
  }

  /** Start over, from another picture, seed or prompt if they are given. @param {object} [fields] of `reset` */
  async restart(fields = {}) {
    await this.request("reset", fields);
    this.epoch += 1;
    this.first = fields.first ?? this.first;
    this.seed = fields.seed ?? this.seed;
    this.player.clear();
    this.photons.clear();
    this.poses.clear();
    this.past.clear();
    this.#changed();
  }

  /** Show a picture of the past, and no video; null: the video again. @param {number | null} step */
  preview(step) {
    this.player.frozen = step !== null;
    this.caption.hidden = step === null;
    this.skeleton?.show(step === null && this.showsSkeleton);
    const picture = this.past.at(step ?? this.step);
    if (picture) this.player.show(picture);
    if (step === null) {
      this.player.expectGap();
      return;
    }
    const ago = ((this.step - step) * this.model.frames_per_step) / this.model.fps;
    this.caption.textContent = `Step ${step}, ${ago.toFixed(1)} s ago`;
  }

  /** @param {boolean} shown */
  showSkeleton(shown) {
    this.showsSkeleton = shown;
    this.skeleton?.show(shown);
  }

  /** Take a message of the server that names this stream. */
  take(message) {
    if (message.type === "state") this.#state(message);
    if (message.type === "pose") this.#pose(message);
    if (message.type === "applied") this.applied = message;
    if (message.type === "ended") this.#ended(message.why);
  }

  /** @param {import("./picture_header.js").Picture} picture */
  picture(picture) {
    this.decoder.push({ ...picture, epoch: this.epoch });
  }

  /** Bring badge and caption up to date. Called a few times per second. */
  refresh(now) {
    if (!this.player.frozen) {
      this.caption.hidden = !(this.paused && this.player.blank);
      this.caption.textContent = "Paused: press play to go on";
    }
    const alive = now - this.drawnAt < 1000;
    this.badge.dataset.state = alive && !this.paused ? "live" : "";
    this.audience.hidden = this.viewers < 2;
    this.audience.textContent = `${this.viewers} viewers`;
    const state = this.paused ? "Paused" : alive ? "Live" : "Waiting";
    this.badge.textContent = this.why ?? state;
  }

  close() {
    if (this.stream !== null) this.request("close").catch(() => {});  // the server closes what nobody watches
    this.decoder.close();
    this.player.clear();
    this.element.remove();
  }

  #forget() {
    /** @type {number | null} */
    this.stream = null;
    this.key = "";
    this.controls = 0;
    this.step = 0;
    this.viewers = 1;
    this.paused = false;
    this.why = null;
    this.drawnAt = -Infinity;
    this.shown = 0;
    this.poses.clear();
    this.photons.clear();
    this.player.clear();
    this.showsSkeleton ??= true;
  }

  #skeleton(body) {
    return new Skeleton(this.element.querySelector(".skeleton"), this.screen, body, {
      pose: (points) => {
        const rounded = points.map((point) => point.map((value) => Math.round(1e4 * value) / 1e4));
        this.control("pose", rounded);
        this.#changed();
      },
      released: () => {
        if (!this.holdsPose) this.releasePose();
      },
    });
  }

  #state(message) {
    if (this.paused || message.paused) this.step = message.step;
    this.viewers = message.viewers;
    this.action = message.action;
    if (message.paused !== this.paused) this.player.expectGap();
    this.paused = message.paused;
    this.#changed();
  }

  #pose({ frame, value }) {
    this.poses.add(frame, value);
    if (this.paused || !this.skeleton?.points) this.skeleton?.follow(value);
  }

  #ended(why) {
    this.why = `Ended: ${why}`;
    this.stream = null;
    this.#changed();
  }

  #decoded(image, picture, ms) {
    if (picture.stream !== this.stream || picture.epoch !== this.epoch) {
      image.close();
      return;
    }
    this.live.decode.add(ms);
    this.player.push(image, picture);
  }

  #drawn({ image, picture }, now) {
    this.drawnAt = now;
    this.shown = picture.frame;
    if (picture.control) this.photons.drawn(picture.control, now);
    this.past.keep(picture.frame, image);
    const pose = this.poses.at(picture.frame);
    if (pose) this.skeleton?.follow(pose);
    if (!picture.first) return;
    this.ambient.drawImage(image, 0, 0, 8, 8);
    this.step = this.past.stepOf(picture.frame);
    this.connection.send({ type: "received_until", stream: this.stream, frame: picture.frame });
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}
