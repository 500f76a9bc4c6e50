// The samplers, step by step: the same equations as in models/samplers.py of this repository.

/** atan(sigma / alpha): the angle of the noise at a log signal-to-noise ratio. */
export const angleOf = (logsnr) => Math.atan(Math.exp(-logsnr / 2));

/** The cosine schedule: the angle is linear in time, from t = 0, the image, to t = 1, noise. */
export function cosineSchedule({ logsnr_min, logsnr_max }) {
  const begin = angleOf(logsnr_max);
  const end = angleOf(logsnr_min);
  return {
    angle: (t) => begin + (end - begin) * t,
    logsnr: (t) => -2 * Math.log(Math.tan(begin + (end - begin) * t)),
  };
}

/**
 * Samples from the noise z in N steps; yields z and the predicted x after each step.
 *
 *     DDIM:       z' = cos(d) z - sin(d) v,    d = the angle of the step
 *     ancestral:  z' is drawn from q(z' | z, x), with fresh noise
 *
 * @param velocity async (z, logsnr) => v, all Float32Array
 * @param noise returns fresh noise like z
 * @param sampler "ddim" or "ancestral"
 */
export async function* sample(velocity, schedule, z, noise, steps, sampler) {
  const step = sampler === "ancestral" ? ancestral : ddim;
  for (let i = steps; i > 0; i--) {
    const begin = schedule.angle(i / steps);
    const end = i > 1 ? schedule.angle((i - 1) / steps) : 0;
    const v = await velocity(z, schedule.logsnr(i / steps));
    const x = rotate(z, v, begin);
    z = step(z, v, x, begin, end, noise); // x, if end is 0
    yield { step: steps - i + 1, t: (i - 1) / steps, z, x };
  }
}

const ddim = (z, v, x, begin, end) => rotate(z, v, begin - end);

/** A draw of q(z_s | z_t, x), with the smallest variance; the angles of t and s are `begin` and `end`. */
function ancestral(z, v, x, begin, end, noise) {
  const r = (Math.tan(end) / Math.tan(begin)) ** 2; // exp(logsnr_t - logsnr_s)
  const [ofZ, ofX] = [(r * Math.cos(end)) / Math.cos(begin), (1 - r) * Math.cos(end)];
  const [deviation, eps] = [Math.sqrt(1 - r) * Math.sin(end), noise()];
  return z.map((value, k) => ofZ * value + ofX * x[k] + deviation * eps[k]);
}

/** cos(angle) z - sin(angle) v. */
function rotate(z, v, angle) {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return z.map((value, k) => cos * value - sin * v[k]);
}
