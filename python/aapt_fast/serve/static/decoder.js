// SPDX-License-Identifier: Apache-2.0
// Encoded pictures -> drawable ones, in order: JPEG by createImageBitmap, H.264 by WebCodecs.

import { H264_KEY, JPEG } from "./picture_header.js";

const H264 = { codec: "avc1.42E01F", optimizeForLatency: true };

/**
 * Codecs to offer to the server. H.264 spares the network, JPEG the processor: so on the server's own machine it is
 * JPEG, unless `wanted` is "h264". WebCodecs exists on localhost and over TLS only.
 * @param {string | null} wanted "jpeg" or "h264", to offer nothing else
 */
export async function codecs(wanted) {
  const near = ["localhost", "127.0.0.1", "[::1]"].includes(location.hostname);
  if (wanted === "jpeg" || (near && wanted !== "h264")) return ["jpeg"];
  try {
    const { supported } = await VideoDecoder.isConfigSupported(H264);
    return supported ? ["jpeg", "h264"] : ["jpeg"];
  } catch {
    return ["jpeg"];
  }
}

/** @typedef {import("./picture_header.js").Picture} Picture */

/** Decodes the pictures of one stream. A damaged one is left out. */
export class Decoder {
  /**
   * @param {(image: ImageBitmap | VideoFrame, picture: Picture, ms: number) => void} onImage gets all pictures, in
   *   order, with the milliseconds that each took
   */
  constructor(onImage) {
    this.onImage = onImage;
    this.last = Promise.resolve();
    /** @type {VideoDecoder | null} */
    this.video = null;
    /** @type {Map<number, {picture: any, begun: number}>} */
    this.inVideo = new Map();
    this.number = 0;
  }

  /** Decode one more. @param {Picture} picture */
  push(picture) {
    if (picture.codec === JPEG) this.#pushJpeg(picture);
    else this.#pushVideo(picture);
  }

  close() {
    if (this.video?.state === "configured") this.video.close();
  }

  #pushJpeg(picture) {
    const begun = performance.now();
    const decoded = createImageBitmap(new Blob([picture.bytes], { type: "image/jpeg" }));
    decoded.catch(() => {});  // looked at below, in order
    this.last = this.last.then(async () => {
      const image = await decoded.catch(() => null);
      if (image) this.onImage(image, picture, performance.now() - begun);
    });
  }

  #pushVideo(picture) {
    const key = picture.codec === H264_KEY;
    if (this.video?.state !== "configured") {
      if (!key) return;  // a stream is entered at a key frame
      this.#configure();
    }
    const timestamp = this.number++;
    this.inVideo.set(timestamp, { picture, begun: performance.now() });
    this.video.decode(new EncodedVideoChunk({ type: key ? "key" : "delta", timestamp, data: picture.bytes }));
  }

  #configure() {
    this.inVideo.clear();
    this.video = new VideoDecoder({
      output: (frame) => {
        const entry = this.inVideo.get(frame.timestamp);
        this.inVideo.delete(frame.timestamp);
        if (entry) this.onImage(frame, entry.picture, performance.now() - entry.begun);
        else frame.close();
      },
      error: () => {},  // the browser has closed it; the next key frame configures another
    });
    this.video.configure(H264);
  }
}
