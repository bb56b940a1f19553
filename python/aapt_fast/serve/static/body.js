// SPDX-License-Identifier: Apache-2.0
// A body whose joints can be dragged: image points <-> joints in metres, and limbs that keep their lengths.

/** @typedef {[number, number, number]} Vector */
/** @typedef {{focal: number, height: number, distance: number, horizon: number}} Camera */

const MOST_LEAN = 0.8;  // radians from upright
const SLACK = 0.004;  // metres by which no limb is quite straight, so that it knows which way to bend

const minus = (a, b) => a.map((value, axis) => value - b[axis]);
const plus = (a, b) => a.map((value, axis) => value + b[axis]);
const times = (a, factor) => a.map((value) => factor * value);
const dot = (a, b) => a.reduce((sum, value, axis) => sum + value * b[axis], 0);
const length = (a) => Math.sqrt(dot(a, a));
const clamp = (value, low, high) => Math.max(low, Math.min(high, value));

/** What can be dragged, and how the rest of the body answers. */
const LIMBS = ["left", "right"].flatMap((side) => {
  const [shoulder, elbow, hand] = ["shoulder", "elbow", "hand"].map((name) => `${side}_${name}`);
  const [hip, knee, foot, toe] = ["hip", "knee", "foot", "toe"].map((name) => `${side}_${name}`);
  return [
    { joint: hand, side, middle: elbow, root: shoulder, bends: [0, -0.3, -1], carries: [] },
    { joint: foot, side, middle: knee, root: hip, bends: [0, 0, 1], carries: [toe] },
    { joint: elbow, side, root: shoulder, carries: [hand] },
    { joint: knee, side, root: hip, carries: [foot, toe] },
  ];
});
const TRUNK = [
  { joint: "head", side: "centre", root: "neck", carries: ["nose"] },
  { joint: "chest", side: "centre", root: "pelvis", leans: true },
  { joint: "pelvis", side: "centre", crouches: true },
];

/** The bodies of one model. Poses are lists of image points [x, y, depth], as the server takes them. */
export class Body {
  /**
   * @param {{names: string[], bones: [number, number, string][], camera: Camera | null}} control of `welcome.model`;
   *   without a camera nothing can be dragged
   */
  constructor({ names, bones, camera }) {
    this.names = names;
    this.bones = bones;
    this.camera = camera;
    this.index = new Map(names.map((name, index) => [name, index]));
    const known = (rule) => [rule.joint, rule.root ?? rule.joint].every((name) => this.index.has(name));
    /** Rules of the joints that can be dragged. */
    this.handles = camera ? [...LIMBS, ...TRUNK].filter(known) : [];
  }

  /**
   * The pose after dragging one joint to the image point (x, y).
   * @param {Vector[]} points
   * @param {string} joint
   * @returns {Vector[]}
   */
  drag(points, joint, x, y) {
    const rule = this.handles.find((each) => each.joint === joint);
    const joints = points.map((point) => this.#unproject(point));
    const target = this.#unproject([x, y, points[this.index.get(joint)][2]]);
    target[1] = Math.max(target[1], 0);  // the floor
    if (rule.crouches) this.#crouch(joints, target);
    else if (rule.leans) this.#lean(joints, target);
    else if (rule.middle) this.#reach(joints, rule, target);
    else this.#swing(joints, rule, target);
    return joints.map((each) => this.#project(each));
  }

  /** Move the end of a limb of two bones; the middle joint bends as it did. */
  #reach(joints, { joint, middle, root, bends, carries }, target) {
    const [end, mid, start] = [joint, middle, root].map((name) => this.index.get(name));
    const [upper, lower] = [length(minus(joints[mid], joints[start])), length(minus(joints[end], joints[mid]))];
    const wanted = minus(target, joints[start]);
    const distance = clamp(length(wanted), Math.abs(upper - lower) + SLACK, upper + lower - SLACK);
    const along = times(wanted, 1 / Math.max(length(wanted), 1e-6));
    const across = perpendicular(minus(joints[mid], joints[start]), along) ?? perpendicular(bends, along) ?? [0, 0, 1];
    const foot = (distance ** 2 + upper ** 2 - lower ** 2) / (2 * distance);
    const height = Math.sqrt(Math.max(0, upper ** 2 - foot ** 2));
    const before = joints[end];
    joints[mid] = plus(joints[start], plus(times(along, foot), times(across, height)));
    joints[end] = plus(joints[start], times(along, distance));
    this.#carry(joints, carries, minus(joints[end], before));
  }

  /** Turn one bone about its root. What is missing of its length points to or from the camera, as it did. */
  #swing(joints, { joint, root, carries }, target) {
    const [end, start] = [this.index.get(joint), this.index.get(root)];
    const bone = minus(joints[end], joints[start]);
    const flat = [target[0] - joints[start][0], target[1] - joints[start][1], 0];
    const [whole, seen] = [length(bone), length(flat)];
    const depth = Math.sqrt(Math.max(0, whole ** 2 - seen ** 2)) * (bone[2] < 0 ? -1 : 1);
    const moved = seen < whole ? [flat[0], flat[1], depth] : times(flat, whole / seen);
    joints[end] = plus(joints[start], moved);
    this.#carry(joints, carries, minus(moved, bone));
  }

  /** Turn everything above the hips about the pelvis, in the plane of the picture. */
  #lean(joints, target) {
    const pelvis = joints[this.index.get("pelvis")];
    const angle = (point) => Math.atan2(point[0] - pelvis[0], point[1] - pelvis[1]);
    const now = angle(joints[this.index.get("chest")]);
    const turn = clamp(angle(target), -MOST_LEAN, MOST_LEAN) - now;
    const [cos, sin] = [Math.cos(turn), Math.sin(turn)];
    for (const [index, name] of this.names.entries()) {
      if (/pelvis|hip|knee|foot|toe/.test(name)) continue;
      const [x, y, z] = minus(joints[index], pelvis);
      joints[index] = plus(pelvis, [x * cos + y * sin, y * cos - x * sin, z]);
    }
  }

  /** Move the trunk, as far as the legs reach; the feet stay where they are. */
  #crouch(joints, target) {
    const legs = this.handles.filter((rule) => rule.middle?.endsWith("knee"));
    const wanted = minus(target, joints[this.index.get("pelvis")]);
    const feet = legs.map((leg) => joints[this.index.get(leg.joint)]);
    const reaches = (share) => legs.every((leg, number) => {
      const [hip, knee, foot] = [leg.root, leg.middle, leg.joint].map((name) => joints[this.index.get(name)]);
      const whole = length(minus(knee, hip)) + length(minus(foot, knee)) - SLACK;
      return length(minus(feet[number], plus(hip, times(wanted, share)))) <= whole;
    });
    const share = [1, 0.8, 0.6, 0.4, 0.2].find(reaches) ?? 0;
    for (const index of joints.keys()) joints[index] = plus(joints[index], times(wanted, share));
    legs.forEach((leg, number) => this.#reach(joints, leg, feet[number]));
  }

  #carry(joints, names, by) {
    for (const index of names.map((name) => this.index.get(name))) {
      if (index !== undefined) joints[index] = plus(joints[index], by);
    }
  }

  /** The joint in metres, y up and z towards the camera. */
  #unproject([x, y, past]) {
    const { focal, height, distance, horizon } = this.camera;
    const depth = distance + past;
    return [((x - 0.5) * depth) / focal, height - ((y - horizon) * depth) / focal, -past];
  }

  #project([x, y, z]) {
    const { focal, height, distance, horizon } = this.camera;
    const depth = distance - z;
    return [0.5 + (focal * x) / depth, horizon - (focal * (y - height)) / depth, -z];
  }
}

/** The unit vector of what of `vector` is at right angles to the unit vector `along`; null if there is nothing. */
function perpendicular(vector, along) {
  const rest = minus(vector, times(along, dot(vector, along)));
  return length(rest) < 1e-3 ? null : times(rest, 1 / length(rest));
}
