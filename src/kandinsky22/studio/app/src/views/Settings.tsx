/** Settings: the handful that matter, and below them all others. */
import { doc, edit, system } from "../state/app";
import { useStore } from "../state/store";
import { useText, type Key } from "../text";
import { Check, NumberField, Select } from "../ui/Field";

export function Settings() {
  const t = useText();
  const now = useStore(doc);
  const server = useStore(system);
  const own = server?.defaults;
  const samplers = [["", t("model.choice")], ...(server?.samplers ?? []).filter((name) => name !== "linear").map((name) => [name, name] as const)] as const;
  const fixed = Boolean(now.picture && (now.mask || now.pad.some(Boolean)));
  const max = server?.max_pictures ?? 16;
  return (
    <details className="settings">
      <summary>{t("settings")}</summary>
      <div className="fields">
        <NumberField label={t("count")} help={t("count.help")} min={1} max={max} value={now.count} onChange={(count) => edit({ count: Math.max(1, Math.min(max, count ?? 1)) })} />
        <NumberField label={t("seed")} help={t("seed.help")} value={now.seed} onChange={(seed) => edit({ seed })} />
        {!fixed && <NumberField label={t("width")} min={64} step={8} own={own?.width} value={now.width} onChange={(width) => edit({ width })} />}
        {!fixed && <NumberField label={t("height")} min={64} step={8} own={own?.height} value={now.height} onChange={(height) => edit({ height })} />}
        <NumberField label={t("steps")} help={t("steps.help")} min={1} own={own?.decoder.steps} value={now.steps} onChange={(steps) => edit({ steps })} />
        <NumberField label={t("guidance")} help={t("guidance.help")} step={0.1} own={own?.decoder.guidance_scale} value={now.guidance} onChange={(guidance) => edit({ guidance })} />
        <Select label={t("speed")} help={t("speed.help")} value={now.speed} options={(server?.speeds ?? ["exact"]).map((name) => [name, t(`speed.${name}` as Key) || name] as const)} onChange={(speed) => edit({ speed })} />
      </div>
      <details>
        <summary>{t("settings.more")}</summary>
        <div className="fields">
          <Select label={t("sampler")} help={t("sampler.help")} value={now.sampler ?? ""} options={samplers} onChange={(sampler) => edit({ sampler: sampler || null })} />
          <NumberField label={t("reuse")} help={t("reuse.help")} min={1} own={own ? 1 : null} value={now.reuse} onChange={(reuse) => edit({ reuse })} />
          <NumberField label={t("interval.low")} help={t("interval.help")} max={1} step={0.05} own={own ? 0 : null} value={now.interval?.[0] ?? null} onChange={(low) => edit({ interval: low === null ? null : [low, now.interval?.[1] ?? 1] })} />
          <NumberField label={t("interval.high")} max={1} step={0.05} own={own ? 1 : null} value={now.interval?.[1] ?? null} onChange={(high) => edit({ interval: high === null ? null : [now.interval?.[0] ?? 0, high] })} />
          <NumberField label={t("prior.seed")} help={t("prior.seed.help")} value={now.priorSeed} onChange={(priorSeed) => edit({ priorSeed })} />
          <NumberField label={t("variation.seed")} help={t("variation.help")} value={now.variationSeed} onChange={(variationSeed) => edit({ variationSeed })} />
          <NumberField label={t("variation.strength")} max={1} step={0.05} value={now.variationStrength} onChange={(value) => edit({ variationStrength: value ?? 0 })} />
          {!now.linearPrior && (
            <>
              <NumberField label={t("prior.steps")} help={t("prior.help")} min={1} own={own?.prior.steps} value={now.priorSteps} onChange={(priorSteps) => edit({ priorSteps })} />
              <NumberField label={t("prior.guidance")} step={0.1} own={own?.prior.guidance_scale} value={now.priorGuidance} onChange={(priorGuidance) => edit({ priorGuidance })} />
              <Select label={t("prior.sampler")} value={now.priorSampler ?? ""} options={samplers} onChange={(name) => edit({ priorSampler: name || null })} />
            </>
          )}
          <Check label={t("prior.linear")} help={t("prior.linear.help")} value={now.linearPrior} onChange={(linearPrior) => edit({ linearPrior })} />
        </div>
      </details>
    </details>
  );
}
