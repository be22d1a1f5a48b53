/** Controls with a plain name, and a sentence that says what they do. */
import { useId, type ReactNode } from "react";
import { useText } from "../text";

interface Common {
  label: string;
  help?: string | undefined;
}

export function Field({ label, help, children }: Common & { children: (id: string, described: string | undefined) => ReactNode }) {
  const id = useId();
  return (
    <div className="field">
      <label htmlFor={id}>{label}</label>
      {children(id, help ? `${id}-help` : undefined)}
      {help && <small id={`${id}-help`}>{help}</small>}
    </div>
  );
}

export function NumberField(
  props: Common & {
    value: number | null;
    onChange: (value: number | null) => void;
    own?: number | null | undefined;
    min?: number;
    max?: number;
    step?: number;
  },
) {
  const t = useText();
  const { value, onChange, own, min = 0, max, step = 1 } = props;
  return (
    <Field label={props.label} help={props.help}>
      {(id, described) => (
        <input
          id={id}
          type="number"
          inputMode="decimal"
          {...{ min, max, step }}
          value={value ?? ""}
          placeholder={own === undefined || own === null ? "" : t("model.own", { value: own })}
          aria-describedby={described}
          onChange={(event) => onChange(event.target.value === "" ? null : Number(event.target.value))}
        />
      )}
    </Field>
  );
}

export function Slider(props: Common & { value: number; onChange: (value: number) => void; min: number; max: number; step: number }) {
  const { value, onChange, min, max, step } = props;
  return (
    <Field label={props.label} help={props.help}>
      {(id, described) => (
        <span className="slider">
          <input id={id} type="range" {...{ min, max, step, value }} aria-describedby={described} onChange={(event) => onChange(Number(event.target.value))} />
          <output htmlFor={id}>{value}</output>
        </span>
      )}
    </Field>
  );
}

export function Select<T extends string>(props: Common & { value: T; options: readonly (readonly [T, string])[]; onChange: (value: T) => void }) {
  return (
    <Field label={props.label} help={props.help}>
      {(id, described) => (
        <select id={id} value={props.value} aria-describedby={described} onChange={(event) => props.onChange(event.target.value as T)}>
          {props.options.map(([value, text]) => (
            <option key={value} value={value}>
              {text}
            </option>
          ))}
        </select>
      )}
    </Field>
  );
}

export function Check({ label, help, value, onChange }: Common & { value: boolean; onChange: (value: boolean) => void }) {
  return (
    <label className="check" title={help}>
      <input type="checkbox" checked={value} onChange={(event) => onChange(event.target.checked)} />
      <span>{label}</span>
    </label>
  );
}

/** A button that opens a file. */
export function OpenFile({ label, onFile, accept = "image/png,image/jpeg,image/webp" }: { label: string; onFile: (file: File) => void; accept?: string }) {
  return (
    <label className="button file">
      {label}
      <input
        type="file"
        accept={accept}
        onChange={(event) => {
          const file = event.target.files?.[0];
          if (file) onFile(file);
          event.target.value = "";
        }}
      />
    </label>
  );
}
