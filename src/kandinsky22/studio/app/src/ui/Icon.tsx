/** Line icons on a grid of 20, drawn here. */
const PATHS = {
  brush: "M4 16c2 0 3-1 3-3a2 2 0 0 1 4 0c0 2-2 4-5 4M9.5 11.5 16 4l1.500 1.500-6.500 7",
  eraser: "M8 16h9M4 12l7-7 5 5-6 6H8z",
  rectangle: "M4 5h12v10H4z",
  lasso: "M10 4c4 0 7 2 7 5s-3 5-7 5-7-2-7-5 3-5 7-5M6 13c-1 2 0 3 1 4",
  move: "M10 3v14M3 10h14M10 3 8 5m2-2 2 2M10 17l-2-2m2 2 2-2M3 10l2-2m-2 2 2 2M17 10l-2-2m2 2-2 2",
  undo: "M7 5 3.500 8.500 7 12M4 8.500h7a4.500 4 0 0 1 0 8H8",
  redo: "M13 5l3.500 3.500L13 12M16 8.500H9a4.500 4 0 0 0 0 8h3",
  fill: "M4 4h12v12H4zM4 10 10 4M4 16 16 4M10 16l6-6",
  clear: "M4 4h12v12H4zM7 7l6 6M13 7l-6 6",
  invert: "M10 3a7 7 0 1 0 0 14zM10 3a7 7 0 0 1 0 14",
  grow: "M8 8h4v4H8zM4 7V4h3M13 4h3v3M16 13v3h-3M7 16H4v-3",
  shrink: "M5 5h10v10H5zM10 8v4M8 10h4",
  in: "M9 4a5 5 0 1 0 0 10A5 5 0 1 0 9 4M13 13l4 4M9 7v4M7 9h4",
  out: "M9 4a5 5 0 1 0 0 10A5 5 0 1 0 9 4M13 13l4 4M7 9h4",
  fit: "M4 8V4h4M12 4h4v4M16 12v4h-4M8 16H4v-4",
  create: "M4 16c2 0 3-1 3-3a2 2 0 0 1 4 0c0 2-2 4-5 4M9.500 11.500 16 4l1.500 1.500-6.500 7",
  mix: "M8 5a5 5 0 1 0 0 10A5 5 0 1 0 8 5M12 5a5 5 0 1 0 0 10A5 5 0 1 0 12 5",
  compare: "M3 4h6v12H3zM11 4h6v12h-6z",
  history: "M3 3h6v6H3zM11 3h6v6h-6zM3 11h6v6H3zM11 11h6v6h-6z",
  library: "M4 4h3v12H4zM8.500 4h3v12h-3zM13 5l3-.7 2 11-3 .700z",
  system: "M10 7a3 3 0 1 0 0 6 3 3 0 1 0 0-6M10 3v2M10 15v2M3 10h2M15 10h2M5 5l1.500 1.500M13.500 13.500 15 15M15 5l-1.500 1.500M6.500 13.500 5 15",
  star: "M10 3l2.200 4.600 5 .700-3.600 3.500.900 5L10 14.400 5.500 16.800l.900-5L2.800 8.300l5-.700z",
  trash: "M4 6h12M8 6V4h4v2M6 6l.700 10h6.600L14 6",
  close: "M5 5l10 10M15 5 5 15",
};
export type IconName = keyof typeof PATHS;

export function Icon({ name, filled }: { name: IconName; filled?: boolean }) {
  return (
    <svg className="icon" viewBox="0 0 20 20" aria-hidden="true" fill={filled ? "currentColor" : "none"}>
      <path d={PATHS[name]} />
    </svg>
  );
}
