/** Everything that was painted: searched, starred, in folders, and gone through by keyboard. */
import { useEffect, useRef, useState, type KeyboardEvent } from "react";
import { api } from "../api/client";
import { attempt, toast } from "../state/app";
import { choose, pair } from "../state/grid";
import { folders, history, move, refreshFolders, remove, star, TRASH } from "../state/library";
import { useStore } from "../state/store";
import { useText } from "../text";
import { Check, Field, Select } from "../ui/Field";
import { Card } from "./Card";
import { Result } from "./Result";

export function History() {
  const t = useText();
  const { list, filter, complete } = useStore(history.store);
  const all = useStore(folders);
  const compared = useStore(pair);
  const [open, setOpen] = useState<string | null>(null);
  const end = useRef<HTMLDivElement>(null);
  const grid = useRef<HTMLUListElement>(null);
  useEffect(() => {
    void history.load();
    void attempt(refreshFolders);
    const observer = new IntersectionObserver(([entry]) => entry?.isIntersecting && void history.more(), { rootMargin: "600px" });
    observer.observe(end.current!);
    return () => observer.disconnect();
  }, []);
  const picture = list.find(({ id }) => id === open);

  function key(event: KeyboardEvent): void {
    const cards = [...(grid.current?.querySelectorAll<HTMLElement>(".card > .plain") ?? [])];
    const at = cards.findIndex((card) => card.parentElement!.contains(document.activeElement));
    if (at < 0) return;
    const top = cards[0]!.getBoundingClientRect().top;
    const columns = Math.max(1, cards.filter((card) => Math.abs(card.getBoundingClientRect().top - top) < 4).length);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: cards.length - 1 }[event.key];
    const current = list[at];
    if (to !== undefined) cards[Math.max(0, Math.min(cards.length - 1, to))]?.focus();
    else if (!current) return;
    else if (event.key === "s") void star(current);
    else if (event.key === "c") choose(current);
    else if (event.key === "Delete") {
      void remove([current]);
      cards[at + 1]?.focus();
    } else return;
    event.preventDefault();
  }

  return (
    <div className="page-view">
      <h2>{t("view.history")}</h2>
      <div className="filters">
        <Field label={t("search.label")}>
          {(id) => <input id={id} type="search" value={filter.search} placeholder={t("search")} onChange={(event) => void history.load({ ...filter, search: event.target.value })} />}
        </Field>
        <Select
          label={t("folder")}
          value={filter.folder ?? ""}
          options={[["", t("folder.all")], ...all.map(({ name, count }) => [name, `${name === TRASH ? t("trash") : name} (${count})`] as const)]}
          onChange={(folder) => void history.load({ ...filter, folder: folder || null })}
        />
        <Check label={t("starred")} value={filter.starred} onChange={(starred) => void history.load({ ...filter, starred })} />
        {filter.folder === TRASH && (
          <button type="button" onClick={() => void attempt(async () => (await api.delete("/api/v1/folders/trash"), await refreshFolders(), history.load()))}>
            {t("trash.empty")}
          </button>
        )}
      </div>
      <p>{t("history.keys")}</p>
      {picture && (
        <section className="opened" aria-label={t("history.opened")}>
          <Result key={picture.id} pictures={[picture]} before={null} />
          <div className="row">
            <MoveTo id={picture.id} folder={picture.folder} />
            <button type="button" aria-pressed={compared.some(({ id }) => id === picture.id)} onClick={() => (choose(picture), toast(t("compare.chosen", { n: pair.get().length })))}>
              {t("compare.add")}
            </button>
            <button type="button" onClick={() => setOpen(null)}>
              {t("close")}
            </button>
          </div>
        </section>
      )}
      <ul className="gallery" ref={grid} onKeyDown={key}>
        {list.map((one) => (
          <Card
            key={one.id}
            picture={one}
            chosen={one.id === open}
            onOpen={() => {
              setOpen(one.id);
              scrollTo({ top: 0 });
            }}
          />
        ))}
      </ul>
      {!list.length && <p>{t("history.none")}</p>}
      <div ref={end}>
        {!complete && (
          <button type="button" onClick={() => void history.more()}>
            {t("recent.more")}
          </button>
        )}
      </div>
    </div>
  );
}

function MoveTo({ id, folder }: { id: string; folder: string | null }) {
  const t = useText();
  const [name, setName] = useState(folder ?? "");
  return (
    <Field label={t("folder.move")}>
      {(field) => (
        <span className="row">
          <input id={field} type="text" maxLength={100} value={name} onChange={(event) => setName(event.target.value)} />
          <button type="button" onClick={() => void move(id, name.trim() || null)}>
            {t("folder.put")}
          </button>
        </span>
      )}
    </Field>
  );
}
