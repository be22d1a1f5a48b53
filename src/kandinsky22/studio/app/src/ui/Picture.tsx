import { useEffect, useState } from "react";
import { hasKey, request } from "../api/client";

/** A picture of the server; with a key it is fetched, since an address alone cannot carry one. */
export function Picture({ url, alt, className, lazy }: { url: string; alt: string; className?: string; lazy?: boolean }) {
  const [source, setSource] = useState(hasKey() ? "" : url);
  useEffect(() => {
    if (!hasKey()) return setSource(url);
    let own = "";
    let live = true;
    void request(url)
      .then((response) => response.blob())
      .then((blob) => live && setSource((own = URL.createObjectURL(blob))))
      .catch(() => undefined);
    return () => {
      live = false;
      if (own) URL.revokeObjectURL(own);
    };
  }, [url]);
  if (!source) return <span className={className} />;
  return <img src={source} alt={alt} className={className} loading={lazy ? "lazy" : undefined} draggable={false} decoding="async" />;
}
