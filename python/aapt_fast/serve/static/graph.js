// SPDX-License-Identifier: Apache-2.0
// A small curve of the last minute with its number, and the same in words.

/** One series on the page. */
export class Graph {
  /**
   * @param {HTMLElement} parent
   * @param {string} name
   * @param {import("./measures.js").Series} series
   * @param {string} colour a CSS colour
   * @param {string} meaning what is measured
   */
  constructor(parent, name, series, colour, meaning) {
    this.name = name;
    this.series = series;
    this.colour = colour;
    const box = parent.appendChild(document.createElement("div"));
    box.className = "graph";
    box.title = meaning;
    const label = box.appendChild(document.createElement("span"));
    label.className = "name";
    label.textContent = name;
    this.value = box.appendChild(document.createElement("span"));
    this.value.className = "value";
    this.canvas = box.appendChild(document.createElement("canvas"));
    this.canvas.setAttribute("role", "img");
    this.context = this.canvas.getContext("2d");
    this.draw();
  }

  /** Bring the picture, the number and the words up to date. */
  draw() {
    const [middle, high] = [this.series.percentile(0.5), this.series.percentile(0.95)];
    this.value.textContent = middle === null ? "–" : `${format(middle)} ms`;
    const numbers = `median ${format(middle)} ms, 95 of 100 at most ${format(high)} ms`;
    const words = middle === null ? "no value yet" : numbers;
    this.canvas.setAttribute("aria-label", `${this.name} in the last minute: ${words}`);
    this.canvas.title = words;
    this.#curve();
  }

  #curve() {
    const { canvas, context } = this;
    const density = window.devicePixelRatio;
    const [width, height] = [canvas.clientWidth * density, canvas.clientHeight * density];
    if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
    context.clearRect(0, 0, width, height);
    const values = this.series.values;
    if (values.length === 0) return;
    if (values.length === 1) values.push(values[0]);
    const top = 1.15 * Math.max(...values, 1);
    const points = values.map((value, index) => [
      (width * index) / (values.length - 1),
      height - 1.5 * density - (value / top) * (height - 3 * density),
    ]);
    context.beginPath();
    points.forEach(([x, y]) => context.lineTo(x, y));
    context.lineWidth = 1.6 * density;
    context.lineJoin = "round";
    context.strokeStyle = this.colour;
    context.stroke();
    context.lineTo(width, height);
    context.lineTo(0, height);
    context.globalAlpha = 0.16;
    context.fillStyle = this.colour;
    context.fill();
    context.globalAlpha = 1;
  }
}

/** @param {number | null} ms */
function format(ms) {
  if (ms === null) return "–";
  return ms < 10 ? ms.toFixed(1) : String(Math.round(ms));
}
