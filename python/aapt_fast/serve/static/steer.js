// SPDX-License-Identifier: Apache-2.0
// The cards that steer the active lane: motions, body, camera.

import { CameraControl } from "./camera.js";
import { byId } from "./page.js";

const NUDGE = 0.03;  // of the picture

export class Steer {
  /** @param {import("./stage.js").Stage} stage */
  constructor(stage) {
    this.stage = stage;
    const { model, body } = stage;
    /** @type {HTMLButtonElement[]} */
    this.actions = model.actions.map((name, number) => this.#action(name, number));
    byId("motion-card").hidden = this.actions.length === 0;
    byId("body-card").hidden = !body?.handles.length;
    if (body) this.#body(body);
    /** @type {CameraControl | null} */
    this.camera = null;
    if (model.control.kind === "camera") {
      byId("camera-card").hidden = false;
      this.camera = new CameraControl(byId("camera-pad"), (speeds) => stage.active?.control("camera", speeds));
    }
    stage.onLane = (lane) => this.camera?.attach(lane.screen);
    stage.addEventListener("change", () => this.#refresh());
  }

  /** Play the motion at this place of the list, if there is one. @param {number} number */
  play(number) {
    const name = this.stage.model.actions[number];
    if (name === undefined || !this.stage.usable) return;
    this.stage.letGo();
    this.stage.active.play(name);
  }

  /** Turn one of the switches. @param {"show-skeleton" | "hold-pose"} id */
  toggle(id) {
    if (this.stage.body) byId(id).click();
  }

  #action(name, number) {
    const button = byId("actions").appendChild(document.createElement("button"));
    button.type = "button";
    button.append(name.replaceAll("_", " "));
    if (number < 9) button.append(Object.assign(document.createElement("kbd"), { textContent: String(number + 1) }));
    button.onclick = () => this.play(number);
    return button;
  }

  #body(body) {
    const joint = byId("joint");
    for (const { joint: name } of body.handles) joint.add(new Option(name.replace("_", " "), name));
    for (const button of document.querySelectorAll("[data-nudge]")) {
      const [dx, dy] = button.dataset.nudge.split(",").map((each) => NUDGE * Number(each));
      button.onclick = () => {
        if (!byId("hold-pose").checked) byId("hold-pose").click();
        this.stage.active?.skeleton.nudge(joint.value, dx, dy);
      };
    }
    byId("show-skeleton").onchange = (event) => this.#set("skeleton", event.target.checked);
    byId("hold-pose").onchange = (event) => this.#set("hold", event.target.checked);
  }

  #set(name, value) {
    this.stage.settings[name] = value;
    this.stage.applySettings();
  }

  #refresh() {
    const lane = this.stage.active;
    const playing = lane?.skeleton?.held ? null : lane?.action;
    this.actions.forEach((button, number) => {
      button.disabled = !this.stage.usable;
      button.setAttribute("aria-pressed", String(this.stage.model.actions[number] === playing));
    });
  }
}
