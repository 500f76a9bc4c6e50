// Draws the faces of data/faces/: 20,000 for training and 1,000 for tests, 16x16 pixels, in eight classes.
//
//     npm ci --prefix docs/make_faces && node docs/make_faces/make.js
//
// A face depends on its set and number alone, so the archives are the same bytes every time.

import { mkdirSync, writeFileSync } from "node:fs";
import { createAvatar } from "@dicebear/core";
import * as pixelArt from "@dicebear/pixel-art";
import { zipSync } from "fflate";
import sharp from "sharp";

const SETS = { train: 20000, test: 1000 };
const FOLDER = new URL("../../data/faces/", import.meta.url);
const BACKGROUNDS = ["b6e3f4", "c0aede", "ffd5dc", "ffdfbf", "c1e1c1"];
const HAIR = ["short", "long"];
const DATE = new Date(2026, 0, 1); // the same in every archive

function face(set, number) {
  const hair = HAIR[number % 2], glasses = (number >> 1) % 2, hat = (number >> 2) % 2;
  const svg = createAvatar(pixelArt, {
    seed: `${set} ${number}`,
    size: 16,
    backgroundColor: BACKGROUNDS,
    hair: pixelArt.schema.properties.hair.default.filter((name) => name.startsWith(hair)),
    glassesProbability: 100 * glasses,
    hatProbability: 100 * hat,
  }).toString();
  const name = `${hair}${glasses ? "_glasses" : ""}${hat ? "_hat" : ""}/${number}.png`;
  return sharp(Buffer.from(svg)).removeAlpha().png({ palette: true, effort: 10, compressionLevel: 9 })
    .toBuffer().then((png) => [name, png]);
}

mkdirSync(FOLDER, { recursive: true });
for (const [set, count] of Object.entries(SETS)) {
  const faces = await Promise.all(Array.from({ length: count }, (_, number) => face(set, number)));
  writeFileSync(new URL(`${set}.zip`, FOLDER), zipSync(Object.fromEntries(faces), { level: 9, mtime: DATE }));
}
