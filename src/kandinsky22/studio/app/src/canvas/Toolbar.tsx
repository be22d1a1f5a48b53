import { attempt, doc, edit } from "../state/app";
import { useStore } from "../state/store";
import { useText, type Key } from "../text";
import { OpenFile, Slider } from "../ui/Field";
import { Icon, type IconName } from "../ui/Icon";
import { mask } from "./mask";
import { fit, hand, TOOLS, zoomBy } from "./tools";

function Tool({ icon, label, onClick, disabled, pressed }: { icon: IconName; label: string; onClick: () => void; disabled?: boolean; pressed?: boolean }) {
  return (
    <button type="button" className="tool" title={label} aria-label={label} aria-pressed={pressed} disabled={disabled} onClick={onClick}>
      <Icon name={icon} />
    </button>
  );
}

export function Toolbar() {
  const t = useText();
  const { tool, share, opacity } = useStore(hand);
  const { undo, redo, bounds } = useStore(mask.state);
  const feather = useStore(doc, (now) => now.feather);
  const grow = (sign: number) => mask.grow(sign * Math.max(1, Math.round(mask.hard.width / 64)));
  return (
    <div className="toolbar" role="toolbar" aria-label={t("tools")}>
      <span className="group">
        {TOOLS.map((name) => (
          <Tool key={name} icon={name} label={t(`tool.${name}` as Key)} pressed={tool === name} onClick={() => hand.patch({ tool: name })} />
        ))}
      </span>
      <span className="group">
        <Tool icon="undo" label={t("mask.undo")} disabled={!undo} onClick={() => mask.undo()} />
        <Tool icon="redo" label={t("mask.redo")} disabled={!redo} onClick={() => mask.redo()} />
      </span>
      <span className="group">
        <Tool icon="fill" label={t("mask.fill")} onClick={() => mask.all(true)} />
        <Tool icon="clear" label={t("mask.clear")} disabled={!bounds} onClick={() => mask.all(false)} />
        <Tool icon="invert" label={t("mask.invert")} onClick={() => mask.invert()} />
        <Tool icon="grow" label={t("mask.grow")} disabled={!bounds} onClick={() => grow(1)} />
        <Tool icon="shrink" label={t("mask.shrink")} disabled={!bounds} onClick={() => grow(-1)} />
      </span>
      <span className="group">
        <Tool icon="out" label={t("zoom.out")} onClick={() => zoomBy(0.8)} />
        <Tool icon="in" label={t("zoom.in")} onClick={() => zoomBy(1.25)} />
        <Tool icon="fit" label={t("zoom.fit")} onClick={fit} />
      </span>
      <details className="group more">
        <summary>{t("mask.more")}</summary>
        <div className="menu">
          <Slider label={t("mask.size")} min={1} max={60} step={1} value={share} onChange={(value) => hand.patch({ share: value })} />
          <Slider label={t("mask.opacity")} min={10} max={100} step={5} value={opacity} onChange={(value) => hand.patch({ opacity: value })} />
          <Slider label={t("feather")} min={0} max={64} step={1} value={feather} onChange={(value) => edit({ feather: value })} />
          <OpenFile label={t("mask.open")} onFile={(file) => void attempt(() => mask.load(file))} />
        </div>
      </details>
    </div>
  );
}
