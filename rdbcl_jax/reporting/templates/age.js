// A page that says "running" says how old it is: what it shows may long be over.
(() => {
  const note = document.getElementById("age"), status = document.querySelector("h1 .status");
  const tell = () => {
    const minutes = Math.floor((Date.now() / 1000 - note.dataset.written) / 60);
    if (minutes < 2) return;
    const ago = minutes < 120 ? `${minutes} min` : `${Math.floor(minutes / 60)} h`;
    status.textContent = status.textContent.replace(/^running.*?:/, `running ${ago} ago:`);
    status.title = "it may have stopped since";
  };
  tell();
  setInterval(tell, 30000);
})();
