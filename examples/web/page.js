// The page: a file or the camera in, regions, points and the strongest class of each face drawn on a canvas.
import { Analyzer } from "./ifan.js";
import { at, matrix, sample } from "./geometry.js";

const CAMERA_SIDE = 320; // of the picture that the detector searches, where frames follow each other
const COLOURS = [[0, 0, 0], [255, 190, 120], [150, 90, 40], [60, 200, 255], [255, 220, 80], [235, 60, 100],
  [120, 20, 40], [235, 90, 150], [110, 80, 220]];
const OPACITY = 0.35;

const [canvas, status, table] = ["canvas", "status", "faces"].map((id) => document.getElementById(id));
const context = canvas.getContext("2d", { willReadFrequently: true });
const video = document.createElement("video");
let running = false;

function say(text) {
  status.textContent = text;
}

function draw(faces) {
  const picture = context.getImageData(0, 0, canvas.width, canvas.height);
  for (const { seen, parsing } of faces) if (parsing) paint(picture, seen, parsing);
  context.putImageData(picture, 0, 0);
  context.lineWidth = Math.max(1, canvas.width / 400);
  context.font = `${Math.max(12, canvas.width / 35)}px system-ui`;
  for (const { box: [x0, y0, x1, y1], points, classes } of faces) {
    context.strokeStyle = context.fillStyle = "white";
    context.strokeRect(x0, y0, x1 - x0, y1 - y0);
    for (const [x, y] of Object.values(points)) {
      context.beginPath();
      context.arc(x, y, context.lineWidth * 1.5, 0, 2 * Math.PI);
      context.fill();
    }
    context.fillText(Object.values(classes).map((p) => strongest(p).join(" ")).join(", "), x0, y0 - 6);
  }
}

function paint(picture, crop, { planes, side }) {
  const [to, count] = [matrix(crop, side), planes.length / side ** 2];
  const reach = crop.side * 0.71;
  for (let y = Math.max(0, Math.floor(crop.cy - reach)); y < Math.min(picture.height, crop.cy + reach); y++) {
    for (let x = Math.max(0, Math.floor(crop.cx - reach)); x < Math.min(picture.width, crop.cx + reach); x++) {
      const [u, v] = at(to, x + 0.5, y + 0.5);
      if (u < 0 || v < 0 || u > side || v > side) continue;
      let [best, likely] = [0, -1];
      for (let k = 0; k < count; k++) {
        const p = sample(planes.subarray(k * side ** 2), side, side, u, v);
        if (p > likely) [best, likely] = [k, p];
      }
      if (!best) continue;
      const i = 4 * (y * picture.width + x);
      for (let k = 0; k < 3; k++) {
        picture.data[i + k] += OPACITY * (COLOURS[best % COLOURS.length][k] - picture.data[i + k]);
      }
    }
  }
}

function strongest(probabilities) {
  const [name, p] = Object.entries(probabilities).sort((a, b) => b[1] - a[1])[0];
  return [name, `${Math.round(100 * p)} %`];
}

async function show(analyzer, source, width, height, maxSide) {
  [canvas.width, canvas.height] = [width, height];
  context.drawImage(source, 0, 0, width, height);
  const iterations = Number(document.getElementById("iterations").value);
  const start = performance.now();
  const faces = await analyzer.analyze(context.getImageData(0, 0, width, height), iterations, maxSide);
  const ms = performance.now() - start;
  draw(faces);
  table.replaceChildren(...faces.map(({ points, classes }, i) => {
    const line = document.createElement("li");
    const all = Object.values(classes).map((p) => strongest(p).join(" "));
    for (const [name, [x, y]] of Object.entries(points)) all.push(`${name} ${x.toFixed(1)}, ${y.toFixed(1)}`);
    line.textContent = `face ${i + 1}: ${all.join("; ")}`;
    return line;
  }));
  say(`${faces.length} ${faces.length === 1 ? "face" : "faces"}, ${ms.toFixed(0)} ms a frame of ${width} x ${height}`);
  return faces;
}

async function file(analyzer, blob) {
  running = false;
  const picture = await createImageBitmap(blob);
  window.found = await show(analyzer, picture, picture.width, picture.height);
  document.body.dataset.ready = "true";
}

async function camera(analyzer) {
  video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { width: 640, height: 480 } });
  await video.play();
  running = true;
  while (running) {
    await show(analyzer, video, video.videoWidth, video.videoHeight, CAMERA_SIDE);
    await new Promise(requestAnimationFrame);
  }
  for (const track of video.srcObject.getTracks()) track.stop();
}

async function start() {
  const options = new URLSearchParams(location.search);
  const analyzer = await Analyzer.load(options.get("model") ?? "model");
  const iterations = document.getElementById("iterations");
  for (let i = 1; i <= Math.max(3, analyzer.about.iterations); i++) iterations.add(new Option(String(i), String(i)));
  iterations.value = String(analyzer.about.iterations);
  const { weights, weights_license: license } = analyzer.about;
  document.getElementById("license").textContent = `Weights ${weights}: ${license}.`;
  const guarded = (work) => work.catch((error) => say(`cannot do that: ${error.message}`));
  document.getElementById("file").onchange = ({ target }) => target.files[0] && guarded(file(analyzer, target.files[0]));
  document.getElementById("camera").onclick = () => (running ? (running = false) : guarded(camera(analyzer)));
  say("choose a photo, or start the camera");
  if (options.has("photo")) await guarded(fetch(options.get("photo")).then((r) => r.blob()).then((b) => file(analyzer, b)));
}

start().catch((error) => say(`cannot load the graphs (${error.message}); run: ifan export examples/web/model`));
