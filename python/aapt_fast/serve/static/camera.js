// SPDX-License-Identifier: Apache-2.0
// A camera to fly: keys, buttons, mouse and touch -> six speeds in -1..1.

/** Places in the control: sideways, up, forwards, pitch, yaw, roll. */
const AXES = 6;
const PAD = [
  { name: "Turn left", key: "Q", axis: 4, sign: -1 },
  { name: "Forwards", key: "W", axis: 2, sign: 1 },
  { name: "Turn right", key: "E", axis: 4, sign: 1 },
  { name: "Left", key: "A", axis: 0, sign: -1 },
  { name: "Backwards", key: "S", axis: 2, sign: -1 },
  { name: "Right", key: "D", axis: 0, sign: 1 },
  { name: "Up", key: "R", axis: 1, sign: 1 },
  { name: "Look up", key: "I", axis: 3, sign: 1 },
  { name: "Roll left", key: "U", axis: 5, sign: -1 },
  { name: "Down", key: "C", axis: 1, sign: -1 },
  { name: "Look down", key: "L", axis: 3, sign: -1 },
  { name: "Roll right", key: "O", axis: 5, sign: 1 },
];
const ARROWS = { ArrowUp: "W", ArrowDown: "S", ArrowLeft: "A", ArrowRight: "D" };
const FULL_SPEED_PX = 120;  // from where the pointer went down

export class CameraControl {
  /**
   * @param {HTMLElement} pad where the buttons go
   * @param {(speeds: number[]) => void} onSpeeds called when a speed changes
   */
  constructor(pad, onSpeeds) {
    this.onSpeeds = onSpeeds;
    /** Keys and buttons that are down. @type {Set<string>} */
    this.down = new Set();
    /** Pointers on the video: where they went down, and are now. @type {Map<number, number[]>} */
    this.pointers = new Map();
    this.last = new Array(AXES).fill(0);
    this.buttons = new Map(PAD.map((entry) => [entry.key, this.#button(pad, entry)]));
    window.addEventListener("blur", () => this.stop());
  }

  /** Take a key that goes down or up; returns true if the camera uses it. @param {KeyboardEvent} event */
  key(event, pressed) {
    const key = ARROWS[event.key] ?? event.key.toUpperCase();
    if (!this.buttons.has(key)) return false;
    this.#press(key, pressed);
    return true;
  }

  /** Let a drag in the video look around, and a drag with two fingers move. @param {HTMLElement} screen */
  attach(screen) {
    screen.toggleAttribute("data-camera", true);
    screen.addEventListener("pointerdown", (event) => {
      screen.setPointerCapture(event.pointerId);
      this.pointers.set(event.pointerId, [event.clientX, event.clientY, event.clientX, event.clientY]);
      screen.toggleAttribute("data-looking", true);
    });
    screen.addEventListener("pointermove", (event) => {
      const pointer = this.pointers.get(event.pointerId);
      if (!pointer) return;
      pointer.splice(2, 2, event.clientX, event.clientY);
      this.#changed();
    });
    const end = (event) => {
      if (!this.pointers.delete(event.pointerId)) return;
      screen.toggleAttribute("data-looking", this.pointers.size > 0);
      this.#changed();
    };
    screen.addEventListener("pointerup", end);
    screen.addEventListener("pointercancel", end);
  }

  /** Stand still, whatever is pressed. */
  stop() {
    this.pointers.clear();
    for (const key of [...this.down]) this.#press(key, false);
    this.#changed();
  }

  #button(pad, { name, key }) {
    const button = pad.appendChild(document.createElement("button"));
    button.type = "button";
    button.className = "ghost";
    button.append(name, Object.assign(document.createElement("kbd"), { textContent: key }));
    button.addEventListener("pointerdown", (event) => {
      button.setPointerCapture(event.pointerId);
      this.#press(key, true);
    });
    const up = () => this.#press(key, false);
    for (const event of ["pointerup", "pointercancel", "blur"]) button.addEventListener(event, up);
    const holds = (event, pressed) => {
      if (![" ", "Enter"].includes(event.key)) return;
      event.preventDefault();
      this.#press(key, pressed);
    };
    button.addEventListener("keydown", (event) => holds(event, true));
    button.addEventListener("keyup", (event) => holds(event, false));
    return button;
  }

  #press(key, pressed) {
    if (pressed) this.down.add(key);
    else this.down.delete(key);
    this.buttons.get(key).toggleAttribute("data-held", pressed);
    this.#changed();
  }

  #changed() {
    const speeds = this.#speeds();
    if (speeds.every((speed, axis) => speed === this.last[axis])) return;
    this.last = speeds;
    this.onSpeeds(speeds);
  }

  #speeds() {
    const speeds = new Array(AXES).fill(0);
    for (const { key, axis, sign } of PAD) if (this.down.has(key)) speeds[axis] += sign;
    const moves = this.pointers.size > 1;
    for (const [startX, startY, x, y] of this.pointers.values()) {
      const [right, up] = [(x - startX) / FULL_SPEED_PX, (startY - y) / FULL_SPEED_PX];
      speeds[moves ? 0 : 4] += right;
      speeds[moves ? 2 : 3] += up;
    }
    return speeds.map((speed) => Math.round(100 * Math.max(-1, Math.min(1, speed))) / 100);
  }
}
