// What makes a lens answer: a slider over moments, chips for units, a pointer on characters. `lens(name)` finds the output by its id.
(name => {
  const root = document.getElementById(name), find = o => root.querySelector(o);
  const data = JSON.parse(find('script[type="application/json"]').textContent);
  const bytes = o => Uint8Array.from(atob(o), c => c.charCodeAt(0));
  const marks = [...root.querySelectorAll('.t i, .t u')], known = data.known;      // known[place]: which of the known characters, or -1
  const n = data.n, k = data.k, wide = data.vocab.length > 256;
  const moments = data.moments.map(o => ({...o, bits: new Float32Array(bytes(o.bits).buffer), best: bytes(o.best), probs: bytes(o.probs)}));
  const units = data.units.map(o => ({...o, values: bytes(o.values)}));
  const influence = bytes(data.influence);
  const slider = find('input[type=range]'), when = find('.when'), said = find('.said');
  const chips = [...root.querySelectorAll('.chip[data-unit]')];
  const key = find('.key'), low = find('.low'), high = find('.high'), play = find('.play');
  let at = moments.length-1, unit = -1, on = -1, timer = null;

  const orange = a => `rgba(${data.orange},${a.toFixed(2)})`, blue = a => `rgba(${data.blue},${a.toFixed(2)})`;
  const shade = i => {                                                            // background of a known character
    if (unit < 0) return i ? orange(.8*Math.min(1, moments[at].bits[i]/data.most)) : '';
    const v = (units[unit].values[i]-128)/127;
    return v < 0 ? blue(-.8*v) : orange(.8*v);
  };
  const before = place => {                                                       // how much it matters for the one that is asked
    const i = on < 0 ? -1 : known[on], j = known[place];
    return i < 0 || j < 0 || j >= i || i-j > data.reach ? 0 : influence[i*data.reach + i-j-1]/255;
  };
  const paint = () => marks.forEach((m, place) => {
    const i = known[place], w = before(place);
    if (i >= 0) m.style.background = shade(i);
    m.style.boxShadow = w > .08 ? `inset 0 -${(1+4*w).toFixed(1)}px ${blue(.35+.65*w)}` : '';
    m.classList.toggle('on', place === on);
  });

  const line = (letter, p, hit) => {
    const [row, b, t, s] = ['div', 'b', 'span', 's'].map(o => document.createElement(o));
    b.textContent = letter;
    t.textContent = p < .005 ? '< 1 %' : `${Math.round(100*p)} %`;
    s.style.width = `${Math.max(1, 100*p)}%`;
    if (hit) row.className = 'hit';
    row.append(b, t, s);
    return row;
  };
  const tell = () => {
    if (on < 0) return said.replaceChildren(data.ask);
    const i = known[on], m = moments[at];
    if (i < 0) return said.replaceChildren('The network does not know this character.');
    const letter = data.vocab[data.ids[i]];
    if (unit >= 0) {
      const u = units[unit], value = (u.values[i]-128)/127*u.scale;
      return said.replaceChildren(`${letter}   ${u.name}: ${value.toFixed(2)}`);
    }
    if (!i) return said.replaceChildren(`${letter}   the first character, which nothing predicts`);
    const head = document.createElement('p');
    const rows = [];
    for (let j = 0; j < k; j++) {
      const a = i*k+j, id = wide ? m.best[2*a] + 256*m.best[2*a+1] : m.best[a];
      if (m.probs[a]) rows.push(line(data.vocab[id], m.probs[a]/255, id === data.ids[i]));
    }
    const rest = rows.length ? '' : ' nothing in particular';
    head.textContent = `${letter}   ${m.bits[i].toFixed(1)} bits. Expected here (${m.name}):${rest}`;
    said.replaceChildren(head, ...rows);
  };

  const show = () => {
    const m = moments[at];
    when.textContent = `${m.name}: ${m.mean.toFixed(2)} bits a character`;
    slider.value = at;
    slider.setAttribute('aria-valuetext', when.textContent);
    slider.disabled = play.disabled = moments.length < 2 || unit >= 0;
    chips.forEach(o => o.setAttribute('aria-pressed', String(+o.dataset.unit === unit)));
    const one = `${orange(0)},${orange(.8)}`, two = `${blue(.8)},${blue(0)} 50%,${orange(0)} 50%,${orange(.8)}`;
    key.style.background = `linear-gradient(90deg,${unit < 0 ? one : two})`;
    low.textContent = unit < 0 ? 'expected' : 'low';
    high.textContent = unit < 0 ? `${data.most} bits and more` : 'high';
    paint();
    tell();
  };
  const ask = place => { if (place >= 0 && place < marks.length) { on = place; root.classList.add('asked'); paint(); tell(); } };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'watch it learn'; };
  const tick = () => { if (at >= moments.length-1) return stop(); at++; show(); };

  slider.addEventListener('input', () => { stop(); at = +slider.value; show(); });
  play.addEventListener('click', () => {
    if (timer) return stop();
    at = 0; show(); play.textContent = 'stop'; timer = setInterval(tick, 900);
  });
  chips.forEach(o => o.addEventListener('click', () => { stop(); unit = +o.dataset.unit; show(); }));
  const text = find('.t');
  for (const e of ['pointerover', 'click']) text.addEventListener(e, o => ask(marks.indexOf(o.target)));
  text.addEventListener('keydown', e => {
    const d = {ArrowRight: 1, ArrowLeft: -1}[e.key];
    if (d) { e.preventDefault(); ask(Math.min(marks.length-1, Math.max(0, on+d))); }
  });
  show();
})
