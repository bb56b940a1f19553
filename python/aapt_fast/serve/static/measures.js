// SPDX-License-Identifier: Apache-2.0
// Times of the last minute: how long a control takes to become light, and where the time goes.

const KEPT_MS = 60_000;
const MOST = 240;

/** A series of samples in milliseconds. */
export class Series {
  constructor() {
    /** @type {{time: number, value: number}[]} */
    this.samples = [];
  }

  /** @param {number} value milliseconds */
  add(value, now = performance.now()) {
    this.samples.push({ time: now, value });
    while (this.samples.length > MOST || now - this.samples[0].time > KEPT_MS) this.samples.shift();
  }

  get values() {
    return this.samples.map((each) => each.value);
  }

  /** The value that `share` of the samples do not exceed; null without samples. @param {number} share */
  percentile(share) {
    const sorted = this.values.sort((a, b) => a - b);
    return sorted.length ? sorted[Math.max(0, Math.ceil(share * sorted.length) - 1)] : null;
  }
}

/** Measures the time from sending a control until the first picture that obeys it is drawn. */
export class ControlToPhoton {
  /** @param {Series} series */
  constructor(series) {
    this.series = series;
    /** @type {Map<number, number>} */
    this.sent = new Map();
  }

  send(id) {
    this.sent.set(id, performance.now());
  }

  /** Note that a picture which obeys control `id`, and so every one before it, is on the screen. */
  drawn(id, now) {
    const begun = this.sent.get(id);
    if (begun !== undefined) this.series.add(now - begun, now);
    for (const each of this.sent.keys()) if (each <= id) this.sent.delete(each);
  }

  clear() {
    this.sent.clear();
  }
}
