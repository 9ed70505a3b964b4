// Elements of the page. Text goes in as text, never as HTML: there is no innerHTML anywhere.

const byId = (id) => document.getElementById(id);

// make('p', { class: 'soft', text: 'three' }, child, ...): an element with attributes and children.
function make(name, settings = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(settings)) {
    if (value === false || value === null || value === undefined) continue;
    if (key === 'text') element.textContent = value;
    else if (key.startsWith('on')) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? '' : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const unbroken = (text) => text.replaceAll(' %', '\u00a0%'); // a number and its unit stay together
const percent = (share) => (100 * share).toFixed(0);
const signed = (value, digits = 2) =>
  (value < 0 ? '\u2212' : '+') + Math.abs(value).toFixed(digits);
// How a scorer or a prompt set is written.
const display = (name) => page.names[name] ?? name;
const known = (value) => value !== null && value !== undefined;

function rounded(value) {
  if (!known(value)) return '\u2013';
  const digits = Math.abs(value) >= 100 ? 1 : Math.abs(value) >= 10 ? 2 : 3;
  return value.toFixed(digits).replace('-', '\u2212');
}

// A number below which nobody asks for digits, and one decimal more where it matters.
const pText = (p) => (!known(p) ? '\u2013' : p < 0.001 ? '< 0.001' : p.toFixed(p < 0.1 ? 3 : 2));

function button(text, onclick, settings = {}) {
  return make('button', { type: 'button', text, onclick, ...settings });
}

// A picture that loads when it comes near; tiny ones keep their pixels when they are enlarged.
function picture(place, size, alt) {
  const image = make('img', { alt, decoding: 'async', draggable: 'false' });
  image.addEventListener('load', () => image.classList.toggle('tiny', image.naturalWidth <= 128));
  image.addEventListener('error', () => {
    image.alt = `${alt} (the file is missing: keep index_files beside this page)`;
  });
  image.src = sourceOf(place, size);
  return image;
}

function fill(select, choices, chosen) {
  select.replaceChildren(...choices.map(([value, text]) => make('option', { value, text })));
  select.value = choices.some(([value]) => value === chosen) ? chosen : (choices[0]?.[0] ?? '');
}

function toast(text) {
  const told = make('p', { class: 'toast', role: 'status', text });
  (document.querySelector('dialog[open]') ?? document.body).append(told);
  setTimeout(() => told.remove(), 1800);
}

// The clipboard, or what old browsers had in its place.
async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    const area = make('textarea', { 'aria-hidden': 'true' });
    area.value = text;
    (document.querySelector('dialog[open]') ?? document.body).append(area);
    area.select();
    document.execCommand('copy');
    area.remove();
  }
  toast('copied');
}

// What a browser keeps for this page. Where it keeps nothing, the page goes on without.
const kept = {
  get(key) {
    try {
      return JSON.parse(localStorage.getItem(`balanceddpo ${key}`));
    } catch {
      return null;
    }
  },
  set(key, value) {
    try {
      localStorage.setItem(`balanceddpo ${key}`, JSON.stringify(value));
      return true;
    } catch {
      return false;
    }
  },
};
