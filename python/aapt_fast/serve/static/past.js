// SPDX-License-Identifier: Apache-2.0
// Pictures of the steps of a stream that can be rewound to: for the film strip, and to look at before going back.

const LARGEST = 256;  // pixels of the longer side that are kept

/** The last picture of every step inside the history. */
export class Past {
  /** @param {{width: number, height: number, frames_per_step: number, history: number}} model */
  constructor(model) {
    this.model = model;
    this.scale = Math.min(1, LARGEST / Math.max(model.width, model.height));
    /** @type {Map<number, HTMLCanvasElement>} */
    this.pictures = new Map();
  }

  /** The step that made a video frame. @param {number} frame */
  stepOf(frame) {
    return Math.floor(frame / this.model.frames_per_step) + 1;
  }

  /** Keep the picture if it is the last of its step; steps before the history and after this one are forgotten. */
  keep(frame, image) {
    const step = this.stepOf(frame);
    for (const known of this.pictures.keys()) {
      if (known > step || known < step - this.model.history) this.pictures.delete(known);
    }
    if ((frame + 1) % this.model.frames_per_step) return;
    const canvas = document.createElement("canvas");
    canvas.width = Math.round(this.scale * this.model.width);
    canvas.height = Math.round(this.scale * this.model.height);
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    this.pictures.set(step, canvas);
  }

  /** The picture at `step`, or the nearest one that is known; null if there is none. @param {number} step */
  at(step) {
    let best = null;
    for (const known of this.pictures.keys()) {
      if (best === null || Math.abs(known - step) < Math.abs(best - step)) best = known;
    }
    return best === null ? null : this.pictures.get(best);
  }

  /** A copy for a branch. @param {number} step the last one of it */
  upTo(step) {
    const copy = new Past(this.model);
    for (const [known, canvas] of this.pictures) if (known <= step) copy.pictures.set(known, canvas);
    return copy;
  }

  clear() {
    this.pictures.clear();
  }
}
