"use strict";
const controls = document.querySelector(".controls");
if (controls) {
  const list = document.getElementById("prompts");
  const prompts = [...list.querySelectorAll(".prompt")];
  const texts = prompts.map((prompt) => prompt.textContent.toLowerCase());
  const [filter, sort, truncated, all, count] = ["filter", "sort", "truncated", "all", "count"].map((id) =>
    document.getElementById(id));
  const value = (prompt, name) => (name in prompt.dataset ? Number(prompt.dataset[name]) : -Infinity);
  const select = () => {
    const wanted = filter.value.trim().toLowerCase();
    let left = 0;
    prompts.forEach((prompt, i) => {
      prompt.hidden = !texts[i].includes(wanted) || (truncated.checked && !("truncated" in prompt.dataset));
      left += !prompt.hidden;
    });
    count.textContent = `${left} of ${prompts.length} prompts`;
  };
  const order = () => {
    const name = sort.value;
    const sorted = name ? [...prompts].sort((a, b) => value(b, name) - value(a, name)) : prompts;
    list.append(...sorted);
  };
  const arms = (event) => {
    if (event.target.name !== "arm") return;
    for (const card of list.querySelectorAll(`.card[data-arm="${CSS.escape(event.target.value)}"]`)) {
      card.hidden = !event.target.checked;
    }
  };
  filter.addEventListener("input", select);
  truncated.addEventListener("change", select);
  sort.addEventListener("change", order);
  controls.addEventListener("change", arms);
  controls.addEventListener("submit", (event) => event.preventDefault());
  all.addEventListener("click", () => {
    const open = all.textContent === "open all";
    for (const prompt of prompts) prompt.open = open;
    all.textContent = open ? "close all" : "open all";
  });
  controls.reset();
  controls.hidden = false;
  select();
}
