// What a model says of images, in JavaScript: the preprocessing of predict.py to the last bit, and
// what an output means. `spec`, `task` and `classNames` are what model.onnx says of itself.

const FILTERS = {
  box: [0.5, (x) => (x > -0.5 && x <= 0.5 ? 1 : 0)],
  bilinear: [1, (x) => Math.max(0, 1 - Math.abs(x))],
  hamming: [1, (x) => (x === 0 ? 1 : Math.abs(x) >= 1 ? 0 : sinc(x) * (0.54 + 0.46 * Math.cos(Math.PI * x)))],
  bicubic: [2, bicubic],
  lanczos: [3, (x) => (Math.abs(x) < 3 ? sinc(x) * sinc(x / 3) : 0)],
};
const BITS = 2 ** 22; // Pillow's fixed point

function sinc(x) {
  return x === 0 ? 1 : Math.sin(Math.PI * x) / (Math.PI * x);
}

function bicubic(signed) {
  const x = Math.abs(signed);
  if (x < 1) return (1.5 * x - 2.5) * x * x + 1;
  return x < 2 ? -0.5 * (((x - 5) * x + 8) * x - 4) : 0;
}

/** Round half to even, as Python does. */
function rounded(value) {
  const floor = Math.floor(value);
  return value - floor === 0.5 ? floor + (floor % 2) : Math.round(value);
}

/** One channel of a picture, or all it becomes: {width, height, values} in rows. */
function plane(width, height, values = new Float64Array(width * height)) {
  return { width, height, values };
}

/** The channels of RGBA pixels {width, height, data}: transparency is dropped. */
function channelsOf({ width, height, data }, count) {
  const at = (weights) =>
    plane(width, height, Float64Array.from({ length: width * height }, (_, i) => weights(data, 4 * i)));
  if (count === 3) return [0, 1, 2].map((c) => at((d, i) => d[i + c]));
  if (count === 1) return [at((d, i) => (d[i] * 19595 + d[i + 1] * 38470 + d[i + 2] * 7471 + 0x8000) >> 16)];
  throw new Error(`the model takes ${count} channels, which no picture has`);
}

/** Along one axis: for each new place, where the old ones start that it is made of, and their weights. */
function weightsOf(from, to, interpolation, whole) {
  const [reach, filter] = FILTERS[interpolation];
  const scale = from / to;
  const wide = Math.max(scale, 1);
  return Array.from({ length: to }, (_, place) => {
    const centre = (place + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach * wide + 0.5));
    const end = Math.min(from, Math.trunc(centre + reach * wide + 0.5));
    let weights = Array.from({ length: end - first }, (_, i) => filter((i + first - centre + 0.5) / wide));
    const total = weights.reduce((sum, w) => sum + w, 0);
    weights = weights.map((w) => (total === 0 ? w : w / total));
    return [first, whole ? weights.map((w) => Math.trunc(w * BITS + Math.sign(w) * 0.5)) : weights];
  });
}

function nearest(from, to) {
  const scale = from / to;
  let at = 0.5 * scale;
  return Array.from({ length: to }, () => {
    const place = Math.trunc(at);
    at += scale;
    return [place, [1]];
  });
}

/** `old` as large as asked for; `whole`: in 8 bits, which are rounded after each axis. */
function resized(old, width, height, interpolation, whole) {
  const axis = (from, to) =>
    interpolation === "nearest" ? nearest(from, to) : weightsOf(from, to, interpolation, whole);
  const exact = !whole || interpolation === "nearest";
  const kept = (sum) =>
    exact ? Math.fround(sum) : Math.min(255, Math.max(0, Math.floor((sum + BITS / 2) / BITS)));
  const across = (before) => {
    const made = plane(width, before.height);
    axis(before.width, width).forEach(([first, weights], x) => {
      for (let y = 0; y < before.height; y++) {
        let sum = 0;
        weights.forEach((w, i) => (sum += w * before.values[y * before.width + first + i]));
        made.values[y * width + x] = kept(sum);
      }
    });
    return made;
  };
  const down = (before) => {
    const made = plane(before.width, height);
    axis(before.height, height).forEach(([first, weights], y) => {
      for (let x = 0; x < before.width; x++) {
        let sum = 0;
        weights.forEach((w, i) => (sum += w * before.values[(first + i) * before.width + x]));
        made.values[y * before.width + x] = kept(sum);
      }
    });
    return made;
  };
  const shorter = old.height - height;
  const steps = shorter > 0 && shorter > 2 * (old.width - width) ? [down, across] : [across, down]; // as Pillow ≥ 13
  const needed = { across: width !== old.width, down: height !== old.height };
  return steps.filter((step) => needed[step.name]).reduce((made, step) => step(made), old);
}

/** The width and height that a picture is resized to before it is cropped. */
function sizeOf(picture, spec) {
  const [tall, wide] = spec.input_size.map((side) => Math.floor(side / spec.crop_pct));
  if (spec.crop_mode === "squash") return [wide, tall];
  if (spec.crop_mode === "center" && tall === wide) {
    const [short, long] = [picture.width, picture.height].sort((a, b) => a - b);
    const longer = Math.trunc((tall * long) / short);
    return picture.width <= picture.height ? [tall, longer] : [longer, tall];
  }
  const choose = spec.crop_mode === "border" ? Math.max : Math.min;
  const ratio = choose(picture.height / tall, picture.width / wide);
  return [rounded(picture.width / ratio), rounded(picture.height / ratio)];
}

/** The middle of `old`, with borders of the value `fill` where it is smaller. */
function cropped(old, width, height, fill, floor) {
  const start = (from, to) => {
    if (floor) return Math.floor((from - to) / 2);
    return rounded((Math.max(from, to) - to) / 2) - Math.floor((Math.max(from, to) - from) / 2);
  };
  const [left, top] = [start(old.width, width), start(old.height, height)];
  const made = plane(width, height);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const [column, row] = [x + left, y + top];
      const inside = column >= 0 && column < old.width && row >= 0 && row < old.height;
      made.values[y * width + x] = inside ? old.values[row * old.width + column] : fill;
    }
  }
  return made;
}

/** The model input for one picture of RGBA pixels: a Float32Array [channels, height, width]. */
export function prepared(picture, spec) {
  const [height, width] = spec.input_size;
  const whole = !spec.float_resize;
  const f32 = Math.fround;
  const pixels = new Float32Array(spec.channels * height * width);
  channelsOf(picture, spec.channels).forEach((channel, c) => {
    const [mean, std] = [f32(spec.mean[c]), f32(spec.std[c])];
    const border = whole ? rounded(255 * spec.mean[c]) : f32(spec.mean[c]);
    if (!whole) channel.values = channel.values.map((value) => f32(value / 255));
    const size = sizeOf(picture, spec);
    const fitted = resized(channel, ...size, spec.interpolation, whole);
    const fill = spec.crop_mode === "border" ? border : 0;
    const middle = cropped(fitted, width, height, fill, spec.floor_crop && spec.crop_mode !== "border");
    middle.values.forEach((value, i) => {
      const share = whole ? f32(value / 255) : value;
      pixels[c * height * width + i] = f32(f32(share - mean) / std);
    });
  });
  return pixels;
}

/** What an output says by the task of the model: lines of text. */
export function told(output, task, classNames) {
  const name = (i) => classNames?.[i] ?? String(i);
  const line = ([i, share]) => `${(100 * share).toFixed(2)} %  ${name(i)}`;
  const values = Array.from(output);
  if (task === "classification") {
    const largest = Math.max(...values);
    const shares = values.map((value) => Math.exp(value - largest));
    const total = shares.reduce((a, b) => a + b, 0);
    const order = shares.map((share, i) => [i, share / total]).sort((a, b) => b[1] - a[1]);
    return order.slice(0, 5).map(line);
  }
  const shares = values.map((value) => 0.5 * (1 + Math.tanh(value / 2)));
  if (task === "one_logit") return [`${shares[0] >= 0.5 ? "yes" : "no"} (${(100 * shares[0]).toFixed(2)} %)`];
  if (task === "multi_label") {
    const found = shares.map((share, i) => [i, share]).filter(([, share]) => share >= 0.5);
    return found.length ? found.sort((a, b) => b[1] - a[1]).map(line) : ["none of its classes"];
  }
  return [values.slice(0, 8).map((value) => value.toPrecision(5)).join(" ") + (values.length > 8 ? " …" : "")];
}
