// SPDX-License-Identifier: Apache-2.0
// One video on a canvas: a queue of decoded pictures, drawn by the playout clock.

import { PlayoutClock } from "./playout.js";

const MOST_WAITING = 16;  // pictures; more are waiting only after the page was hidden
const LARGEST_CANVAS = 1024;
const LATE = 1.5;  // a picture is late when the one before stays this many periods of the video

/** @typedef {{image: ImageBitmap | VideoFrame, picture: import("./picture_header.js").Picture}} Queued */

/** Draws the pictures of one stream, and counts what was smooth. */
export class Player {
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {{width: number, height: number, fps: number}} model
   * @param {(queued: Queued, now: number) => void} onDrawn called for every picture drawn; the image is closed after it
   */
  constructor(canvas, model, onDrawn) {
    this.canvas = canvas;
    this.model = model;
    this.onDrawn = onDrawn;
    this.clock = new PlayoutClock(model.fps);
    /** @type {Queued[]} */
    this.queue = [];
    /** While a picture of the past is shown, time stands still. */
    this.frozen = false;
    /** Nothing has been drawn yet. */
    this.blank = true;
    this.counts = { drawn: 0, late: 0, lateInARow: 0, worstInARow: 0 };
    this.lastDrawn = null;
    const scale = Math.max(1, Math.min(4, Math.floor(LARGEST_CANVAS / Math.max(model.width, model.height))));
    canvas.width = scale * model.width;
    canvas.height = scale * model.height;
    this.context = canvas.getContext("2d", { alpha: false });
    this.setCrisp(false);
  }

  /** Show pixels as squares, or smoothed. @param {boolean} crisp */
  setCrisp(crisp) {
    this.context.imageSmoothingEnabled = !crisp;
    this.context.imageSmoothingQuality = "high";
    this.canvas.toggleAttribute("data-crisp", crisp);
  }

  /** Queue a decoded picture. @param {ImageBitmap | VideoFrame} image */
  push(image, picture) {
    if (picture.discontinuity) this.clear();
    if (picture.first || this.queue.length === 0) this.clock.arrived(picture.frame, performance.now());
    this.queue.push({ image, picture });
    while (this.queue.length > MOST_WAITING) {
      this.queue.shift().image.close();
      this.clock.reset();
    }
  }

  /** Leave out what is waiting; the next picture is drawn when it comes. */
  clear() {
    this.queue.splice(0).forEach((each) => each.image.close());
    this.clock.reset();
    this.lastDrawn = null;
  }

  /** Draw what is due. Called once per frame of the display. @param {number} now milliseconds */
  tick(now) {
    if (this.frozen || this.queue.length === 0 || !this.clock.ready(now)) return;
    const queued = this.queue.shift();
    this.show(queued.image);
    this.clock.drawn(queued.picture.frame, now);
    this.#count(now);
    this.onDrawn(queued, now);
    queued.image.close();
  }

  /** Draw a picture that is not of the queue. @param {CanvasImageSource} image */
  show(image) {
    this.blank = false;
    this.context.drawImage(image, 0, 0, this.canvas.width, this.canvas.height);
  }

  /** Note that a wait that follows is nobody's fault: a pause, for example. */
  expectGap() {
    this.lastDrawn = null;
  }

  #count(now) {
    const { counts } = this;
    const late = this.lastDrawn !== null && now - this.lastDrawn > LATE * (1000 / this.model.fps);
    counts.drawn += 1;
    counts.late += late ? 1 : 0;
    counts.lateInARow = late ? counts.lateInARow + 1 : 0;
    counts.worstInARow = Math.max(counts.worstInARow, counts.lateInARow);
    this.lastDrawn = now;
  }
}
