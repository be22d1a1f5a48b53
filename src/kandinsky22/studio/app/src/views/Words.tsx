import { doc, edit, system } from "../state/app";
import { taskOf } from "../state/request";
import { useStore } from "../state/store";
import { useText, type Key } from "../text";
import { Field } from "../ui/Field";
import { Expansion, Presets } from "./Presets";

export function Words() {
  const t = useText();
  const now = useStore(doc);
  const ready = useStore(system)?.ready;
  return (
    <>
      <Field label={t("prompt")}>
        {(id) => (
          <textarea
            id={id}
            rows={3}
            value={now.prompt}
            placeholder={t("prompt.example")}
            onChange={(event) => edit({ prompt: event.target.value, mixing: false })}
            onKeyDown={(event) => {
              if (event.key === "Enter" && !event.shiftKey && !event.nativeEvent.isComposing) {
                event.preventDefault();
                event.currentTarget.form?.requestSubmit();
              }
            }}
          />
        )}
      </Field>
      <Field label={t("negative")}>
        {(id) => <input id={id} type="text" value={now.negative} onChange={(event) => edit({ negative: event.target.value })} />}
      </Field>
      <Expansion />
      <div className="row">
        <button type="submit" className="primary" aria-describedby="task">
          {t("paint")}
        </button>
        <span id="task" className="task">
          {ready === false ? t("connection.loading") : t(`task.${taskOf(now)}` as Key)}
        </span>
      </div>
      <Presets />
    </>
  );
}
