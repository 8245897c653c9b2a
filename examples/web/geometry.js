// Crops of a picture, as ifan.json describes them. Matrices are [a, b, c, d, e, f]: x' = a x + b y + c, y' = d x + e y + f.

export function matrix({ cx, cy, side, angle = 0, flip = false }, size) {
  const m = flip ? -1 : 1;
  const c = (size / side) * Math.cos(angle);
  const s = (size / side) * Math.sin(angle);
  return [m * c, m * s, size / 2 - m * (c * cx + s * cy), -s, c, size / 2 + s * cx - c * cy];
}

export function inverse([a, b, c, d, e, f]) {
  const det = a * e - b * d;
  return [e / det, -b / det, (b * f - c * e) / det, -d / det, a / det, (c * d - a * f) / det];
}

export function at([a, b, c, d, e, f], x, y) {
  return [a * x + b * y + c, d * x + e * y + f];
}

// One value of a plane at a continuous place, bilinear, the border repeated. `step`: values between neighbours.
export function sample(plane, width, height, x, y, step = 1, offset = 0) {
  x = Math.min(Math.max(x - 0.5, 0), width - 1);
  y = Math.min(Math.max(y - 0.5, 0), height - 1);
  const x0 = Math.min(Math.floor(x), Math.max(width - 2, 0));
  const y0 = Math.min(Math.floor(y), Math.max(height - 2, 0));
  const right = width > 1 ? step : 0;
  const down = height > 1 ? step * width : 0;
  const i = (y0 * width + x0) * step + offset;
  const upper = plane[i] + (x - x0) * (plane[i + right] - plane[i]);
  const lower = plane[i + down] + (x - x0) * (plane[i + down + right] - plane[i + down]);
  return upper + (y - y0) * (lower - upper);
}

// The pixels of a crop of `picture` (ImageData), 3 planes of size x size. Where it shrinks, each is a mean of several.
export function cut(picture, crop, size) {
  const pixels = new Uint8Array(3 * size * size);
  const n = Math.min(8, Math.max(1, Math.ceil(crop.side / size)));
  const back = inverse(matrix(crop, size));
  for (let row = 0; row < size; row++) {
    for (let column = 0; column < size; column++) {
      const sum = [0, 0, 0];
      for (let i = 0; i < n * n; i++) {
        const [x, y] = at(back, column + ((i % n) + 0.5) / n, row + (Math.floor(i / n) + 0.5) / n);
        for (let k = 0; k < 3; k++) sum[k] += sample(picture.data, picture.width, picture.height, x, y, 4, k);
      }
      for (let k = 0; k < 3; k++) pixels[(k * size + row) * size + column] = Math.round(sum[k] / (n * n));
    }
  }
  return pixels;
}

export function cropOfPoints(points, factor, scale = 1) {
  const [left, right, , mouthLeft, mouthRight] = points;
  const eyes = [right[0] - left[0], right[1] - left[1]];
  const down = [0, 1].map((k) => (mouthLeft[k] + mouthRight[k] - left[k] - right[k]) / 2);
  const angle = Math.atan2(eyes[1] - down[0], eyes[0] + down[1]);
  const [c, s] = [Math.cos(angle), Math.sin(angle)];
  const upright = points.map(([x, y]) => [c * x + s * y, c * y - s * x]);
  const [low, high] = [Math.min, Math.max].map((f) => [0, 1].map((k) => f(...upright.map((p) => p[k]))));
  const [x, y] = [0, 1].map((k) => (low[k] + high[k]) / 2);
  const side = Math.max(high[0] - low[0], high[1] - low[1]) * factor * scale;
  return { cx: c * x - s * y, cy: s * x + c * y, side, angle, flip: false };
}
