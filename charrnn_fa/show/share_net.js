// The network of a shared page: its weights, its step, its draws. It needs no page, and runs in Node as well.
'use strict';
const charrnn = {};

// ---- Weights: base64, in it tensors one after the other, fp16 or int8 with an fp32 scale for each row

charrnn.bytes = base64 => {
    const s = atob(base64.trim()), res = new Uint8Array(s.length);
    for (let i = 0; i < s.length; i++) res[i] = s.charCodeAt(i);
    return res;
};

const halfValue = h => {
    const sign = h & 0x8000 ? -1 : 1, exponent = h >> 10 & 31, rest = (h & 1023) / 1024;
    return sign * (exponent ? 2 ** (exponent - 15) * (1 + rest) : 2 ** -14 * rest);
};
const halves = Float32Array.from({length: 65536}, (_, h) => halfValue(h));

const readHalves = (bytes, at, n) =>
    Float32Array.from(new Uint16Array(bytes.slice(at, at + 2 * n).buffer), h => halves[h]);

const readRows = (bytes, at, rows, cols) => {
    const scales = new Float32Array(bytes.slice(at, at + 4 * rows).buffer);
    const q = new Int8Array(bytes.buffer, bytes.byteOffset + at + 4 * rows, rows * cols);
    return Float32Array.from(q, (v, i) => v * scales[Math.floor(i / cols)]);
};

charrnn.tensors = (list, bytes) => Object.fromEntries(list.map(({name, shape, kind, at}) => {
    const [rows, cols = 1] = shape;
    const data = kind === 'int8' ? readRows(bytes, at, rows, cols) : readHalves(bytes, at, rows * cols);
    return [name, {data, rows, cols}];
}));

// ---- Products. Eight rows lie side by side, so that one number of `x` serves all of them; short blocks end in zeros

const pack = ({data, rows, cols}) => {
    const packed = new Float32Array(Math.ceil(rows / 8) * 8 * cols);
    for (let r = 0; r < rows; r++)
        for (let j = 0; j < cols; j++) packed[((r >> 3) * cols + j) * 8 + (r & 7)] = data[r * cols + j];
    return {packed, rows, cols};
};

const outputOf = m => new Float32Array(Math.ceil(m.rows / 8) * 8);

const multiply = ({packed, cols}, x, out) => {
    for (let r = 0, k = 0; r < out.length; r += 8) {
        let a = 0, b = 0, c = 0, d = 0, e = 0, f = 0, g = 0, h = 0;
        for (let j = 0; j < cols; j++, k += 8) {
            const v = x[j];
            a += packed[k] * v; b += packed[k + 1] * v; c += packed[k + 2] * v; d += packed[k + 3] * v;
            e += packed[k + 4] * v; f += packed[k + 5] * v; g += packed[k + 6] * v; h += packed[k + 7] * v;
        }
        out[r] = a; out[r + 1] = b; out[r + 2] = c; out[r + 3] = d;
        out[r + 4] = e; out[r + 5] = f; out[r + 6] = g; out[r + 7] = h;
    }
    return out;
};

const add = (x, b) => { for (let i = 0; i < b.length; i++) x[i] += b[i]; return x; };

// ---- GELU needs the error function: a table by Simpson's rule, and in between the cubic through values and slopes

const slope = x => 2 / Math.sqrt(Math.PI) * Math.exp(-x * x);
const step = 1 / 64, erfs = [0];
for (let x = 0; x < 6; x += step)
    erfs.push(erfs.at(-1) + step / 6 * (slope(x) + 4 * slope(x + step / 2) + slope(x + step)));

charrnn.erf = x => {
    if (x < 0) return -charrnn.erf(-x);
    if (!(x < 6)) return 1;
    const i = Math.floor(x / step), t = x / step - i, u = 1 - t;
    return u * u * ((1 + 2 * t) * erfs[i] + t * step * slope(i * step))
         + t * t * ((1 + 2 * u) * erfs[i + 1] - u * step * slope((i + 1) * step));
};

const sigmoid = x => 1 / (1 + Math.exp(-x));

// ---- Layers: each has a state `h`, and takes what its input gives to the gates. An LSTM shows the tanh of its cells

const lstm = (n, W) => {
    const h = new Float32Array(n), c = new Float32Array(n), squashed = new Float32Array(n), g = outputOf(W);
    const read = a => {
        multiply(W, h, g);
        for (let j = 0; j < n; j++) {
            const i = sigmoid(g[j] + a[j]), f = sigmoid(g[n + j] + a[n + j]);
            const cell = Math.tanh(g[2 * n + j] + a[2 * n + j]), o = sigmoid(g[3 * n + j] + a[3 * n + j]);
            c[j] = f * c[j] + i * cell;
            squashed[j] = Math.tanh(c[j]);
            h[j] = o * squashed[j];
        }
    };
    return {h, squashed, read, clear: () => { h.fill(0); c.fill(0); }};
};

const gru = (n, W, b) => {
    const h = new Float32Array(n), g = outputOf(W);
    const read = a => {
        add(multiply(W, h, g), b);
        for (let j = 0; j < n; j++) {
            const r = sigmoid(g[j] + a[j]), z = sigmoid(g[n + j] + a[n + j]);
            const now = Math.tanh(a[2 * n + j] + r * g[2 * n + j]);
            h[j] = (1 - z) * now + z * h[j];
        }
    };
    return {h, read, clear: () => h.fill(0)};
};

const elman = (n, W) => {
    const h = new Float32Array(n), g = outputOf(W);
    const read = a => {
        multiply(W, h, g);
        for (let j = 0; j < n; j++) h[j] = Math.tanh(g[j] + a[j]);
    };
    return {h, read, clear: () => h.fill(0)};
};

const layerOf = (spec, tensors, i) => {
    const of = name => tensors[`rnns.${i}.${name}`];
    if (spec.arch === 'rnn')
        return {cell: elman(spec.n_hid, pack(of('Whh'))), W: pack(of('Wxh')), b: of('bh').data};
    const W = pack(of('rnn.weight_hh_l0')), b = of('rnn.bias_hh_l0').data, b_in = of('rnn.bias_ih_l0').data;
    const cell = spec.arch === 'lstm' ? lstm(spec.n_hid, W) : gru(spec.n_hid, W, b);
    return {cell, W: pack(of('rnn.weight_ih_l0')), b: spec.arch === 'lstm' ? add(b_in.slice(), b) : b_in};
};

// ---- What the first layer gets is the same each time that a symbol comes: it is computed once

const mostKept = 1 << 24;

const column = ({packed, rows, cols}, j) =>
    Float32Array.from({length: rows}, (_, r) => packed[((r >> 3) * cols + j) * 8 + (r & 7)]);

const inputOf = (emb, {W, b}) => {
    const rows = [];
    let kept = 0;
    const vector = id => emb.data.subarray(id * emb.cols, (id + 1) * emb.cols);
    const of = id => emb ? multiply(W, vector(id), outputOf(W)) : column(W, id);
    return id => {
        if (rows[id]) return rows[id];
        const row = add(of(id), b);
        if ((kept += row.length) <= mostKept) rows[id] = row;
        return row;
    };
};

const decoderOf = tensors => {
    const D = pack(tensors['decoder.weight'] || tensors['emb.weight']), b = tensors['decoder.bias'].data;
    const scores = outputOf(D);
    if (!tensors['head.0.weight']) return h => add(multiply(D, h, scores), b);
    const H = pack(tensors['head.0.weight']), hb = tensors['head.0.bias'].data, x = outputOf(H);
    return h => {
        add(multiply(H, h, x), hb);
        for (let j = 0; j < x.length; j++) x[j] *= .5 * (1 + charrnn.erf(x[j] * Math.SQRT1_2));
        return add(multiply(D, x, scores), b);
    };
};

charrnn.network = (spec, bytes) => {
    const tensors = charrnn.tensors(spec.tensors, bytes);
    const layers = Array.from({length: spec.n_layers}, (_, i) => layerOf(spec, tensors, i));
    const first = inputOf(tensors['emb.weight'], layers[0]), decode = decoderOf(tensors);
    const others = layers.slice(1).map(o => ({...o, a: outputOf(o.W)}));
    const read = id => {
        let h = layers[0].cell.h;
        layers[0].cell.read(first(id));
        for (const {cell, W, b, a} of others) {
            cell.read(add(multiply(W, h, a), b));
            h = cell.h;
        }
        return decode(h).subarray(0, spec.points.length);
    };
    const cells = layers.map(o => o.cell);
    const states = [...cells.map(o => o.h), ...cells.map(o => o.squashed).filter(o => o)];
    return {read, states, clear: () => cells.forEach(o => o.clear())};
};

// ---- Draws as charrnn_fa.generate makes them: the Mersenne Twister of PyTorch, doubles of 53 bits, cumulative sums

charrnn.uniforms = seed => {
    const mt = new Uint32Array(624);
    mt[0] = Number(BigInt(seed) & 0xffffffffn);
    for (let i = 1; i < 624; i++) mt[i] = Math.imul(1812433253, mt[i - 1] ^ mt[i - 1] >>> 30) + i;
    let at = 624;
    const renew = () => {
        for (let k = 0; k < 624; k++) {
            const y = mt[k] & 0x80000000 | mt[(k + 1) % 624] & 0x7fffffff;
            mt[k] = mt[(k + 397) % 624] ^ y >>> 1 ^ (y & 1 ? 0x9908b0df : 0);
        }
        at = 0;
    };
    const next = () => {
        if (at === 624) renew();
        let y = mt[at++];
        y ^= y >>> 11;
        y ^= y << 7 & 0x9d2c5680;
        y ^= y << 15 & 0xefc60000;
        return (y ^ y >>> 18) >>> 0;
    };
    return () => {
        const high = next() & 0x1fffff, low = next();
        return (high * 2 ** 32 + low) * 2 ** -53;
    };
};

charrnn.weigh = (scores, temperature, banned = -1, min_p = 0) => {
    const w = Float64Array.from(scores);
    if (banned >= 0) w[banned] = -Infinity;
    const best = w.reduce((a, b) => Math.max(a, b));
    if (temperature === 0) {
        const i = w.indexOf(best);
        return w.fill(0).fill(1, i, i + 1);
    }
    for (let i = 0; i < w.length; i++) w[i] = Math.exp((w[i] - best) / Math.max(temperature, 1e-250));
    return min_p ? w.map(v => v < min_p ? 0 : v) : w;
};

const total = w => w.reduce((a, b) => a + b, 0);

charrnn.probabilities = (scores, temperature = 1, banned = -1) => {
    const w = charrnn.weigh(scores, temperature, banned), sum = total(w);
    return w.map(v => v / sum);
};

charrnn.draw = (w, u) => {
    const limit = u * total(w);
    let sum = 0;
    for (let i = 0; i < w.length; i++) if ((sum += w[i]) > limit) return i;
    return w.length - 1;
};

// ---- Reading and writing: one record for each character

const best = (p, n) => {
    const ids = [];
    for (let i = 0; i < p.length; i++) {
        let k = ids.length;
        while (k && p[ids[k - 1]] < p[i]) k--;
        if (k < n) ids.splice(k, 0, i);
        if (ids.length > n) ids.pop();
    }
    return ids.map(i => [i, p[i]]);
};

const record = (id, p, net) => ({
    id, bits: p ? Math.min(1074, -Math.log2(p[id])) : null, expected: p ? best(p, 4) : [],
    units: net.states.map(h => Int8Array.from(h, v => Math.round(127 * v))),
});

charrnn.read = function* (net, ids) {
    let p = null;
    net.clear();
    for (const id of ids) {
        const scores = net.read(id), res = record(id, p, net);
        p = charrnn.probabilities(scores);
        yield {...res, scores};
    }
};

charrnn.write = function* (net, scores, {seed, temperature, banned = -1, min_p = 0}) {
    const uniform = charrnn.uniforms(seed);
    while (true) {
        const p = charrnn.probabilities(scores), w = charrnn.weigh(scores, temperature, banned, min_p);
        const id = charrnn.draw(w, uniform());
        scores = net.read(id);
        yield record(id, p, net);
    }
};
