// What makes a text answer: a pointer, a finger or the arrow keys ask for a character, and its story appears beneath. `name` is the id of the output.
(name => {
  const root = document.getElementById(name), told = root.querySelector('output'), text = root.querySelector('.s');
  const marks = [...text.querySelectorAll('i, u')];
  let on = -1;                                          // which of the marks was asked last

  const ask = place => {
    if (place < 0 || place >= marks.length) return;
    if (on >= 0) marks[on].classList.remove('on');
    on = place;
    marks[on].classList.add('on');
    told.textContent = marks[on].title;
  };

  for (const e of ['pointerover', 'click']) text.addEventListener(e, o => ask(marks.indexOf(o.target)));
  text.addEventListener('keydown', e => {
    const step = {ArrowRight: 1, ArrowLeft: -1}[e.key];
    if (!step) return;
    e.preventDefault();                                 // the page does not scroll
    ask(Math.max(0, on+step));
  });
})
