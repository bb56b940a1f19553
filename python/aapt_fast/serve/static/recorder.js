// SPDX-License-Identifier: Apache-2.0
// What is on a canvas -> a video file: MP4 where the browser writes it, else WebM.

import { save, timestamp } from "./files.js";

const FORMATS = [
  ["video/mp4;codecs=avc1.42E01F", "mp4"],
  ["video/mp4;codecs=vp09.00.10.08", "mp4"],
  ["video/mp4", "mp4"],
  ["video/webm;codecs=vp9", "webm"],
  ["video/webm", "webm"],
];

/** Records a canvas between `start` and `stop`. */
export class Recorder {
  constructor() {
    /** @type {MediaRecorder | null} */
    this.media = null;
    this.begun = 0;
  }

  /** The first format that this browser writes, as [MIME type, name's ending]; undefined for none. */
  static format() {
    return globalThis.MediaRecorder && FORMATS.find(([type]) => MediaRecorder.isTypeSupported(type));
  }

  get running() {
    return this.media !== null;
  }

  get seconds() {
    return (performance.now() - this.begun) / 1000;
  }

  /** @param {HTMLCanvasElement} canvas @param {number} fps */
  start(canvas, fps) {
    const [mimeType] = Recorder.format();
    this.media = new MediaRecorder(canvas.captureStream(fps), { mimeType, videoBitsPerSecond: 4_000_000 });
    /** @type {Blob[]} */
    this.parts = [];
    this.media.ondataavailable = (event) => this.parts.push(event.data);
    this.media.start(1000);
    this.begun = performance.now();
  }

  /** End, and hand the file to the browser's downloads. @returns {Promise<{name: string, blob: Blob}>} */
  async stop() {
    const media = this.media;
    this.media = null;
    await new Promise((resolve) => {
      media.onstop = resolve;
      media.stop();
    });
    media.stream.getTracks().forEach((track) => track.stop());
    const [mimeType, ending] = Recorder.format();
    const blob = new Blob(this.parts, { type: mimeType.split(";")[0] });
    const name = `aapt-fast-${timestamp()}.${ending}`;
    save(blob, name);
    return { name, blob };
  }
}
