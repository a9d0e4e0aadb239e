// What a reader of a shared page of drawings can do: begin one, let the network finish it, let it draw.
'use strict';
(() => {
const at = id => document.getElementById(id);
const spec = JSON.parse(at('spec').textContent);
const net = charrnn.network(spec, charrnn.bytes(at('weights').textContent));
const symbols = spec.points.map(o => String.fromCodePoint(o));
const ids = new Map(symbols.map((c, i) => [c, i]));
const {size, lowest, absolute} = spec.strokes, letters = spec.strokes.letters.map(o => [...o]);
const values = letters.map(o => new Map(o.map((c, i) => [c, i + lowest])));
const box = 255, mostLetters = spec.most_letters;
let begun = [], job = null, sheetJob = null;

// ---- Strokes are text: two letters a step, a blank for a lifted pen, a line end after a drawing

const rounded = v => Math.abs(v % 1) === .5 ? 2 * Math.round(v / 2) : Math.round(v); // half to even
const toCell = v => rounded(v * (size - 1) / box);
const toBox = v => rounded(v * box / (size - 1));

charrnn.toText = strokes => {
    let pen = [0, 0];
    const line = stroke => {
        let res = '';
        stroke.map(p => p.map(toCell)).forEach((p, i, all) => {
            if (i && p.every((v, k) => v === all[i - 1][k])) return;
            res += p.map((v, k) => letters[k][(absolute ? v : v - pen[k]) - lowest]).join('');
            pen = p;
        });
        return res;
    };
    return strokes.map(line).join(' ');
};

const toCells = text => {
    let pen = [0, 0];
    const points = part => {
        const known = [], res = [];
        for (const c of part) {
            const v = values[known.length % 2].get(c); // letters to the right and down take turns
            if (v !== undefined) known.push(v);
        }
        for (let i = 0; i + 1 < known.length; i += 2) {
            pen = [0, 1].map(k => absolute ? known[i + k] : pen[k] + known[i + k]);
            res.push(pen);
        }
        return res;
    };
    return text.split(' ').map(points).filter(o => o.length);
};

// Steps do not know where the paper ends: what runs over its edge is moved as a whole, what is too large made smaller
const ontoPaper = strokes => {
    const cells = strokes.flat(), last = size - 1;
    if (!cells.length) return strokes;
    const lows = [0, 1].map(k => Math.min(...cells.map(p => p[k]))), highs = [0, 1].map(k => Math.max(...cells.map(p => p[k])));
    const factor = Math.max(1, ...[0, 1].map(k => (highs[k] - lows[k]) / last));
    const moves = factor > 1 ? lows : [0, 1].map(k => Math.min(lows[k], 0) + Math.max(highs[k] - last, 0));
    return strokes.map(s => s.map(p => p.map((v, k) => rounded((v - moves[k]) / factor))));
};

charrnn.toStrokes = (text, move = true) =>
    (move ? ontoPaper(toCells(text)) : toCells(text)).map(s => s.map(p => p.map(toBox)));

// ---- The network writes a line

function* line(before, {seed, temperature}) {
    let scores;
    for (const r of charrnn.read(net, ['\n', ...before].map(c => ids.get(c)))) scores = r.scores;
    let left = mostLetters;
    for (const r of charrnn.write(net, scores, {seed, temperature, min_p: spec.min_p})) {
        if (symbols[r.id] === '\n' || !left--) return;
        yield symbols[r.id];
    }
}

const beforeOf = strokes => strokes.length ? charrnn.toText(strokes) + ' ' : '';

charrnn.line = (strokes, {seed = 0, temperature = .6} = {}) => {
    const before = beforeOf(strokes);
    return before + [...line(before, {seed, temperature})].join('');
};

// ---- Lines on the page

const svgOf = name => document.createElementNS('http://www.w3.org/2000/svg', name);

const pathOf = (stroke, isNew) => {
    const o = svgOf('path');
    o.setAttribute('d', `M${stroke[0].join(' ')}` + (stroke.length > 1 ? `L${stroke.slice(1).flat().join(' ')}` : 'h0'));
    if (isNew) o.setAttribute('class', 'new');
    return o;
};

const show = (svg, strokes, given = Infinity) =>
    svg.replaceChildren(...strokes.map((s, i) => pathOf(s, i >= given)));

// The pad shows all that is drawn: it steps back where the network leaves the paper
const stepBack = strokes => {
    const cells = strokes.flat(), spans = [0, 1].map(k => {
        const [a, b] = [Math.min(0, ...cells.map(p => p[k])), Math.max(box, ...cells.map(p => p[k]))];
        return [a, b - a];
    });
    const side = Math.max(...spans.map(o => o[1])) + 16;
    at('pad').setAttribute('viewBox', `${spans.map(o => o[0] - 8).join(' ')} ${side} ${side}`);
};

const showOnPad = (strokes, given) => {
    stepBack(strokes);
    show(at('pad'), strokes, given);
};

const showBegun = () => {
    showOnPad(begun);
    at('finish').textContent = begun.length ? 'Finish it' : 'Draw';
};

// ---- Drawing by hand; a point that lies nearly on the line between others is left out (Ramer, Douglas, Peucker)

const away = (p, a, b) => {
    const [dx, dy] = [b[0] - a[0], b[1] - a[1]], length = Math.hypot(dx, dy);
    return length ? Math.abs(dx * (p[1] - a[1]) - dy * (p[0] - a[0])) / length : Math.hypot(p[0] - a[0], p[1] - a[1]);
};

const simplified = (stroke, epsilon = 3) => {
    const last = stroke.length - 1;
    let far = 0, k = 0;
    for (let i = 1; i < last; i++) {
        const d = away(stroke[i], stroke[0], stroke[last]);
        if (d > far) [far, k] = [d, i];
    }
    if (far <= epsilon) return last > 0 ? [stroke[0], stroke[last]] : stroke;
    return [...simplified(stroke.slice(0, k + 1), epsilon), ...simplified(stroke.slice(k), epsilon).slice(1)];
};

const placeOf = e => {
    const r = at('pad').getBoundingClientRect();
    const of = (v, low, span) => Math.min(box, Math.max(0, (v - low) / span * (box + 16) - 8));
    return [of(e.clientX, r.left, r.width), of(e.clientY, r.top, r.height)];
};

let stroke = null;

at('pad').addEventListener('pointerdown', e => {
    if (e.button || stroke) return; // the other buttons, a second finger
    e.preventDefault();
    job = null;
    at('pad').setPointerCapture(e.pointerId);
    stroke = [placeOf(e)];
    begun.push(stroke);
    showBegun();
});
at('pad').addEventListener('pointermove', e => {
    if (!stroke) return;
    stroke.push(placeOf(e));
    show(at('pad'), begun);
});
const lift = () => {
    if (!stroke) return;
    begun[begun.length - 1] = simplified(stroke);
    stroke = null;
    showBegun();
};
for (const o of ['pointerup', 'pointercancel']) at('pad').addEventListener(o, lift);

// ---- The network draws, some letters a frame

const frame = () => new Promise(requestAnimationFrame);
const anySeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);
const request = (seed = at('seed').value || anySeed()) => ({seed, temperature: Number(at('temperature').value)});

const still = () => matchMedia('(prefers-reduced-motion: reduce)').matches;

const seedIsRight = () => {
    const isRight = /^[0-9]{0,18}$/.test(at('seed').value);
    if (!isRight) at('status').textContent = 'The seed must be a whole number of at most 18 digits, or nothing.';
    return isRight;
};

charrnn.finish = async () => {
    if (!seedIsRight()) return;
    const mine = job = {}, asked = request(), given = begun.length, before = beforeOf(begun);
    let text = before;
    at('status').textContent = 'Drawing \u2026';
    for (const c of line(before, asked)) {
        text += c;
        if (text.length % 3 || still()) continue;
        showOnPad(charrnn.toStrokes(text, false), given);
        await frame();
        if (job !== mine) return;
    }
    const strokes = charrnn.toStrokes(text, false);
    showOnPad(strokes, given);
    const n = strokes.length - given;
    at('status').textContent = `The model drew ${n} line${n === 1 ? '' : 's'}. Seed ${asked.seed} gives them again.`;
};

charrnn.sheet = async (n = 12) => {
    if (!seedIsRight()) return;
    const mine = sheetJob = {}, first = BigInt(at('seed').value || anySeed());
    at('sheet').replaceChildren();
    for (let i = 0; i < n; i++) {
        const svg = svgOf('svg');
        svg.setAttribute('viewBox', '-8 -8 271 271');
        svg.setAttribute('role', 'img');
        svg.setAttribute('class', 'strokes');
        svg.setAttribute('aria-label', 'a drawing by the model');
        show(svg, charrnn.toStrokes(charrnn.line([], request(String(first + BigInt(i))))));
        at('sheet').append(svg);
        await frame();
        if (sheetJob !== mine) return;
    }
    at('status').textContent = `${n} drawings from seed ${first} on.`;
};

// ---- Buttons

const stopAnd = f => () => { job = null; f(); showBegun(); at('status').textContent = ''; };
at('finish').addEventListener('click', charrnn.finish);
at('clear').addEventListener('click', stopAnd(() => { begun = []; }));
at('undo').addEventListener('click', stopAnd(() => { begun.pop(); }));
at('more').addEventListener('click', () => charrnn.sheet());
at('form').addEventListener('submit', e => { e.preventDefault(); charrnn.finish(); });
const showTemperature = () => { at('temperature-is').textContent = Number(at('temperature').value).toFixed(2); };
at('temperature').addEventListener('input', showTemperature);
showTemperature();
showBegun();
charrnn.sheet();
})();
