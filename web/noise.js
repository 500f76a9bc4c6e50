// The noise of sample.py: PyTorch's CPU generator (a Mersenne Twister) and its normal numbers.

/** The Mersenne Twister MT19937 (Matsumoto & Nishimura 1998): returns a function that draws 32 bits. */
function mersenneTwister(seed) {
  const state = new Uint32Array(624);
  state[0] = seed;
  for (let k = 1; k < 624; k++) {
    state[k] = Math.imul(1812433253, state[k - 1] ^ (state[k - 1] >>> 30)) + k;
  }
  let next = 624;
  return () => {
    if (next === 624) {
      for (let k = 0; k < 624; k++) {
        const y = (state[k] & 0x80000000) | (state[(k + 1) % 624] & 0x7fffffff);
        state[k] = state[(k + 397) % 624] ^ (y >>> 1) ^ (y & 1 ? 0x9908b0df : 0);
      }
      next = 0;
    }
    let y = state[next++];
    y ^= y >>> 11;
    y ^= (y << 7) & 0x9d2c5680;
    y ^= (y << 15) & 0xefc60000;
    return (y ^ (y >>> 18)) >>> 0;
  };
}

/**
 * Returns a function that draws standard normal numbers, like torch.randn for 16 or more with one generator: of each 16
 * uniform numbers of 24 bits, the first eight give radii and the last eight angles (Box & Muller 1958).
 *
 * @param size how many, a multiple of 16
 */
export function normalNoise(seed, size) {
  const draw = mersenneTwister(seed >>> 0);
  return () => drawNormal(draw, size);
}

function drawNormal(draw, size) {
  const noise = new Float32Array(size);
  const uniform = Float64Array.from({ length: size }, () => (draw() & 0xffffff) / 2 ** 24);
  for (let block = 0; block < size; block += 16) {
    for (let k = block; k < block + 8; k++) {
      const radius = Math.sqrt(-2 * Math.log(1 - uniform[k]));
      const angle = 2 * Math.PI * uniform[k + 8];
      noise[k] = radius * Math.cos(angle);
      noise[k + 8] = radius * Math.sin(angle);
    }
  }
  return noise;
}
