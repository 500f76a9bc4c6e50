// One side of the page: a model that draws, step by step; what becomes of z, what it takes for x, and the way of some pixels.

import { drawPaths, paint } from "./draw.js";
import { velocityOf } from "./models.js";
import { ddim } from "./sampler.js";

const PIXELS = [0.3, 0.4, 0.5, 0.6, 0.7]; // on the diagonal, as shares of both sides of the picture
const FRAME = 33; // milliseconds between what is shown

export class Panel {
  /** @param root the section to fill; its headline is `title`, with the number of steps */
  constructor(root, title) {
    this.title = title;
    root.innerHTML = `
      <h2 id="${root.id}-title"></h2>
      <p class="counts"></p>
      <div class="pictures">
        <figure><canvas class="z" role="img"></canvas><figcaption>z: what the noise has become</figcaption></figure>
        <figure><canvas class="x" role="img"></canvas><figcaption>x: what the network thinks of</figcaption></figure>
      </div>
      <figure>
        <canvas class="paths" role="img" aria-label="The values of five pixels of z, from noise to picture"></canvas>
        <figcaption>Five pixels of z: noise at the left, the picture at the right, a point for each step</figcaption>
      </figure>`;
    [this.heading, this.counts] = [root.querySelector("h2"), root.querySelector(".counts")];
    [this.z, this.x, this.paths] = ["z", "x", "paths"].map((name) => root.querySelector(`canvas.${name}`));
  }

  /** Names what is to be drawn, and paints the noise that it begins with; `text` says what there is to say until then. */
  begin(steps, noise, size, text) {
    this.heading.textContent = `${this.title}, ${steps} step${steps === 1 ? "" : "s"}`;
    this.counts.textContent = text;
    paint(this.z, noise, size);
    paint(this.x, new Float32Array(size * size), size);
    drawPaths(this.paths, []);
    this.z.setAttribute("aria-label", `${this.title}: noise`);
    this.x.setAttribute("aria-label", `${this.title}: no thought yet`);
  }

  /**
   * Draws; shows each step as it appears, but not more in a second than an eye can follow.
   *
   * @param signal an AbortSignal: after it, nothing more is drawn
   * @returns the picture, Float32Array in [-1, 1]; or null where it was aborted
   */
  async draw(model, backend, { schedule, size, noise, steps, digit, guidance, signal }) {
    const counted = await velocityOf(model, backend, { count: 1, digit, guidance });
    const pixels = PIXELS.map((share) => Math.round(share * size) * (size + 1));
    const paths = pixels.map((k) => [{ t: 1, value: noise[k] }]);
    let [milliseconds, shown, begun, picture] = [0, 0, performance.now(), null];
    for await (const { step, t, z, x } of ddim(counted.velocity, schedule, noise, steps)) {
      milliseconds += performance.now() - begun;
      if (signal.aborted) return null;
      pixels.forEach((k, index) => paths[index].push({ t, value: z[k] }));
      picture = z;
      if (step === steps || performance.now() - shown > FRAME) {
        paint(this.z, z, size);
        paint(this.x, x, size);
        drawPaths(this.paths, paths);
        this.counts.textContent = countsOf(counted.evaluations, steps, milliseconds);
        await new Promise((resolve) => setTimeout(resolve)); // the page can be used meanwhile
        shown = performance.now();
      }
      begun = performance.now();
    }
    this.z.setAttribute("aria-label", `${this.title}: the digit ${digit} that it has drawn`);
    this.x.setAttribute("aria-label", `${this.title}: its last thought, the same digit`);
    return picture;
  }
}

function countsOf(evaluations, steps, milliseconds) {
  const done = evaluations < steps ? `step ${evaluations} of ${steps}` : `${evaluations} evaluation${evaluations === 1 ? "" : "s"} of the network`;
  return `${done}, ${milliseconds.toFixed(0)} ms`;
}
