// The sampler: DDIM as a rotation, step by step. The same equation as in models/samplers.py of this repository.

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
 *     z' = cos(d) z - sin(d) v,    d = the angle of the step; if it is the whole angle of z, this is x
 *
 * @param velocity async (z, logsnr) => v, all Float32Array
 */
export async function* ddim(velocity, schedule, z, steps) {
  for (let i = steps; i > 0; i--) {
    const begin = schedule.angle(i / steps);
    const end = i > 1 ? schedule.angle((i - 1) / steps) : 0;
    const v = await velocity(z, schedule.logsnr(i / steps));
    const x = rotate(z, v, begin);
    z = i > 1 ? rotate(z, v, begin - end) : x;
    yield { step: steps - i + 1, t: (i - 1) / steps, z, x };
  }
}

/** cos(angle) z - sin(angle) v. */
function rotate(z, v, angle) {
  const [cos, sin] = [Math.cos(angle), Math.sin(angle)];
  return z.map((value, k) => cos * value - sin * v[k]);
}
