// The visitor's choices. They are part of the address, so a link shows the same samples.

const DEFAULTS = { data: 0, label: 3, noise: 17, steps: 4, matched: 0, guidance: 1 };
const LIMITS = { data: [0, 999999], label: [0, 999999], noise: [0, 999999], steps: [1, 1024], matched: [0, 1], guidance: [0, 100] };

/** The number in `text` if it is allowed for this setting, else `otherwise`. */
export function allowed(name, text, otherwise) {
  const [low, high] = LIMITS[name];
  const number = text === null || text === "" ? NaN : Number(text);
  const fits = number >= low && number <= high && (name === "guidance" || Number.isInteger(number));
  return fits ? number : otherwise;
}

/** The state that the fragment of an address describes, such as #label=3&noise=17&steps=8; defaults for the rest. */
export function readState(fragment) {
  const given = new URLSearchParams(fragment.replace(/^#/, ""));
  const state = Object.fromEntries(Object.entries(DEFAULTS).map(([name, value]) => [name, allowed(name, given.get(name), value)]));
  return { ...state, steps: 2 ** Math.round(Math.log2(state.steps)) };
}

/** The fragment that encodes a state. */
export const writeState = (state) => `#${new URLSearchParams(Object.entries(state).map(([name, value]) => [name, String(value)]))}`;
