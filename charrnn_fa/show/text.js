// What makes a text answer: a pointer, a finger or the arrow keys choose a character, and what is known of it appears beneath. A lens has a slider over moments and buttons for units as well. `name` is the id of the text's element.
(name => {
  const root = document.getElementById(name), find = o => root.querySelector(o), all = o => [...root.querySelectorAll(o)];
  const data = JSON.parse(find('script[type="application/json"]').textContent);
  const bytes = o => Uint8Array.from(atob(o), c => c.charCodeAt(0));
  const layers = data.layers.map(o => ({...o, values: new Float32Array(bytes(o.values).buffer), best: new Uint16Array(bytes(o.best).buffer), probs: bytes(o.probs)}));
  const influence = bytes(data.influence), text = find('.t'), said = find('output'), marks = all('.t i, .t u');
  let n = 0;
  const known = marks.map(o => o.localName === 'i' ? n++ : -1);    // which of the known characters, or -1
  let moment = data.shown, unit = -1, on = -1;
  const layer = () => layers[unit < 0 ? moment : unit];

  // ---- What is said of a character

  const line = (letter, p, hit) => {
    const [row, b, t, s] = ['div', 'b', 'span', 's'].map(o => document.createElement(o));
    b.textContent = letter;
    t.textContent = p < .005 ? '< 1 %' : `${Math.round(100*p)} %`;
    s.style.width = `${Math.max(1, 100*p)}%`;
    if (hit) row.className = 'hit';
    row.append(b, t, s);
    return row;
  };
  const expected = i => {
    const l = layer(), k = l.probs.length/n, rows = [];
    for (let a = i*k; a < i*k+k; a++)
      if (l.probs[a]) rows.push(line(data.vocab[l.best[a]], l.probs[a]/255, l.best[a] === data.ids[i]));
    return rows.length || !k ? rows : [' nothing in particular'];
  };
  const tell = () => {
    if (on < 0) return;
    const i = known[on], l = layer(), head = document.createElement('p');
    if (i < 0) return said.replaceChildren('The model does not know this character.');
    const letter = data.vocab[data.ids[i]], number = l.values[i];
    said.classList.toggle('wide', l.probs.length > 0);
    if (isNaN(number)) return said.replaceChildren(`${letter}   the first character, which nothing predicts`);
    head.textContent = `${letter}   ${l.said ? l.said[i] : l.words.replace('{}', number.toFixed(l.digits))}`;
    const rows = expected(i);
    if (typeof rows[0] === 'string') head.append(rows.pop());
    said.replaceChildren(head, ...rows);
  };

  // ---- Choosing a character; in a lens those that mattered for it are underlined

  const underline = () => marks.forEach((o, place) => {
    const i = known[on], back = known[place] < 0 ? 0 : i-known[place];
    const w = i < 0 || back < 1 || back > data.reach ? 0 : influence[i*data.reach + back-1]/255;
    o.style.boxShadow = w > .08 ? `inset 0 -${(1+4*w).toFixed(1)}px rgba(var(--blue), ${(.35+.65*w).toFixed(2)})` : '';
  });
  const ask = place => {
    if (place < 0 || place >= marks.length) return;
    if (on >= 0) marks[on].classList.remove('on');
    on = place;
    marks[on].classList.add('on');
    if (data.reach) underline();
    tell();
  };
  for (const e of ['pointerover', 'click']) text.addEventListener(e, o => ask(marks.indexOf(o.target)));
  text.addEventListener('keydown', e => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[e.key];
    if (!step) return;
    e.preventDefault();                                             // the page does not scroll
    ask(Math.min(marks.length-1, Math.max(0, on+step)));
  });

  // ---- The slider and the buttons of a lens

  const slider = find('input[type=range]'), play = find('.play'), when = find('.when'), chips = all('.chip');
  if (!slider) return;
  let timer = null;
  const show = () => {
    const l = layer();
    marks.forEach((o, place) => {
      const s = Math.max(-1, Math.min(1, l.values[known[place]]/l.scale || 0));
      o.style.setProperty('--s', Math.abs(s).toFixed(2));
      o.classList.toggle('n', s < 0);
    });
    when.textContent = layers[moment].title;
    slider.value = moment;
    slider.setAttribute('aria-valuetext', when.textContent);
    slider.disabled = play.disabled = unit >= 0;
    chips.forEach(o => o.setAttribute('aria-pressed', String(+o.dataset.layer === unit)));
    [find('.low').textContent, find('.high').textContent] = [l.low, l.high];
    find('.k').classList.toggle('n', l.two);
    tell();
  };
  const stop = () => { clearInterval(timer); timer = null; play.textContent = 'watch it learn'; };
  const tick = () => { if (moment >= data.shown) return stop(); moment++; show(); };
  slider.addEventListener('input', () => { stop(); moment = +slider.value; show(); });
  play.addEventListener('click', () => {
    if (timer) return stop();
    moment = 0; show(); play.textContent = 'stop'; timer = setInterval(tick, 900);
  });
  chips.forEach(o => o.addEventListener('click', () => { stop(); unit = +o.dataset.layer; show(); }));
})
