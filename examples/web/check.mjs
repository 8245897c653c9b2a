// Opens the page in a headless Chromium: node check.mjs PHOTO SCREENSHOT. Prints what it finds, as JSON.
// PHOTO is a file in this folder; CHROMIUM names another browser than /usr/bin/chromium.
import { spawn } from "node:child_process";
import { once } from "node:events";
import puppeteer from "puppeteer-core";

const FLAGS = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync"];
const LONGEST = 300_000; // ms

const [photo, screenshot] = process.argv.slice(2);
const server = spawn(process.execPath, [new URL("serve.mjs", import.meta.url).pathname, "0"]);
const [first] = await once(server.stdout, "data");
const url = first.toString().trim();
const browser = await puppeteer.launch({ executablePath: process.env.CHROMIUM ?? "/usr/bin/chromium", args: FLAGS });
try {
  const page = await browser.newPage();
  const [refused, strangers] = [[], []];
  page.on("pageerror", (error) => refused.push(error.message));
  page.on("request", (request) => !/^(blob|data):/.test(request.url()) && !request.url().startsWith(url)
    && strangers.push(request.url()));
  await page.setViewport({ width: 900, height: 1000 });
  await page.goto(`${url}/?photo=${encodeURIComponent(photo)}`);
  await page.waitForFunction(
    () => document.body.dataset.ready || document.getElementById("status").textContent.startsWith("cannot"),
    { timeout: LONGEST },
  );
  const found = await page.evaluate(() => (window.found ?? []).map(({ box, points, classes }) => ({ box, points, classes })));
  const status = await page.evaluate(() => document.getElementById("status").textContent);
  await page.screenshot({ path: screenshot });
  console.log(JSON.stringify({ status, found, refused, strangers }));
} finally {
  await browser.close();
  server.kill();
}
