// What is wrong with the visible part of a page: names, ids, headings, sizes of targets, contrast (WCAG 2.2, AA).
(() => {
  const wrong = [];
  const isSeen = (node) => node.getClientRects().length > 0 && getComputedStyle(node).visibility !== "hidden";
  const told = (node) => `<${node.tagName.toLowerCase()} id="${node.id}">${node.textContent.trim().slice(0, 30)}`;

  if (!document.documentElement.lang) wrong.push("no language");
  if (!document.title) wrong.push("no title");
  const ids = [...document.querySelectorAll("[id]")].map((node) => node.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) wrong.push(`two elements of id ${id}`);
  let level = 0;
  for (const heading of document.querySelectorAll("h1, h2, h3, h4")) {
    if (!isSeen(heading)) continue;
    const mine = Number(heading.tagName[1]);
    if (mine > level + 1) wrong.push(`heading skips a level: ${told(heading)}`);
    level = mine;
  }
  const named = "input, select, textarea, button, a, pre[tabindex], [role=img], output";
  for (const node of document.querySelectorAll(named)) {
    if (!isSeen(node)) continue;
    const labels = [...(node.labels ?? [])].map((label) => label.textContent.trim()).join(" ");
    if (!(node.getAttribute("aria-label") || labels || node.textContent.trim())) wrong.push(`no name: ${told(node)}`);
    const box = node.getBoundingClientRect();
    const isTarget = node.matches("select, textarea, button, input:not([type=checkbox]):not([type=range])");
    if (isTarget && Math.min(box.height, box.width) < 24) wrong.push(`a target below 24 px: ${told(node)}`);
  }
  for (const tab of document.querySelectorAll("[role=tab]")) {
    if (!document.getElementById(tab.getAttribute("aria-controls"))) wrong.push(`controls nothing: ${told(tab)}`);
  }

  const parts = (colour) => {
    const [red, green, blue, alpha = 1] = colour.match(/[\d.]+/g).map(Number);
    return { rgb: [red, green, blue], alpha };
  };
  const over = (top, below) => top.rgb.map((value, k) => value * top.alpha + below[k] * (1 - top.alpha));
  const ground = (node) => {
    const layers = [];
    for (let at = node; at; at = at.parentElement) {
      const layer = parts(getComputedStyle(at).backgroundColor);
      layers.push(layer);
      if (layer.alpha === 1) break;
    }
    return layers.reverse().reduce((below, layer) => over(layer, below), [255, 255, 255]);
  };
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((value) => {
      const part = value / 255;
      return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
    });
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  const done = new Set();
  while (walker.nextNode()) {
    const node = walker.currentNode.parentElement;
    if (!walker.currentNode.textContent.trim() || done.has(node) || !isSeen(node)) continue;
    if (node.closest(":disabled, noscript, select")) continue;
    done.add(node);
    const box = node.getBoundingClientRect();
    if (Math.max(box.width, box.height) < 12) wrong.push(`text too small: ${told(node)}`);
    const style = getComputedStyle(node);
    const below = ground(node);
    const ink = over(parts(node instanceof SVGElement ? style.fill : style.color), below);
    const [low, high] = [luminance(ink), luminance(below)].sort((a, b) => a - b);
    const contrast = (high + 0.05) / (low + 0.05);
    if (contrast < 4.5) wrong.push(`contrast ${contrast.toFixed(2)}: ${told(node)}`);
  }
  return wrong;
})()
