// SPDX-License-Identifier: Apache-2.0
// Where the body is in every video frame: the server tells one pose per step, between them it is interpolated.

/** @typedef {import("./body.js").Vector} Vector */

/** The poses that the server has told of one stream. */
export class Poses {
  /** @param {number} kept steps */
  constructor(kept) {
    this.kept = kept;
    /** @type {{frame: number, pose: Vector[]}[]} */
    this.known = [];
  }

  /** Note the pose in a video frame; poses of later frames, from before a rewind, are forgotten. */
  add(frame, pose) {
    this.known = [...this.known.filter((each) => each.frame < frame), { frame, pose }].slice(-this.kept);
  }

  /** The pose in a video frame; null if none is known. @returns {Vector[] | null} */
  at(frame) {
    const after = this.known.find((each) => each.frame >= frame);
    const before = this.known.findLast((each) => each.frame < frame);
    if (!after || !before) return (after ?? before)?.pose ?? null;
    const share = (frame - before.frame) / (after.frame - before.frame);
    return after.pose.map((point, joint) =>
      point.map((value, axis) => before.pose[joint][axis] + share * (value - before.pose[joint][axis])));
  }

  /** Forget the poses from this frame on. */
  forgetAfter(frame) {
    this.known = this.known.filter((each) => each.frame < frame);
  }

  clear() {
    this.known = [];
  }
}
