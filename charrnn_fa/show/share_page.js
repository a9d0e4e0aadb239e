// What a reader of a shared page can do: write, stop, colour, point. All text goes in by `textContent`.
'use strict';
(() => {
const at = id => document.getElementById(id);
const spec = JSON.parse(at('spec').textContent);
const net = charrnn.network(spec, charrnn.bytes(at('weights').textContent));
const symbols = spec.points.map(o => String.fromCodePoint(o));
const ids = new Map(symbols.map((c, i) => [c, i]));
let records = [], job = null, shown = -1;

// ---- Words

const glyphs = {' ': '\u2423', '\n': '\u23CE', '\t': '\u21E5', '\r': '\u240D'};
const number = c => `U+${c.codePointAt(0).toString(16).toUpperCase().padStart(4, '0')}`;
const named = c => glyphs[c] || (/[\p{C}\p{Z}\p{M}]/u.test(c) ? number(c) : c); // by number what is not seen by itself
const quoted = c => `\u2018${named(c)}\u2019`;
const percent = p => p < .005 ? '' : `${Math.round(100 * p)}\u00a0%`;
const listed = (items, most) =>
    items.slice(0, most).join(', ') + (items.length > most ? ` and ${items.length - most} more` : '');

const asKnown = text => // accents by themselves or with their letters, as the model has read them
    [text, text.normalize('NFC'), text.normalize('NFD')].find(o => [...o].every(c => ids.has(c))) ?? text;

const encode = text => {
    const known = [], odd = new Set();
    for (const c of asKnown(text)) {
        if (!ids.has(c)) odd.add(c);
        if (ids.has(c)) known.push(ids.get(c));
        else if (spec.unk >= 0) known.push(spec.unk);
    }
    return {known, odd: [...odd]};
};

const aboutOdd = odd => {
    if (!odd.length) return '';
    const done = spec.unk >= 0 ? `read as ${quoted(symbols[spec.unk])}, which stands for what is rare` : 'left out';
    return `The model has never seen ${listed(odd.map(quoted), 8)}; ${done}.`;
};

const aboutLength = box => box.value.length === box.maxLength
    ? `A beginning has at most ${box.maxLength.toLocaleString('en')} characters; what comes after them is not read.` : '';

const aboutOne = ({id, bits, expected, units}) => {
    const guesses = expected.filter(o => percent(o[1])).map(([i, p]) => `${quoted(symbols[i])}\u00a0${percent(p)}`);
    const surprise = bits === null ? 'the first character, which nothing predicts'
        : `${Math.min(bits, 99).toFixed(1)} bits. Expected here: ${guesses.join(', ') || 'nothing in particular'}`;
    const {row, number} = unit(), value = (units[row][number] / 127).toFixed(2);
    const about = at('by-unit').checked ? `${at('kind').value} ${number}: ${value}. ` : '';
    return `${quoted(symbols[id])}  ${about}${surprise}`;
};

// ---- Colours

const within = (box, high) => Math.max(0, Math.min(high, Math.floor(Number(box.value)) || 0));
const unit = () => {
    const layer = Math.max(1, within(at('layer'), spec.n_layers)) - 1;
    return {row: at('kind').selectedIndex * spec.n_layers + layer, number: within(at('unit'), spec.n_hid - 1)};
};
const shader = () => { // from a record to a number between -1, blue, and 1, orange
    const {row, number} = unit();
    return at('by-surprise').checked ? r => Math.min(1, (r.bits || 0) / spec.most_bits) : r => r.units[row][number] / 127;
};
const paint = (o, shade) => {
    o.style.setProperty('--s', Math.abs(shade).toFixed(2));
    o.classList.toggle('n', shade < 0);
};

const aboutSurprise = 'No colour: the model expected this character. Orange: it did not. '
                    + 'Each bit more halves the chance that it gave the character.';
const aboutUnit = 'What one number of the hidden state was after each character (of a cell its tanh). '
                + 'Try others: is there one that follows words, lines, or who speaks?';
const keys = () => at('by-surprise').checked ? ['0 bits', `${spec.most_bits} bits or more`, aboutSurprise]
                                             : ['\u22121', '1', aboutUnit];

const colourAll = () => {
    const shade = shader(), {row, number} = unit(), found = spec.unit;
    [...at('text').children].forEach((o, i) => paint(o, shade(records[i])));
    [at('key-low').textContent, at('key-high').textContent, at('key-words').textContent] = keys();
    at('key-bar').classList.toggle('n', at('by-unit').checked);
    const words = found.row === row && found.number === number ? found.words : '';
    at('unit-name').textContent = words && at('by-surprise').checked ? `By unit: ${words}` : words;
};

// ---- Characters on the page, some at a time

const show = some => {
    const shade = shader(), part = document.createDocumentFragment();
    for (const r of some) {
        const o = document.createElement('span');
        o.textContent = symbols[r.id];
        o.className = (r.given ? 'given ' : '') + ({'\n': 'end', '\r': 'return'}[symbols[r.id]] || '');
        paint(o, shade(r));
        part.append(o);
    }
    records.push(...some);
    at('text').append(part);
};

const choose = i => {
    const spans = at('text').children;
    if (spans[shown]) spans[shown].classList.remove('on');
    shown = Math.max(-1, Math.min(spans.length - 1, i));
    if (shown >= 0) spans[shown].classList.add('on');
    at('detail').textContent = shown < 0 ? '' : aboutOne(records[shown]);
};

function* told({known, n, seed, temperature}) {
    let scores, left = n;
    const first = known.length ? known : [spec.first];
    for (const r of charrnn.read(net, first)) {
        scores = r.scores;
        if (known.length) yield {...r, scores: null, given: true};
    }
    if (!left) return;
    for (const r of charrnn.write(net, scores, {seed, temperature, banned: spec.unk})) {
        yield r;
        if (!--left) return;
    }
}

const frame = () => new Promise(requestAnimationFrame);

const someOf = (story, slowly) => {
    const some = [], until = performance.now() + 25;
    for (const r of story) {
        some.push(r);
        if (slowly || performance.now() > until) return {some, more: true};
    }
    return {some, more: false};
};

// A generator that `for … of` leaves is closed; this one stays open
const open = generator => ({[Symbol.iterator]: () => ({next: () => generator.next()})});

const summary = (n, seconds, seed, stopped) => {
    const bits = records.filter(r => !r.given).map(r => r.bits), mean = bits.reduce((a, b) => a + b, 0) / bits.length;
    const rate = Math.round(records.length / Math.max(seconds, 1e-3)).toLocaleString('en');
    return `${stopped ? 'Stopped after' : 'Wrote'} ${n.toLocaleString('en')} character${n === 1 ? '' : 's'}, ${rate} a second, `
         + `${(mean || 0).toFixed(2)} bits of surprise each. Seed ${seed} gives them again.`;
};

charrnn.start = async request => {
    const mine = job = {}, began = performance.now(), {known, odd} = encode(request.prompt);
    const story = open(told({...request, known}));
    [records, shown] = [[], -1];
    at('text').replaceChildren();
    at('detail').textContent = '';
    at('unknown').textContent = `${aboutOdd(odd)} ${aboutLength(at('prompt'))}`.trim();
    at('status').textContent = 'Writing \u2026';
    at('stop').setAttribute('aria-disabled', 'false');
    for (let more = true, some; more && job === mine;) {
        ({some, more} = someOf(story, at('slowly').checked));
        show(some);
        if (more) await frame();
    }
    if (job && job !== mine) return;
    const n = records.filter(r => !r.given).length;
    at('status').textContent = summary(n, (performance.now() - began) / 1000, request.seed, !job);
    charrnn.stop();
};

charrnn.stop = () => {
    job = null;
    at('stop').setAttribute('aria-disabled', 'true');
};

// ---- For tests and the curious, on the console of the browser

charrnn.text = (prompt, n, {seed = 0, temperature = .8} = {}) =>
    [...told({known: encode(prompt).known, n, seed, temperature})].map(r => r.given ? '' : symbols[r.id]).join('');

charrnn.next = prompt => {
    let scores;
    for (const r of charrnn.read(net, encode(prompt).known)) scores = r.scores;
    return [...charrnn.probabilities(scores)];
};

charrnn.bench = (n = 3000) => {
    charrnn.text('', 300);
    const began = performance.now();
    charrnn.text('', n);
    return 1000 * n / (performance.now() - began);
};

// ---- The form

const anySeed = () => String(crypto.getRandomValues(new Uint32Array(1))[0]);

// A box for text has line feeds only: what was not edited is taken as it was given, else lines end as in the text that was read
at('prompt').value = spec.prompt;
const begun = at('prompt').value;
const asked = () => at('prompt').value === begun ? spec.prompt : at('prompt').value.replaceAll('\n', spec.line_end);
const aboutEnds = ' The model reads a carriage return and a line feed for each line end, as in its text.';
if (spec.line_end !== '\n') at('prompt-help').textContent += aboutEnds;

const request = seed => ({prompt: asked(), n: Math.max(1, within(at('length'), 5000)),
                          temperature: Number(at('temperature').value), seed: at('seed').value || seed});

at('form').addEventListener('submit', e => {
    e.preventDefault();
    charrnn.start(request(anySeed()));
});
at('prompt').addEventListener('keydown', e => {
    if (e.key !== 'Enter' || e.shiftKey || e.isComposing) return;
    e.preventDefault();
    at('form').requestSubmit();
});
at('stop').addEventListener('click', charrnn.stop);
const showTemperature = () => { at('temperature-is').textContent = Number(at('temperature').value).toFixed(2); };
at('temperature').addEventListener('input', showTemperature);
for (const o of ['by-surprise', 'by-unit']) at(o).addEventListener('change', colourAll);
const byUnit = () => { at('by-unit').checked = true; colourAll(); };
for (const o of ['kind', 'unit', 'layer']) at(o).addEventListener('input', byUnit);

const place = o => o.parentNode === at('text') ? [...at('text').children].indexOf(o) : -1;
const point = e => { if (place(e.target) >= 0) choose(place(e.target)); };
for (const o of ['click', 'pointerover']) at('text').addEventListener(o, point);
const moves = {ArrowRight: i => i + 1, ArrowLeft: i => Math.max(0, i - 1), Home: () => 0, End: () => Infinity};
at('text').addEventListener('keydown', e => {
    if (!moves[e.key] || e.ctrlKey || e.metaKey || e.altKey) return;
    e.preventDefault();
    choose(moves[e.key](shown));
});

at('unit').max = spec.n_hid - 1;
at('unit').value = spec.unit.number;
at('layer').max = spec.n_layers;
at('layer').value = spec.unit.row % spec.n_layers + 1;
at('kind').selectedIndex = Math.floor(spec.unit.row / spec.n_layers);
at('kind').hidden = spec.arch !== 'lstm';
at('of-layer').hidden = spec.n_layers < 2;
showTemperature();
colourAll();
charrnn.start(request('0'));
})();
