import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App";
import "./studio.css";
import { start, whenJobEnds } from "./state/jobs";
import { attempt, refreshDocuments } from "./state/app";
import { history, recent } from "./state/library";

start();
void recent.load();
void attempt(refreshDocuments);
whenJobEnds((job) => {
  if (job.pictures.length) void Promise.all([recent.refresh(), history.refresh()]);
});
createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
