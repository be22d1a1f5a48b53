/** Compare: a grid over the values of settings, and two pictures one over the other. */
import { useEffect, useState } from "react";
import { thumbnailUrl } from "../api/client";
import { attempt, doc } from "../state/app";
import { AXES, choose, difference, grid, MOST_CELLS, pair, paintGrid, recall, SUGGESTED, valuesOf, type Axis } from "../state/grid";
import { jobs, share } from "../state/jobs";
import { requestOfPicture } from "../state/library";
import { useStore } from "../state/store";
import { useText, type Key } from "../text";
import { Field, Select } from "../ui/Field";
import { Picture } from "../ui/Picture";
import { BeforeAfter } from "./BeforeAfter";

export function Compare() {
  const t = useText();
  const now = useStore(grid);
  const prompt = useStore(doc, ({ prompt }) => prompt);
  const count = valuesOf(now.xs).length * (now.y ? valuesOf(now.ys).length : 1);
  useEffect(() => recall(grid.get().cells), []);
  const names = AXES.map((axis) => [axis, t(`axis.${axis}` as Key)] as const);
  return (
    <div className="page-view">
      <h2>{t("view.compare")}</h2>
      <p>{t("compare.help", { prompt: prompt || "…" })}</p>
      <form className="panel axes" onSubmit={(event) => (event.preventDefault(), void paintGrid())}>
        <Select label={t("compare.x")} value={now.x} options={names} onChange={(x: Axis) => grid.patch({ x, xs: SUGGESTED[x] })} />
        <Field label={t("compare.values")}>{(id) => <input id={id} type="text" value={now.xs} onChange={(event) => grid.patch({ xs: event.target.value })} />}</Field>
        <Select label={t("compare.y")} value={now.y} options={[["", t("compare.none")] as const, ...names]} onChange={(y: Axis | "") => grid.patch({ y, ys: y ? SUGGESTED[y] : "" })} />
        {now.y && <Field label={t("compare.values.y")}>{(id) => <input id={id} type="text" value={now.ys} onChange={(event) => grid.patch({ ys: event.target.value })} />}</Field>}
        <button type="submit" className="primary" disabled={!count || count > MOST_CELLS}>
          {t("compare.paint", { n: count })}
        </button>
      </form>
      <Pair />
      {now.cells.length > 0 && (
        <div className="scroll" tabIndex={0} role="region" aria-label={t("compare.grid")}>
          <table className="grid">
            <thead>
              <tr>
                {now.y && <th scope="col">{t(`axis.${now.y}` as Key)}</th>}
                {now.columns.map((column) => (
                  <th key={column} scope="col">
                    {column}
                  </th>
                ))}
              </tr>
            </thead>
            <tbody>
              {now.rows.map((row, r) => (
                <tr key={row}>
                  {now.y && <th scope="row">{row}</th>}
                  {now.columns.map((column, c) => (
                    <Cell key={column} id={now.cells[r * now.columns.length + c]} name={[row, column].filter(Boolean).join(", ")} />
                  ))}
                </tr>
              ))}
            </tbody>
          </table>
        </div>
      )}
    </div>
  );
}

function Cell({ id, name }: { id: string | undefined; name: string }) {
  const t = useText();
  const job = useStore(jobs, (all) => (id ? all.get(id) : undefined));
  const chosen = useStore(pair);
  const picture = job?.view.pictures[0];
  if (picture) {
    return (
      <td>
        <button type="button" className="plain" aria-pressed={chosen.some((one) => one.id === picture.id)} onClick={() => choose(picture)}>
          <Picture url={thumbnailUrl(picture.id, "384")} alt={name} />
        </button>
      </td>
    );
  }
  if (job?.view.state === "failed") return <td className="cell">{job.view.error}</td>;
  if (job?.view.state === "cancelled") return <td className="cell">{t("cancelled")}</td>;
  return <td className="cell">{job?.progress?.preview ? <img src={job.progress.preview} alt={name} /> : <progress max={1} value={share(job?.progress ?? null)} aria-label={name} />}</td>;
}

function Pair() {
  const t = useText();
  const [a, b] = useStore(pair);
  const [differs, setDiffers] = useState<[string, string, string][]>([]);
  useEffect(() => {
    setDiffers([]);
    if (!a || !b) return;
    void attempt(async () => {
      const [one, two] = await Promise.all([requestOfPicture(a), requestOfPicture(b)]);
      if (one && two) setDiffers(difference(one, two));
    });
  }, [a?.id, b?.id]);
  if (!a || !b) return <p>{t("compare.choose")}</p>;
  return (
    <section className="pair" aria-label={t("compare.two")}>
      <BeforeAfter before={a.url} after={b.url} />
      <table className="differs">
        <caption>{differs.length ? t("compare.differs") : t("compare.same")}</caption>
        <tbody>
          {differs.map(([name, one, two]) => (
            <tr key={name}>
              <th scope="row">{name}</th>
              <td>{one}</td>
              <td>{two}</td>
            </tr>
          ))}
        </tbody>
      </table>
    </section>
  );
}
