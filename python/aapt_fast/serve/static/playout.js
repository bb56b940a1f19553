// SPDX-License-Identifier: Apache-2.0
// When to draw which picture. The pictures of a step arrive together; they are drawn one after the other, evenly.

const WINDOW = 24;  // steps whose arrival is remembered
const MARGIN_MS = 6;  // by which a step is expected to be there before its first picture is due
const CATCH_UP = 0.05;  // share of its time by which a picture may be shorter on the screen, while the buffer shrinks
const STRETCH = 0.25;  // by which it may be longer, while the buffer grows
const TOO_LATE = 0.5;  // by which a picture may miss its due time without moving those after it
const SLOWEST = 4;  // pictures are at most this many times longer on the screen than at full rate
const RESTART_MS = 1500;  // without a step for so long, what was known of arrivals means nothing

/**
 * A clock with a small buffer that adapts itself. Every picture has a due time, one period after the last one's. A step
 * that comes late moves the rest of its pictures, so that at most one is late; afterwards the buffer shrinks slowly to
 * what the arrivals of the last seconds need. Where the server makes fewer pictures than it should, the period grows,
 * so that motion is slow, not jerky.
 */
export class PlayoutClock {
  /** @param {number} fps pictures per second of the video */
  constructor(fps) {
    this.normal = 1000 / fps;
    this.reset();
  }

  /** Forget everything: the next picture is due when it arrives. */
  reset() {
    this.period = this.normal;
    /** Time at which the next picture is due; null: at once. @type {number | null} */
    this.due = null;
    /** @type {{frame: number, time: number}[]} */
    this.arrivals = [];
  }

  /** Note that a step, whose first picture is `frame`, is there at `now` (milliseconds). */
  arrived(frame, now) {
    const last = this.arrivals.at(-1);
    if (last && (now - last.time > RESTART_MS || frame <= last.frame)) this.reset();
    this.arrivals.push({ frame, time: now });
    if (this.arrivals.length > WINDOW) this.arrivals.shift();
    this.period = this.#measuredPeriod();
  }

  /** Tell whether the next picture is due at `now`. */
  ready(now) {
    return this.due === null || now >= this.due;
  }

  /** Note that `frame` was drawn at `now`: the next one is due a period later, or a little more or less. */
  drawn(frame, now) {
    const began = this.due === null || now - this.due > TOO_LATE * this.period ? now : this.due;
    const plain = began + this.period;
    const behind = this.#neededDue(frame + 1) - plain;
    this.due = plain + Math.max(-CATCH_UP * this.period, Math.min(behind, STRETCH * this.period));
  }

  /** The due time of `frame` at which every step of the window would have been there in time. */
  #neededDue(frame) {
    const times = this.arrivals.map((each) => each.time + (frame - each.frame) * this.period);
    return Math.max(...times) + MARGIN_MS;
  }

  /** Milliseconds per picture at which the server makes them, never less than the video's own. */
  #measuredPeriod() {
    const [first, last] = [this.arrivals[0], this.arrivals.at(-1)];
    if (this.arrivals.length < 4) return this.period;
    const measured = (last.time - first.time) / (last.frame - first.frame);
    if (measured < 1.04 * this.normal) return this.normal;
    return Math.min(measured, SLOWEST * this.normal);
  }
}
