// SPDX-License-Identifier: Apache-2.0
// The graphs of the last minute, and the rate of drawing.

import { Graph } from "./graph.js";
import { Series } from "./measures.js";
import { byId } from "./page.js";

const DRAW_MS = 500;

export class Live {
  /** @param {import("./connection.js").Connection} connection */
  constructor(connection) {
    this.connection = connection;
    this.controlToPhoton = new Series();
    this.step = new Series();
    this.encode = new Series();
    this.decode = new Series();
    this.network = new Series();
    const series = [
      ["Control to photon", this.controlToPhoton, "#8d80ff", "From your key or click to the first picture that obeys it"],
      ["Step", this.step, "#22c7e6", "The model's time for the next four pictures"],
      ["Network", this.network, "#3ddc97", "To the server and back"],
      ["Encode", this.encode, "#ffb454", "The server's time to compress a picture"],
      ["Decode", this.decode, "#ff7a90", "The browser's time to unpack a picture"],
    ];
    this.graphs = series.map((each) => new Graph(byId("graphs"), ...each));
    connection.addEventListener("stats", ({ detail }) => this.#take(detail));
    connection.addEventListener("pong", () => this.network.add(connection.roundTrip));
    this.last = { time: performance.now(), drawn: 0, lane: null };
  }

  /** Redraw from now on. @param {import("./stage.js").Stage} stage */
  start(stage) {
    clearInterval(this.timer);
    this.timer = setInterval(() => this.#redraw(stage), DRAW_MS);
  }

  #take({ step_ms, encode_ms }) {
    if (step_ms != null) this.step.add(step_ms);
    if (encode_ms != null) this.encode.add(encode_ms);
  }

  #redraw(stage) {
    const now = performance.now();
    stage.lanes.forEach((lane) => lane.refresh(now));
    if (document.hidden) return;
    this.graphs.forEach((graph) => graph.draw());
    const lane = stage.active;
    if (!lane || now - this.last.time < 2 * DRAW_MS) return;
    const { drawn, late } = lane.player.counts;
    const rate = (1000 * (drawn - this.last.drawn)) / (now - this.last.time);
    const words = `${rate.toFixed(0)} of ${stage.model.fps} pictures per second, ${late} late`;
    if (lane === this.last.lane) byId("rate").textContent = words;
    this.last = { time: now, drawn, lane };
  }
}
