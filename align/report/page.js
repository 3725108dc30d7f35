"use strict";
const filter = document.getElementById("filter");
if (filter) {
  const prompts = [...document.querySelectorAll(".prompt")];
  const texts = prompts.map((prompt) => prompt.textContent.toLowerCase());
  const count = document.getElementById("count");
  const apply = () => {
    const wanted = filter.value.trim().toLowerCase();
    let left = 0;
    prompts.forEach((prompt, i) => {
      prompt.hidden = !texts[i].includes(wanted);
      left += !prompt.hidden;
    });
    count.textContent = `${left} of ${prompts.length} prompts`;
  };
  filter.addEventListener("input", apply);
  apply();
}
