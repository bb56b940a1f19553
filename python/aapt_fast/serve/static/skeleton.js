// SPDX-License-Identifier: Apache-2.0
// The skeleton over the video: follows the body, and lets joints be dragged by mouse and touch.

const SVG = "http://www.w3.org/2000/svg";
const SEND_MS = 40;  // between two poses on the way to the server

/** @typedef {import("./body.js").Vector} Vector */

export class Skeleton {
  /**
   * @param {SVGElement} svg
   * @param {HTMLElement} screen the box that the video fills
   * @param {import("./body.js").Body} body
   * @param {{pose: (points: Vector[]) => void, released: () => void}} on what to do with a dragged pose, and at its end
   */
  constructor(svg, screen, body, on) {
    this.svg = svg;
    this.screen = screen;
    this.body = body;
    this.on = on;
    /** The pose that the user holds; null while the skeleton follows the video. @type {Vector[] | null} */
    this.held = null;
    /** @type {Vector[] | null} */
    this.points = null;
    this.shown = true;
    this.sentAt = -Infinity;
    /** One path per side of the body, with its bones: it changes with every picture. */
    this.paths = ["centre", "left", "right"].map((side) => {
      const path = svg.appendChild(document.createElementNS(SVG, "path"));
      path.setAttribute("class", side);
      return { path, bones: body.bones.filter((bone) => sideOf(bone) === side) };
    });
    this.buttons = body.handles.map((rule) => this.#handle(rule));
    new ResizeObserver(() => this.#draw()).observe(screen);
    this.#draw();
  }

  /** Show where the body of the video is, unless the user holds a pose. @param {Vector[]} points */
  follow(points) {
    this.points = points;
    if (!this.held) this.#draw();
  }

  /** @param {boolean} shown */
  show(shown) {
    this.shown = shown;
    this.#draw();
  }

  /** Move a joint by fractions of the picture. */
  nudge(joint, dx, dy) {
    const points = this.held ?? this.points;
    if (!points) return;
    const [x, y] = points[this.body.index.get(joint)];
    this.#drag(joint, x + dx, y + dy);
    this.#send();
  }

  /** Let go of the pose: the skeleton follows the video again. */
  release() {
    clearTimeout(this.later);
    this.held = null;
    this.#draw();
  }

  #handle({ joint, side }) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = `handle ${side}`;
    button.tabIndex = -1;  // with a keyboard: the list of joints and its arrows
    button.dataset.joint = joint;
    button.setAttribute("aria-hidden", "true");  // for a mouse or fingers
    button.onpointerdown = (event) => {
      if (event.button !== 0) return;
      event.preventDefault();
      button.setPointerCapture(event.pointerId);
      button.toggleAttribute("data-held", true);
    };
    button.onpointermove = (event) => {
      if (!button.hasAttribute("data-held")) return;
      const box = this.screen.getBoundingClientRect();
      this.#drag(joint, (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
    };
    button.onpointerup = button.onpointercancel = () => {
      if (!button.hasAttribute("data-held")) return;
      button.removeAttribute("data-held");
      if (!this.held) return;
      this.#send();
      this.on.released();
    };
    this.screen.append(button);
    return button;
  }

  #drag(joint, x, y) {
    const from = this.held ?? this.points;
    if (!from) return;
    const inside = (value) => Math.max(0.01, Math.min(0.99, value));
    this.held = this.body.drag(from, joint, inside(x), inside(y));
    this.#draw();
    clearTimeout(this.later);
    const wait = this.sentAt + SEND_MS - performance.now();
    if (wait <= 0) this.#send();
    else this.later = setTimeout(() => this.#send(), wait);
  }

  #send() {
    clearTimeout(this.later);
    this.sentAt = performance.now();
    this.on.pose(this.held);
  }

  #draw() {
    const points = this.held ?? this.points;
    const visible = this.shown && points !== null;
    this.svg.toggleAttribute("hidden", !visible);
    this.buttons.forEach((button) => (button.hidden = !visible));
    if (!visible) return;
    const place = (joint) => `${points[joint][0].toFixed(4)} ${points[joint][1].toFixed(4)}`;
    for (const { path, bones } of this.paths) {
      path.setAttribute("d", bones.map(([from, to]) => `M${place(from)}L${place(to)}`).join(""));
    }
    const { clientWidth, clientHeight } = this.screen;
    for (const button of this.buttons) {
      const [x, y] = points[this.body.index.get(button.dataset.joint)];
      button.style.transform = `translate(${(x * clientWidth).toFixed(1)}px, ${(y * clientHeight).toFixed(1)}px)`;
    }
  }
}

/** @param {[number, number, string]} bone */
function sideOf([, , side]) {
  return side === "left" || side === "right" ? side : "centre";
}
