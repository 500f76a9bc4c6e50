// Images and trajectories, on canvases.

const COLOURS = ["#d1495b", "#00798c", "#b8860b", "#4f9d69", "#8d6a9f"];
const MOST_DOTS = 65; // more would hide the line
const HIGHEST = 3.2; // the largest value shown

/** Paints an image, Float32Array of 1 or 3 channels in [-1, 1]; CSS enlarges the canvas. */
export function paint(canvas, image, size) {
  canvas.width = canvas.height = size;
  const pixels = new ImageData(size, size);
  const plane = size * size;
  const channels = image.length > plane ? [0, plane, 2 * plane] : [0, 0, 0];
  const byteOf = (value) => Math.round(127.5 * (Math.min(Math.max(value, -1), 1) + 1));
  for (let k = 0; k < plane; k++) pixels.data.set([...channels.map((start) => byteOf(image[start + k])), 255], 4 * k);
  canvas.getContext("2d").putImageData(pixels, 0, 0);
}

/** The trajectories of some pixels: for each a line through its points {t, value}, from t = 1 (left) to 0 (right). */
export function drawPaths(canvas, paths) {
  const ratio = window.devicePixelRatio || 1;
  const { clientWidth: width, clientHeight: height } = canvas;
  [canvas.width, canvas.height] = [width * ratio, height * ratio];
  const context = canvas.getContext("2d");
  context.scale(ratio, ratio);
  const y = (value) => (1 - value / HIGHEST) * (height / 2);
  context.strokeStyle = getComputedStyle(canvas).getPropertyValue("--grid");
  for (const level of [-1, 0, 1]) drawLine(context, [[0, y(level)], [width, y(level)]], 1);
  paths.forEach((path, k) => {
    context.strokeStyle = context.fillStyle = COLOURS[k % COLOURS.length];
    const points = path.map(({ t, value }) => [(1 - t) * (width - 6) + 3, y(value)]);
    drawLine(context, points, 1.5);
    if (points.length <= MOST_DOTS) for (const [left, top] of points) drawDot(context, left, top);
  });
}

function drawLine(context, points, width) {
  context.lineWidth = width;
  context.beginPath();
  for (const [left, top] of points) context.lineTo(left, top);
  context.stroke();
}

function drawDot(context, left, top) {
  context.beginPath();
  context.arc(left, top, 2, 0, 2 * Math.PI);
  context.fill();
}
