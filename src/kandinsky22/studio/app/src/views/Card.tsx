import { thumbnailUrl, type LibraryPicture } from "../api/client";
import { remove, star } from "../state/library";
import { useText } from "../text";
import { Icon } from "../ui/Icon";
import { Picture } from "../ui/Picture";

/** A picture of the gallery. `tab`: whether Tab stops at it. */
export function Card({ picture, onOpen, chosen }: { picture: LibraryPicture; onOpen: () => void; chosen?: boolean }) {
  const t = useText();
  return (
    <li className={chosen ? "card chosen" : "card"} data-id={picture.id}>
      <button type="button" className="plain" aria-current={chosen} onClick={onOpen}>
        <Picture url={thumbnailUrl(picture.id)} alt={picture.prompt || picture.id} lazy />
      </button>
      <span className="actions">
        <button type="button" className="tool" aria-pressed={picture.starred} aria-label={t(picture.starred ? "unstar" : "star")} onClick={() => void star(picture)}>
          <Icon name="star" filled={picture.starred} />
        </button>
        <button type="button" className="tool" aria-label={t("delete")} onClick={() => void remove([picture])}>
          <Icon name="trash" />
        </button>
      </span>
    </li>
  );
}
