// The graphs that `ifan export` writes, run by ONNX Runtime Web: a picture in, faces out.
import * as ort from "./node_modules/onnxruntime-web/dist/ort.wasm.min.mjs";
import { at, cropOfPoints, cut, inverse, matrix, sample } from "./geometry.js";

ort.env.wasm.wasmPaths = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url).href;

export class Analyzer {
  static async load(folder) {
    const made = new Analyzer();
    made.about = await (await fetch(`${folder}/ifan.json`)).json();
    for (const name of ["first", "later", "detector"]) {
      made[name] = await ort.InferenceSession.create(`${folder}/${made.about[name].file}`);
    }
    made.size = made.about.images.shape[2];
    made.side = made.about.parsing_side;
    return made;
  }

  // The faces of `picture` (ImageData): { box, crop, points, parsing, classes }; `maxSide` bounds the detector's work.
  async analyze(picture, iterations = this.about.iterations, maxSide = this.about.detector.max_side) {
    const wider = this.about.refinement && iterations > 1 ? this.about.refinement.wider : 1;
    const faces = [];
    for (const { box, points } of await this.detect(picture, maxSide)) {
      const crop = cropOfPoints(points, this.about.crop.points.factor, wider);
      const found = await this.iterate(picture, crop, iterations);
      faces.push({ box, crop, ...this.named(found, crop), ...(await this.surrounded(picture, crop, found, iterations)) });
    }
    return faces;
  }

  async detect(picture, maxSide) {
    const { stride, multiple, outputs, min_score: least, max_overlap: overlap } = this.about.detector;
    const scale = Math.min(1, maxSide / Math.max(picture.width, picture.height));
    const width = Math.max(1, Math.round(picture.width * scale));
    const height = Math.max(1, Math.round(picture.height * scale));
    const [w, h] = [width, height].map((n) => Math.ceil(n / multiple) * multiple);
    const canvas = new Float32Array(3 * w * h);
    const small = scale < 1 ? resized(picture, width, height) : picture;
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        for (let k = 0; k < 3; k++) canvas[(k * h + y) * w + x] = small.data[(y * width + x) * 4 + k];
      }
    }
    const feeds = { [this.detector.inputNames[0]]: new ort.Tensor("float32", canvas, [1, 3, h, w]) };
    const found = await this.detector.run(feeds);
    const [heat, size, offset, points] = ["heat", "size", "offset", "points"].map((name) => found[outputs[name]].data);
    const [columns, cells] = [w / stride, (w * h) / stride ** 2];
    const faces = [];
    for (let i = 0; i < cells; i++) {
      if (heat[i] <= least) continue;
      const extent = [0, 1].map((k) => Math.exp(size[k * cells + i]) * stride);
      const corner = [Math.floor(i / columns), i % columns].map((cell, k) =>
        Math.max(0, (cell + 0.5 + offset[k * cells + i]) * stride - extent[k] / 2));
      const [y, x] = corner.map((v) => v / scale);
      const five = [0, 1, 2, 3, 4].map((p) => [1, 0].map((k) =>
        (corner[k] + points[(2 * p + k) * cells + i] * extent[k]) / scale));
      faces.push({ score: heat[i], box: [x, y, x + extent[1] / scale, y + extent[0] / scale], points: five });
    }
    faces.sort((a, b) => b.score - a.score);
    return faces.filter((face, i) => faces.slice(0, i).every((other) => shared(face.box, other.box) <= overlap));
  }

  async iterate(picture, crop, iterations) {
    const pixels = cut(picture, crop, this.size);
    let found = await this.run(this.first, pixels);
    if (!this.about.refinement) {
      for (let i = 1; i < iterations; i++) found = await this.run(this.later, pixels, found);
      return found;
    }
    const mean = new Mean(this, found);
    for (let i = 1; i < iterations; i++) {
      const closer = this.closer(found, i, iterations);
      const seen = await this.run(this.later, cut(picture, absolute(closer, crop), this.size), this.moved(found, closer));
      found = mean.add(seen, closer);
    }
    return found;
  }

  // Regions of the first crop, and around it those of a pass at a wider one: { parsing, seen }, where hair goes on there.
  async surrounded(picture, crop, found, iterations) {
    const { around, feather } = this.about.refinement ?? {};
    const task = this.about.tasks.find(({ kind }) => kind === "parsing");
    const hair = task?.classes.indexOf(around?.class) ?? -1;
    if (iterations < 2 || hair < 0) return { seen: crop };
    const near = probabilities(found[task.output], task);
    const own = Math.sqrt(near.length / task.classes.length);
    const cells = Array.from({ length: own }, (_, i) => [i, (own - 1) * own + i, i * own, i * own + own - 1]).flat();
    const largest = (i) => task.classes.every((_, k) => near[k * own ** 2 + i] <= near[hair * own ** 2 + i]);
    if (cells.filter(largest).length <= around.touching * cells.length) return { seen: crop };
    const wider = { cx: 0, cy: 0, side: around.side, angle: 0, flip: false };
    const seen = absolute(wider, crop);
    const outer = probabilities((await this.run(this.later, cut(picture, seen, this.size), this.moved(found, wider)))[task.output], task);
    const side = Math.max(2 * this.side, Math.round(own * around.side));
    const planes = drawn(outer, this.side, [this.side / side, 0, 0, 0, this.side / side, 0], side);
    for (let i = 0; i < side ** 2; i++) {
      const [u, v] = [i % side, Math.floor(i / side)].map((n) => ((n + 0.5) / side - 0.5) * around.side + 0.5);
      const share = clip(Math.min(u, v, 1 - u, 1 - v) / feather, 0, 1);
      if (!share) continue;
      for (let k = 0; k < task.classes.length; k++) {
        const inner = sample(near.subarray(k * own ** 2), own, own, u * own, v * own);
        planes[k * side ** 2 + i] += share * (inner - planes[k * side ** 2 + i]);
      }
    }
    return { parsing: { planes, side }, seen };
  }

  async run(graph, pixels, begun = {}) {
    const feeds = { images: new ort.Tensor("uint8", pixels, [1, 3, this.size, this.size]) };
    for (const task of this.about.tasks) {
      const value = begun[task.output];
      if (value) feeds[`begun_${task.output}`] = new ort.Tensor("float32", value, this.shape(task));
    }
    const found = await graph.run(feeds);
    return Object.fromEntries(this.about.tasks.map(({ output }) => [output, found[output].data]));
  }

  shape({ kind, classes }) {
    if (kind === "parsing") return [1, classes.length, this.side, this.side];
    return kind === "landmarks" ? [1, 2, classes.length] : [1, classes.length];
  }

  // The crop of a later iteration, in sides of the first one from its centre.
  closer(found, iteration, iterations) {
    const { sides: [low, high], reach, nearest, farthest } = this.about.refinement;
    const task = this.about.tasks.find(({ kind }) => kind === "landmarks");
    const { names, factor } = this.about.crop.points;
    const points = names.map((name) => place(found[task.output], task.classes.indexOf(name)));
    const usual = cropOfPoints(points, factor);
    const share = iterations > 2 ? low + ((high - low) * (iteration - 1)) / (iterations - 2) : (low + high) / 2;
    const [cx, cy] = [usual.cx, usual.cy].map((v) => clip(v, -reach, reach));
    return { cx, cy, side: clip(usual.side * share, nearest, farthest), angle: usual.angle, flip: iteration % 2 === 1 };
  }

  // What was found in the first crop, as a pass at another one begins with it.
  moved(found, crop) {
    const begun = {};
    for (const task of this.about.tasks) {
      const value = mirrored(found[task.output], task, crop.flip);
      if (task.kind === "parsing") {
        const own = Math.sqrt(value.length / task.classes.length);
        const back = inverse(matrix(crop, this.side));
        const grid = [back[0], back[1], back[2] + 0.5, back[3], back[4], back[5] + 0.5].map((v) => v * own);
        const seen = drawn(probabilities(value, task), own, grid, this.side);
        begun[task.output] = seen.map((p) => Math.log(Math.max(p, 1e-38)));
      } else if (task.kind === "landmarks") {
        begun[task.output] = mapped(value, (x, y) => at(matrix(crop, 1), x, y).map((v) => v - 0.5));
      } else {
        begun[task.output] = value;
      }
    }
    return begun;
  }

  // Outputs in the terms of the picture.
  named(found, crop) {
    const face = { points: {}, classes: {}, parsing: null };
    for (const task of this.about.tasks) {
      const value = found[task.output];
      if (task.kind === "parsing") {
        face.parsing = { planes: probabilities(value, task), side: Math.sqrt(value.length / task.classes.length) };
      } else if (task.kind === "landmarks") {
        const back = inverse(matrix(crop, 1));
        task.classes.forEach((name, i) => {
          face.points[name] = at(back, ...place(value, i).map((v) => v + 0.5));
        });
      } else {
        const p = softmax(value.map((logit) => logit / task.temperature), 1);
        face.classes[task.name] = Object.fromEntries(task.classes.map((name, i) => [name, p[i]]));
      }
    }
    return face;
  }
}

// Mean over the iterations, in terms of the first crop.
class Mean {
  constructor(analyzer, first) {
    this.analyzer = analyzer;
    this.count = 0;
    this.sums = {};
    this.fine = 2 * analyzer.side;
    this.weight = new Float32Array(this.fine ** 2).fill(analyzer.about.refinement.first_weight);
    const half = [0.5, 0, 0, 0, 0.5, 0];
    for (const task of analyzer.about.tasks) {
      if (task.kind !== "parsing") continue;
      const whole = drawn(probabilities(first[task.output], task), analyzer.side, half, this.fine);
      this.sums[task.output] = whole.map((p) => p * analyzer.about.refinement.first_weight);
    }
  }

  add(seen, crop) {
    this.count++;
    const found = {};
    for (const task of this.analyzer.about.tasks) {
      let value = mirrored(seen[task.output], task, crop.flip);
      if (task.kind === "parsing") {
        found[task.output] = this.parsing(probabilities(value, task), task, crop);
        continue;
      }
      if (task.kind === "landmarks") {
        const back = inverse(matrix(crop, 1));
        value = mapped(value, (x, y) => at(back, x + 0.5, y + 0.5));
      }
      const sums = (this.sums[task.output] ??= new Float32Array(value.length));
      found[task.output] = sums.map((_, i) => (sums[i] += value[i]) / this.count);
    }
    return found;
  }

  parsing(planes, task, crop) {
    const { side, about } = this.analyzer;
    const [sums, n, to] = [this.sums[task.output], this.fine ** 2, matrix(crop, side)];
    for (let i = 0; i < n; i++) {
      const u = ((i % this.fine) + 0.5) / this.fine - 0.5;
      const v = (Math.floor(i / this.fine) + 0.5) / this.fine - 0.5;
      const [x, y] = at(to, u, v);
      const share = clip(Math.min(x, y, side - x, side - y) / (side * about.refinement.feather), 0, 1);
      if (!share) continue;
      this.weight[i] += share;
      for (let k = 0; k < task.classes.length; k++) {
        sums[k * n + i] += share * sample(planes.subarray(k * side * side), side, side, x, y);
      }
    }
    return sums.map((p, i) => Math.log(Math.max(p / this.weight[i % n], 1e-38)));
  }
}

function clip(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

function place(values, i) {
  return [values[i], values[values.length / 2 + i]];
}

// Each point (x's, then y's) under a function.
function mapped(values, f) {
  const [out, n] = [new Float32Array(values.length), values.length / 2];
  for (let i = 0; i < n; i++) [out[i], out[n + i]] = f(values[i], values[n + i]);
  return out;
}

// Left and right exchanged among a task's classes, where `flip`.
function mirrored(values, { kind, classes, mirrored: order }, flip) {
  if (!flip) return values;
  const [rows, n] = [kind === "landmarks" ? 2 : 1, classes.length];
  const each = values.length / rows / n;
  return values.map((_, i) => {
    const [row, rest] = [Math.floor(i / (n * each)), i % each];
    return values[(row * n + order[Math.floor(i / each) % n]) * each + rest];
  });
}

function probabilities(logits, task) {
  return softmax(logits, logits.length / task.classes.length);
}

// Over the first of (classes, pixels).
function softmax(logits, pixels) {
  const out = new Float32Array(logits.length);
  for (let i = 0; i < pixels; i++) {
    let [largest, sum] = [-Infinity, 0];
    for (let j = i; j < logits.length; j += pixels) largest = Math.max(largest, logits[j]);
    for (let j = i; j < logits.length; j += pixels) sum += out[j] = Math.exp(logits[j] - largest);
    for (let j = i; j < logits.length; j += pixels) out[j] /= sum;
  }
  return out;
}

// Planes of `own` squared pixels drawn at `size` squared; `back`: pixels drawn -> pixels of the planes.
function drawn(planes, own, back, size) {
  const count = planes.length / own ** 2;
  const out = new Float32Array(count * size ** 2);
  for (let i = 0; i < size ** 2; i++) {
    const [x, y] = at(back, (i % size) + 0.5, Math.floor(i / size) + 0.5);
    for (let k = 0; k < count; k++) out[k * size ** 2 + i] = sample(planes.subarray(k * own ** 2), own, own, x, y);
  }
  return out;
}

// A crop that is in sides of another one from its centre, in the picture's pixels.
function absolute(crop, first) {
  const [cx, cy] = at(inverse(matrix(first, 1)), crop.cx + 0.5, crop.cy + 0.5);
  return { cx, cy, side: crop.side * first.side, angle: crop.angle + first.angle, flip: crop.flip };
}

function shared(a, b) {
  const [w, h] = [0, 1].map((k) => Math.max(0, Math.min(a[k + 2], b[k + 2]) - Math.max(a[k], b[k])));
  const area = ([x0, y0, x1, y1]) => (x1 - x0) * (y1 - y0);
  return (w * h) / (area(a) + area(b) - w * h);
}

function resized(picture, width, height) {
  const [from, to] = [new OffscreenCanvas(picture.width, picture.height), new OffscreenCanvas(width, height)];
  from.getContext("2d").putImageData(picture, 0, 0);
  const context = to.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(from, 0, 0, width, height);
  return context.getImageData(0, 0, width, height);
}
