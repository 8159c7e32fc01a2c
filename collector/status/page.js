// What was opened stays open when the page refreshes. All else works without this script.
const open = new Set(JSON.parse(sessionStorage.getItem("open") || "[]"));
for (const d of document.querySelectorAll("details[data-key]")) {
	if (open.has(d.dataset.key)) d.open = true;
	d.addEventListener("toggle", () => {
		if (d.open) open.add(d.dataset.key);
		else open.delete(d.dataset.key);
		sessionStorage.setItem("open", JSON.stringify([...open]));
	});
}
