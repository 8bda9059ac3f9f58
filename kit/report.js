// The interactive part of report.html: which frame of a film the menu and the two sliders choose.
// A film is one picture for each model (load_films() in kit/figures.py): two rows of frames, x_t and
// x0_hat, for each prompt and guidance scale, a column for each moment. Nothing is fetched.
for (const film of document.querySelectorAll(".film")) {
  const SIZE = 28; // pixels of a frame
  const menu = film.querySelector("select");
  const sliders = [...film.querySelectorAll("input")]; // guidance scale, moment
  const screens = [...film.querySelectorAll("canvas")];
  const sprites = screens.map((screen) => {
    const sprite = new Image();
    sprite.onload = () => show();
    sprite.src = screen.dataset.sprite;
    return sprite;
  });

  function nameOf(slider) {
    return JSON.parse(slider.dataset.names)[slider.value];
  }

  function show() {
    for (const slider of sliders) {
      slider.parentElement.querySelector("output").value = nameOf(slider);
      slider.setAttribute("aria-valuetext", nameOf(slider)); // what screen readers say
    }
    const [scale, moment] = sliders.map((slider) => Number(slider.value));
    const scales = Number(sliders[0].max) + 1;
    const row = menu.selectedIndex * scales + scale;
    screens.forEach((screen, i) => {
      for (const view of [0, 1]) {
        const place = [SIZE * moment, SIZE * (2 * row + view), SIZE, SIZE];
        screen.getContext("2d").drawImage(sprites[i], ...place, (SIZE + 1) * view, 0, SIZE, SIZE);
      }
      const shown = `${menu.value}, scale ${nameOf(sliders[0])}, step ${nameOf(sliders[1])}`;
      screen.setAttribute("aria-label", `${screen.dataset.model}: ${shown}`);
    });
  }

  film.addEventListener("input", show); // of the menu, too
  show();
}

// English or Chinese: the browser's language, or the button.
const page = document.documentElement;
page.lang = navigator.language.startsWith("zh") ? "zh" : "en";
document.querySelector("#language").addEventListener("click", () => {
  page.lang = page.lang === "en" ? "zh" : "en";
});

// The best model of each column whose title has an arrow.
for (const table of document.querySelectorAll("table")) {
  const rows = [...table.querySelectorAll("tbody tr")].filter(
    (row) => !["real images", "noise"].includes(row.cells[0].textContent),
  );
  [...table.querySelectorAll("th")].forEach((head, i) => {
    const sign = { "↓": -1, "↑": 1 }[head.textContent.slice(-1)];
    const values = rows.map((row) => sign * parseFloat(row.cells[i].textContent.replace(",", "")));
    const best = Math.max(...values.filter((value) => !isNaN(value)));
    rows.forEach((row, k) => row.cells[i].classList.toggle("best", values[k] === best));
  });
}
