// SPDX-License-Identifier: Apache-2.0
// Encoded pictures -> drawable ones, in order: JPEG by createImageBitmap, H.264 by WebCodecs.

import { H264_KEY, JPEG } from "./picture_header.js";

const H264 = { codec: "avc1.42E01F", optimizeForLatency: true };

/**
 * Codecs to offer to the server. H.264 spares the network, JPEG the processor: so on the server's own machine it is JPEG,
 * unless `wanted` is "h264". WebCodecs exists on localhost and over TLS only.
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

/** Decodes the pictures of one stream. */
export class Decoder {
  /**
   * @param {(image: ImageBitmap | VideoFrame, picture: import("./picture_header.js").Picture, ms: number) => void} onImage
   *   gets every picture in order, with the milliseconds that it took
   */
  constructor(onImage) {
    this.onImage = onImage;
    this.last = Promise.resolve();
    /** @type {VideoDecoder | null} */
    this.video = null;
    /** @type {Map<number, {picture: any, begun: number}>} */
    this.inVideo = new Map();
    this.number = 0;
    this.damaged = 0;
  }

  /** Decode one more. A damaged picture is left out and counted. */
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
    decoded.catch(() => {});  // reported below, in order
    this.last = this.last.then(async () => {
      try {
        const image = await decoded;
        this.onImage(image, picture, performance.now() - begun);
      } catch {
        this.damaged += 1;
      }
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
      error: () => (this.damaged += 1),  // closed by the browser; the next key frame configures another
    });
    this.video.configure(H264);
  }
}
