// SPDX-License-Identifier: Apache-2.0
// Keys for everything, and the list of them.

import { attempt, byId } from "./page.js";

const TYPING = "input:not([type='checkbox'], [type='radio'], [type='file'], [type='range']), select, textarea";
const PRESSING = "button, a, summary, input, select";

export class Shortcuts {
  /**
   * @param {import("./stage.js").Stage} stage
   * @param {import("./steer.js").Steer} steer
   * @param {import("./transport.js").Transport} transport
   */
  constructor(stage, steer, transport) {
    this.stage = stage;
    this.steer = steer;
    this.transport = transport;
    /** Key -> [words, what it does]. */
    this.keys = new Map([
      [" ", ["Pause or resume", () => transport.togglePause()]],
      [".", ["Pause, then single steps", () => transport.singleStep()]],
      ["0", ["Reset to the first picture", () => transport.reset()]],
      ["[", ["Look one step back", () => this.#look(-1)]],
      ["]", ["Look one step forwards", () => this.#look(1)]],
      ["b", ["Go back to the step looked at", () => transport.goBack()]],
      ["t", ["Try another way", () => transport.tryAnotherWay()]],
      ["x", ["Steer the other branch", () => this.#other()]],
      ["k", ["Keep the branch you steer", () => stage.lanes.length > 1 && stage.keep(stage.active)]],
      ["j", ["Show or hide the skeleton", () => steer.toggle("show-skeleton")]],
      ["h", ["Hold the pose", () => steer.toggle("hold-pose")]],
      ["v", ["Record, or stop recording", () => transport.toggleRecord()]],
      ["f", ["Full screen", () => transport.toggleFullscreen()]],
      ["?", ["This help", () => byId("help").showModal()]],
    ]);
    byId("open-help").onclick = () => byId("help").showModal();
    document.addEventListener("keydown", (event) => this.#down(event));
    document.addEventListener("keyup", (event) => steer.camera?.key(event, false));
    this.#list();
  }

  #down(event) {
    if (event.key === "Escape" && !document.querySelector("dialog[open]")) this.#escape();
    const target = /** @type {Element} */ (event.target);
    if (event.ctrlKey || event.metaKey || event.altKey || !byId("use-shortcuts").checked) return;
    if (document.querySelector("dialog[open]") || target.matches?.(TYPING) || !this.stage.active) return;
    const presses = [" ", "Enter"].includes(event.key) && target.matches?.(PRESSING);
    const moves = event.key.startsWith("Arrow") && target.matches?.("input");
    if (presses || moves) return;
    if (this.steer.camera?.key(event, true)) {
      event.preventDefault();
      return;
    }
    if (event.repeat && !"[]".includes(event.key)) return;
    if (/^[1-9]$/.test(event.key)) this.steer.play(Number(event.key) - 1);
    const known = this.keys.get(event.key.toLowerCase());
    if (!known) return;
    event.preventDefault();
    attempt(known[1])();
  }

  /** Back out of what is in progress: the past, then a held pose. */
  #escape() {
    if (this.transport.looking) attempt(() => this.transport.leavePast())();
    else this.stage.active?.releasePose();
    this.steer.camera?.stop();
  }

  #look(by) {
    const lane = this.stage.active;
    const step = (this.transport.looking?.step ?? lane.step) + by;
    if (step >= lane.oldest && step <= lane.step) return this.transport.look(step);
  }

  #other() {
    const { lanes, active } = this.stage;
    const other = lanes.find((lane) => lane !== active);
    if (other) this.stage.activate(other);
  }

  #list() {
    const names = { " ": "Space" };
    const motions = Math.min(9, this.stage.model.actions.length);
    const rows = motions ? [[`1 … ${motions}`, "Motions"]] : [];
    for (const [key, [words]] of this.keys) rows.push([names[key] ?? key.toUpperCase(), words]);
    if (this.steer.camera) rows.push(["W A S D", "Move the camera, or arrow keys"]);
    rows.push(["Esc", "Back to the present, let go of the pose"]);
    byId("shortcuts").replaceChildren(...rows.flatMap(([key, words]) => {
      const [term, meaning] = [document.createElement("dt"), document.createElement("dd")];
      term.append(Object.assign(document.createElement("kbd"), { textContent: key }));
      meaning.textContent = words;
      return [term, meaning];
    }));
  }
}
