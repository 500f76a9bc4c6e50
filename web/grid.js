// Sixteen more samples of teacher and student, as two grids. The student samples first.

import { paint } from "./draw.js";
import { velocityOf } from "./models.js";
import { sample } from "./sampler.js";

const COUNT = 16;

/**
 * Fills `root` with a grid for each model, [name, model or undefined].
 *
 * @param noiseOf returns the function that draws the noise of a number
 * @param say shows a status
 */
export async function drawGrids(root, models, backend, { schedule, size, noiseOf, first, steps, label, name: className, guidance, signal }, say) {
  const noises = Array.from({ length: COUNT }, (_, k) => noiseOf(first + k));
  const noise = () => Float32Array.from(noises.flatMap((draw) => [...draw()]));
  const initial = noise();
  root.replaceChildren();
  const present = models.filter(([, model]) => model);
  const grids = present.map(([name, model]) => [name, model, addGrid(root, `${name}, noises ${first} to ${first + COUNT - 1}`)]);
  for (const [name, model, canvases] of grids.reverse()) {
    say(`${name}: loading …`);
    const { velocity } = await velocityOf(model, backend, { count: COUNT, label, guidance });
    for await (const { step, z } of sample(velocity, schedule, initial, noise, steps, model.sampler)) {
      if (signal.aborted) return;
      say(`${name}: step ${step} of ${steps} …`);
      canvases.forEach((canvas, k) => paint(canvas, z.subarray((k * z.length) / COUNT, ((k + 1) * z.length) / COUNT), size));
      await new Promise((resolve) => setTimeout(resolve)); // keeps the page responsive
    }
    canvases.forEach((canvas, k) => canvas.setAttribute("aria-label", `${name}, noise ${first + k}: ${className}`));
  }
  say("All are done.");
}

function addGrid(root, title) {
  const section = root.appendChild(document.createElement("section"));
  section.innerHTML = `<h2>${title}</h2><div class="sixteen"></div>`;
  return Array.from({ length: COUNT }, () => {
    const canvas = section.lastChild.appendChild(document.createElement("canvas"));
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", "not sampled yet");
    return canvas;
  });
}
