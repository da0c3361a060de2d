"""What a folder of images means: which of its folders are parts, which are classes, and what is passed over."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tunelab.data.values import first_of
from tunelab.errors import ConfigError, counted, did_you_mean

ENDINGS = (
    *(".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".gif", ".webp", ".avif", ".tif", ".tiff"),
    *(".jp2", ".j2k", ".ppm", ".pgm", ".pbm", ".pnm", ".tga"),
)
"""The endings of the files that count as images, in small letters; capitals count as well."""

PARTS = {
    **{"train": "train", "training": "train"},
    **{"val": "val", "valid": "val", "validation": "val", "dev": "val"},
    **{"test": "test", "testing": "test"},
}
"""The part of the data that a folder of that name means, in any capitals and with or without `set` behind it."""

LITTER_FOLDERS = ("__macosx", "__pycache__", "@eadir", "$recycle.bin")
LITTER_FILES = ("thumbs.db", "desktop.ini")


Components = tuple[str, ...]
"""A path within the root."""


@dataclass
class Tree:
    """The images below a folder, links followed.

    Args:
        root: The folder.
        images: The path of each image within the root, as its components; those of a folder before those of the
            folders in it, each in order of their names.
        ignored: How many files of each ending are no images.
        skipped: The folders that were not entered.
        empty: The folders without an image at any depth, as components.
    """

    root: Path
    images: list[Components] = field(default_factory=list)
    ignored: Counter[str] = field(default_factory=Counter)
    skipped: list[str] = field(default_factory=list)
    empty: list[Components] = field(default_factory=list)


def read_tree(root: Path) -> Tree:
    """Find all images below a folder.

    Hidden folders, those that programs leave behind, and links back to a folder they lie in are not entered.
    """
    tree = Tree(root)

    def enter(place: Components, above: frozenset[str]) -> None:
        here = os.path.join(root, *place)  # noqa: PTH118  # ten times faster
        real = os.path.realpath(here)
        before = len(tree.images)
        with os.scandir(here) as entries:
            found = sorted((entry.name, entry.is_dir()) for entry in entries)
        for name, is_folder in found:
            if is_folder or name.startswith(".") or name.lower() in LITTER_FILES:
                continue
            if name.lower().endswith(ENDINGS):
                tree.images.append((*place, name))
            else:
                tree.ignored[Path(name).suffix.lower() or "no ending"] += 1
        for name, is_folder in found:
            if not is_folder:
                continue
            if name.startswith(".") or name.lower() in LITTER_FOLDERS:
                tree.skipped.append(name)
            elif os.path.realpath(os.path.join(here, name)) in above | {real}:  # noqa: PTH118
                tree.skipped.append(f"{'/'.join((*place, name))} (a link back)")
            else:
                enter((*place, name), above | {real})
        if len(tree.images) == before:
            tree.empty.append(place)

    enter((), frozenset())
    return tree


@dataclass(frozen=True)
class Layout:
    """The images of a folder by part and class.

    Args:
        classes: The name of each class.
        images: Each image's path within the root, the training part first, then in order of classes and names.
        labels: The class of each image.
        parts: The part of each image; None where the folder does not say.
        remarks: What was passed over and how the folder was understood, a sentence each.
    """

    classes: tuple[str, ...]
    images: list[str]
    labels: list[int]
    parts: list[str] | None
    remarks: list[str]


def understand(path: str, class_folder: str | None) -> Layout:
    """Tell the parts and classes of a folder of images.

    Args:
        path: The folder as the user typed it.
        class_folder: Which of the folders that an image lies in names its class: the `first` or the `last`; None asks
            where they are not the same.

    Raises:
        ConfigError: If it is no folder of classes, or could be read in two ways.
    """
    root = Path(path).expanduser().resolve()
    check_folder(root, path)
    tree = read_tree(root)
    in_folders = [image for image in tree.images if len(image) > 1]
    if not in_folders:
        raise ConfigError(_without_folders(path, tree))
    top = _wrappers(in_folders, ())
    inside = [image for image in in_folders if image[: len(top)] == top]
    means = _parts(path, top, inside, tree.empty)
    classes: list[str] = []
    placed: list[tuple[str, str, Components]] = []  # part, class, image
    where = []
    for folder, part in sorted(means.items(), key=lambda item: (item[1] != "train", item[0])) or [("", "train")]:
        start = (*top, folder) if folder else top
        own = [image for image in inside if image[: len(start)] == start and len(image) > len(start) + 1]
        start = _wrappers(own, start, classes)
        _refuse_empty(start, tree.empty)
        folders = [image[len(start) : -1] for image in own]
        if not classes:
            _ask_for_level(path, folders, class_folder)
        names = [levels[-1] if class_folder == "last" else levels[0] for levels in folders]
        classes = classes or sorted(set(names))
        _refuse_other_classes(folder, names, classes)
        if len(start) > len(top) + bool(folder) or top:
            where.append(f"{'/'.join(start)}/")
        placed += sorted(((part, name, image) for name, image in zip(names, own, strict=True)), key=lambda p: p[1])
    used = {image for _, _, image in placed}
    loose = ["/".join(image) for image in tree.images if image not in used]
    return Layout(
        tuple(classes),
        [os.path.join(*image) for _, _, image in placed],  # noqa: PTH118
        [classes.index(name) for _, name, _ in placed],
        [part for part, _, _ in placed] if means else None,
        _remarks(tree, classes, where, loose),
    )


def _remarks(tree: Tree, classes: Sequence[str], where: Sequence[str], loose: Sequence[str]) -> list[str]:
    remarks = [f"the classes are the folders in {' and '.join(where)}"] if where else []
    if loose:
        remarks.append(f"passed over {counted(len(loose), 'image')} that lie in no class's folder: {first_of(loose)}")
    remarks += passed_over(tree)
    for name, other in _alike(classes):
        remarks.append(f"{name} and {other} are two classes, though their names differ in capitals or spaces alone")
    return remarks


def passed_over(tree: Tree) -> list[str]:
    """Say which files and folders were not taken for images, a sentence each."""
    files = [f"passed over {_ignored(tree.ignored)}: no images by their endings"] if tree.ignored else []
    folders = [f"passed over the folders {first_of(tree.skipped)}"] if tree.skipped else []
    return files + folders


def check_folder(root: Path, path: str) -> None:
    """Refuse what is no folder.

    Raises:
        ConfigError: With what to type instead.
    """
    if root.is_file():
        raise ConfigError(f"`data.path` must be a folder of images, got {path}, which is a file. Name its folder.")
    if not root.is_dir():
        near = [folder.name for folder in root.parent.iterdir() if folder.is_dir()] if root.parent.is_dir() else []
        raise ConfigError(
            f"`data.path` must be a folder of images, got {path}, which does not exist.{did_you_mean(root.name, near)} "
            "Type data.path=<folder>."
        )


def part_of(name: str) -> str | None:
    """Return the part that a folder's name means, None if it means none."""
    return PARTS.get(re.sub(r"[ _-]?set$", "", name.lower()))


def _without_folders(path: str, tree: Tree) -> str:
    others = f" It has {_ignored(tree.ignored)}, which are none." if tree.ignored else ""
    if not tree.images and any(tree.empty[:-1]):
        return (
            f"`data.path` must have images in the folders of its classes, got {path}, where no file ends in "
            f"{', '.join(ENDINGS)}.{others} Name another folder, or convert them."
        )
    what = (
        f"which has {len(tree.images):,} images and no folder"
        if tree.images
        else "which has neither folders nor images"
    )
    return (
        f"`data.path` must have a folder of images for each class, got {path}, {what}.{others} "
        f"Sort them into {path}/<class>/."
    )


def _wrappers(images: Sequence[Components], top: Components, known: Sequence[str] = ()) -> Components:
    """Go down while there is one folder and it holds folders, as of an archive that was unpacked."""
    while True:
        names = {image[len(top)] for image in images}
        if len(names) != 1 or names <= set(known) or any(len(image) <= len(top) + 2 for image in images):
            return top
        top = (*top, names.pop())


def _parts(path: str, top: Components, images: Sequence[Components], empty: Sequence[Components]) -> dict[str, str]:
    """The part that each folder means; empty where the folders are classes."""
    depth = len(top)
    names = sorted({image[depth] for image in images if len(image) > depth + 1})
    names += [folder[depth] for folder in empty if folder[:-1] == top and len(folder) == depth + 1]
    holds_classes = {name: any(image[depth] == name and len(image) > depth + 2 for image in images) for name in names}
    means = {name: part for name in names if (part := part_of(name))}
    direct = {image[depth] for image in images if len(image) == depth + 2}
    # a class may be called train: it has images of its own, and no other part stands beside it
    training = [
        name
        for name, part in means.items()
        if part == "train" and holds_classes[name] and (name not in direct or len(set(means.values())) > 1)
    ]
    if not training:
        doubtful = [name for name, part in means.items() if part != "train"]
        if doubtful:
            raise ConfigError(
                f"`data.path` must have a folder train/ with the classes beside {doubtful[0]}/, or no folder that is "
                f"named as a part, got {', '.join(names[:5])} in {path}. Rename the one that holds the training "
                f"images train, or {doubtful[0]} if it is a class."
            )
        return {}
    unknown = [name for name in names if name not in means]
    if unknown:
        raise ConfigError(
            f"`data.path` must have only val/ and test/ beside {training[0]}/, got {unknown[0]}/ in {path}."
            f"{did_you_mean(unknown[0], PARTS)} Move it away."
        )
    for part in dict.fromkeys(means.values()):
        same = [name for name in names if means[name] == part]
        if len(same) > 1:
            raise ConfigError(
                f"`data.path` must have one folder for each part, got {' and '.join(f'{n}/' for n in same)} in {path}, "
                f"which both mean {part}. Put them together, or move one away."
            )
    return means


def _ask_for_level(path: str, folders: Sequence[Components], class_folder: str | None) -> None:
    """Refuse folders within folders that could both be the classes, unless the user says which are."""
    nested = sorted({levels[0] for levels in folders} - {levels[0] for levels in folders if len(levels) == 1})
    if class_folder is None and nested:
        raise ConfigError(
            f"`data.class_folder` must say which folder names the class, for {nested[0]}/ in {path} has its images in "
            f"folders within it. Type data.class_folder=first for the classes "
            f"{first_of(sorted({levels[0] for levels in folders}))}, or data.class_folder=last for "
            f"{first_of(sorted({levels[-1] for levels in folders}))}."
        )


def _refuse_empty(top: Components, empty: Sequence[Components]) -> None:
    for folder in empty:
        if folder and folder[:-1] == top:
            raise ConfigError(
                f"`data.path` must have images in each class's folder, got none in {'/'.join(folder)}. "
                f"Remove it, or add files that end in {', '.join(ENDINGS)}."
            )


def _refuse_other_classes(part: str, names: Sequence[str], classes: Sequence[str]) -> None:
    if unknown := sorted(set(names) - set(classes)):
        raise ConfigError(
            f"`data.path` must have the same classes in {part}/ as in the training part, got {part}/{unknown[0]}."
            f"{did_you_mean(unknown[0], classes)} Rename it or give the training part images of {unknown[0]}."
        )


def _alike(names: Sequence[str]) -> list[tuple[str, str]]:
    """The names that differ in capitals or spaces alone, in pairs."""
    met: dict[str, str] = {}
    pairs = []
    for name in names:
        key = re.sub(r"\s+", "", name.casefold())
        if key in met:
            pairs.append((met[key], name))
        met.setdefault(key, name)
    return pairs


def _ignored(endings: Counter[str]) -> str:
    most = sorted(endings.items(), key=lambda item: (-item[1], item[0]))[:5]
    return f"{counted(sum(endings.values()), 'file')} ({', '.join(f'{ending} {number:,}' for ending, number in most)})"
