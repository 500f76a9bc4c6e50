// One side of the page: a model that samples step by step, with z, its predicted x, and the trajectories of five pixels.

import { drawPaths, paint } from "./draw.js";
import { velocityOf } from "./models.js";
import { sample } from "./sampler.js";

const PIXELS = [0.3, 0.4, 0.5, 0.6, 0.7]; // on the diagonal, as fractions of the image's sides
const FRAME = 33; // milliseconds between repaints

export class Panel {
  /** @param root the section to fill; its headline is `title`, with the number of steps */
  constructor(root, title) {
    this.title = title;
    root.innerHTML = `
      <h2 id="${root.id}-title"></h2>
      <p class="counts"></p>
      <div class="pictures">
        <figure><canvas class="z" role="img"></canvas><figcaption>current sample z</figcaption></figure>
        <figure><canvas class="x" role="img"></canvas><figcaption>predicted image x</figcaption></figure>
      </div>
      <figure>
        <canvas class="paths" role="img" aria-label="Trajectories of five pixels of z, from noise to image"></canvas>
        <figcaption>Trajectories of five pixels of z, from noise (left) to image (right), one dot a step</figcaption>
      </figure>`;
    [this.heading, this.counts] = [root.querySelector("h2"), root.querySelector(".counts")];
    [this.z, this.x, this.paths] = ["z", "x", "paths"].map((name) => root.querySelector(`canvas.${name}`));
  }

  /** Shows the title, the initial noise z, and `text` in place of the counts. */
  begin(steps, z, size, text) {
    this.heading.textContent = `${this.title}, ${steps} step${steps === 1 ? "" : "s"}`;
    this.counts.textContent = text;
    paint(this.z, z, size);
    paint(this.x, new Float32Array(size * size), size);
    drawPaths(this.paths, []);
    this.z.setAttribute("aria-label", `${this.title}: noise`);
    this.x.setAttribute("aria-label", `${this.title}: no prediction yet`);
  }

  /**
   * Samples; shows each step, but at most 30 a second.
   *
   * @param signal an AbortSignal that ends the sampling
   * @returns the image, Float32Array in [-1, 1], or null if aborted
   */
  async draw(model, backend, { schedule, size, z: initial, noise, steps, label, name, guidance, signal }) {
    const counted = await velocityOf(model, backend, { count: 1, label, guidance });
    const pixels = PIXELS.map((share) => Math.round(share * size) * (size + 1));
    const paths = pixels.map((k) => [{ t: 1, value: initial[k] }]);
    let [milliseconds, shown, begun, image] = [0, 0, performance.now(), null];
    for await (const { step, t, z, x } of sample(counted.velocity, schedule, initial, noise, steps, model.sampler)) {
      milliseconds += performance.now() - begun;
      if (signal.aborted) return null;
      pixels.forEach((k, index) => paths[index].push({ t, value: z[k] }));
      image = z;
      if (step === steps || performance.now() - shown > FRAME) {
        paint(this.z, z, size);
        paint(this.x, x, size);
        drawPaths(this.paths, paths);
        this.counts.textContent = countsOf(step, steps, counted.evaluations, milliseconds);
        await new Promise((resolve) => setTimeout(resolve)); // keeps the page responsive
        shown = performance.now();
      }
      begun = performance.now();
    }
    this.z.setAttribute("aria-label", `${this.title}: sample of class ${name}`);
    this.x.setAttribute("aria-label", `${this.title}: its last predicted image`);
    return image;
  }
}

function countsOf(step, steps, evaluations, milliseconds) {
  const done = step < steps ? `step ${step} of ${steps}` : `${evaluations} network evaluation${evaluations === 1 ? "" : "s"}`;
  return `${done}, ${milliseconds.toFixed(0)} ms`;
}
