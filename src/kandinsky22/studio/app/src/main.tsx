import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import { App } from "./App";
import "./studio.css";
import { start, whenJobEnds } from "./state/jobs";
import { recent } from "./state/library";

start();
void recent.load();
whenJobEnds((job) => {
  if (job.pictures.length) void recent.load();
});
createRoot(document.getElementById("root")!).render(
  <StrictMode>
    <App />
  </StrictMode>,
);
