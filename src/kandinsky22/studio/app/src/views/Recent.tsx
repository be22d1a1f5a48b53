import { go, shown } from "../state/app";
import { recent } from "../state/library";
import { useStore } from "../state/store";
import { useText } from "../text";
import { Card } from "./Card";

const SHOWN = 24;

export function Recent() {
  const t = useText();
  const { list, complete } = useStore(recent.store);
  if (!list.length) return null;
  const choose = (id: string) => {
    shown.set({ kind: "picture", id });
    scrollTo({ top: 0 });
  };
  return (
    <section className="recent">
      <h2>{t("recent")}</h2>
      <ul>
        {list.slice(0, SHOWN).map((picture) => (
          <Card key={picture.id} picture={picture} onOpen={() => choose(picture.id)} />
        ))}
      </ul>
      {(!complete || list.length > SHOWN) && (
        <button type="button" onClick={() => go("history")}>
          {t("recent.more")}
        </button>
      )}
    </section>
  );
}
