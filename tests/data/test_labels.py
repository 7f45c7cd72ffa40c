"""Classes as people have them: lists in several forms, orders of folders, stored numbers."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from helpers.pictures import png, write_tar
from vitcompress.data.images import open_images
from vitcompress.data.labels import in_order, read_classes
from vitcompress.errors import InputError

WNIDS = ["n03", "n01", "n02"]


def grey(value: int = 0) -> np.ndarray:
    return np.full((4, 4, 3), value, np.uint8)


def folders(root: Path, *names: str) -> Path:
    for value, name in enumerate(names):
        (root / name).mkdir(parents=True)
        (root / name / "a.png").write_bytes(png(grey(value % 256)))
    return root


def tar(
    path: Path, files: dict[str, bytes], links: dict[str, str], kind: bytes = tarfile.SYMTYPE
) -> Path:
    with tarfile.open(write_tar(path, files), "a") as archive:
        for name, target in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return path


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("wnids.txt", "n03\nn01\nn02\n"),
        ("synset_words.txt", "n03 tench, Tinca tinca\nn01 goldfish\nn02 great white shark\n"),
        ("tabs.tsv", "n03\ttench\nn01\tgoldfish\nn02\tshark\n"),
        ("table.csv", 'n03,"tench, Tinca"\nn01,a\nn02,b\n'),
        ("titled.csv", "wnid,name\nn03,tench\nn01,goldfish\nn02,shark\n"),
        ("titled.txt", "WNID\nn03\nn01\nn02\n"),
        ("titled.tsv", "class_id\tfolder\n1\tn01\n2\tn02\n0\tn03\n"),
        ("names_first.csv", "tench,n03\ngoldfish,n01\nshark,n02\n"),
        ("numbered.txt", "0 n03\n1 n01\n2 n02\n"),
        ("numbered_out_of_order.csv", "1,n01\n2,n02\n0,n03\n"),
        ("numbered_from_1.txt", "2 n01\n3 n02\n1 n03\n"),
        ("list.json", json.dumps(WNIDS)),
        ("class_index.json", json.dumps({str(i): [w, "name"] for i, w in enumerate(WNIDS)})),
        ("places.json", json.dumps({"n01": 1, "n02": 2, "n03": 0})),
    ],
)
def test_lists_of_classes(name: str, text: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_text(text)
    assert read_classes(path, {"n01", "n02"}) == WNIDS
    images = open_images(folders(tmp_path / "r", "n01", "n02"), classes=path, labelled=True)
    assert (images.labels, images.num_classes) == ([1, 2], 3)
    assert len(read_classes(path, set())) == 3


def test_a_class_may_be_called_as_a_title_is(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("label\nfolder\n")
    assert read_classes(path, {"label"}) == ["label", "folder"]
    assert read_classes(path, set()) == ["folder"]


def test_a_name_of_several_words_is_a_name(tmp_path: Path) -> None:
    path = tmp_path / "names.txt"
    path.write_text("great white shark\ntiger shark\n")
    assert read_classes(path, {"tiger shark"}) == ["great white shark", "tiger shark"]


@pytest.mark.parametrize(
    "text", ["{", "[]", "{}", "5", '"n01"', '[{"wnid": "n01"}]', '{"n01": {"name": "x"}}', "[null]"]
)
def test_a_json_without_names_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "classes.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"classes\.json: (not readable|the classes file|neither)"):
        read_classes(path, set())


def test_folders_are_in_the_order_of_timm(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from timm.data.readers.reader_image_folder import find_images_and_targets

    names = ("0", "1", "2", "10", "Zebra", "ant", "b12", "b2")
    root = folders(tmp_path, *names)
    _, places = find_images_and_targets(str(root))
    images = open_images(root, labelled=True)
    assert images.labels is not None
    found = {n.partition("/")[0]: at for n, at in zip(images.names, images.labels, strict=True)}
    assert found == places
    assert "timm's order" in capsys.readouterr().err
    assert in_order(["a", "b"], "x") == ["a", "b"]
    assert capsys.readouterr().err == ""


def test_names_are_compared_after_normalisation(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_text("cafe\u0301\nbar\n", encoding="utf-8")
    root = folders(tmp_path / "r", "caf\u00e9")
    assert open_images(root, classes=path, labelled=True).labels == [0]


def test_folders_that_differ_in_normalisation_only_are_classes_of_their_own(tmp_path: Path) -> None:
    root = folders(tmp_path, "caf\u00e9", "cafe\u0301")
    images = open_images(root, labelled=True)
    assert (images.labels, images.num_classes) == ([0, 1], 2)
    path = tmp_path / "classes.txt"
    path.write_text("bar\ncaf\u00e9\n", encoding="utf-8")
    assert open_images(root, classes=path, labelled=True).labels == [1, 1]


def test_a_model_names_its_classes_in_any_normalisation(tmp_path: Path) -> None:
    root = folders(tmp_path, "cafe\u0301")
    images = open_images(root, labelled=True, class_names=["bar", "caf\u00e9"])
    assert (images.labels, images.num_classes) == ([1], 2)


def test_a_label_below_zero_is_refused(tmp_path: Path) -> None:
    path = write_tar(tmp_path / "a.tar", {"0.png": png(grey()), "0.cls": b"-1"})
    with pytest.raises(InputError, match="label -1, which is no class"):
        open_images(path, labelled=True)


def test_links_inside_a_tar_are_followed(tmp_path: Path) -> None:
    files = {"blobs/x": png(grey(1)), "blobs/y": png(grey(2)), "bee/z.png": png(grey(3))}
    links = {"ant/x.png": "../blobs/x", "bee/y.png": "y.link", "bee/y.link": "../blobs/y"}
    images = open_images(tar(tmp_path / "a.tar", files, links), labelled=True)
    assert images.names == ["ant/x.png", "bee/y.png", "bee/z.png"]
    assert images.labels == [0, 1, 1]
    assert [images.read(i).getpixel((0, 0)) for i in range(3)] == [(v, v, v) for v in (1, 2, 3)]


def test_hard_links_inside_a_tar_are_followed(tmp_path: Path) -> None:
    files = {"blobs/x": png(grey(1)), "ant/y.png": png(grey(2))}
    links = {"./bee/x.png": "blobs/x", "bee/z.png": "bee/x.png"}
    path = tar(tmp_path / "a.tar", files, links, tarfile.LNKTYPE)
    images = open_images(path, labelled=True)
    assert (images.names, images.labels) == (["ant/y.png", "bee/x.png"], [0, 1])
    assert np.asarray(images.read(1))[0, 0, 0] == 1


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE])
def test_links_in_a_circle_are_refused(kind: bytes, tmp_path: Path) -> None:
    links = {"x.png": "y.png", "y.png": "z.png", "z.png": "x.png"}
    path = tar(tmp_path / "a.tar", {"ant/a.png": png(grey())}, links, kind)
    with pytest.raises(InputError, match="leads to nothing in it"):
        open_images(path, labelled=False)


@pytest.mark.parametrize("target", ["/data/bee", "../../bee", "bees"])
def test_a_link_to_a_folder_elsewhere_is_refused(target: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"root/ant/a.png": png(grey())}, {"root/bee": target})
    with pytest.raises(InputError, match=r"root/bee is a link to .*tar --dereference"):
        open_images(path, labelled=True)


def test_a_link_to_a_folder_in_the_tar_adds_nothing(tmp_path: Path) -> None:
    files = {"root/ant/a.png": png(grey()), "root/bee/b.png": png(grey())}
    links = {"root/again": "ant", "root/here": ".", "root/notes.txt": "/elsewhere"}
    images = open_images(tar(tmp_path / "a.tar", files, links), labelled=True)
    assert images.names == list(files)


@pytest.mark.parametrize("target", ["../gone.png", "x.png", "/etc/passwd"])
def test_a_link_to_nothing_in_the_tar_is_refused(target: str, tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"ant/a.png": png(grey())}, {"ant/x.png": target})
    with pytest.raises(InputError, match="leads to nothing in it"):
        open_images(path, labelled=True)


def test_a_file_with_two_names_in_a_tar_is_one_image(tmp_path: Path) -> None:
    path = tar(tmp_path / "a.tar", {"ant/b.png": png(grey())}, {"ant/a.png": "b.png"})
    assert open_images(path, labelled=True).names == ["ant/b.png"]


def test_folders_named_by_numbers_are_in_their_order(tmp_path: Path) -> None:
    """As a model of timm was trained on them, whatever file systems and other libraries say."""
    root = folders(tmp_path, *map(str, range(1000)))
    images = open_images(root, labelled=True)
    assert images.labels == [int(name.partition("/")[0]) for name in images.names]


def test_a_folder_of_shards_as_webdataset_writes_them(tmp_path: Path) -> None:
    for shard in range(3):
        files: dict[str, bytes] = {}
        for place in range(2):
            key = f"{2 * shard + place:08d}"
            files |= {f"{key}.jpg": png(grey(shard)), f"{key}.cls": b"%d" % (10 * shard + place)}
            files |= {f"{key}.json": b'{"caption": "x"}'}
        write_tar(tmp_path / f"shard-{shard:06d}.tar", files)
    images = open_images(tmp_path, labelled=True)
    assert images.names[2] == "shard-000001.tar/00000002.jpg"
    assert (images.labels, images.num_classes) == ([0, 1, 10, 11, 20, 21], None)
    assert np.asarray(images.read(4))[0, 0, 0] == 2


def test_a_shard_without_labels_is_refused(tmp_path: Path) -> None:
    write_tar(tmp_path / "shard-000000.tar", {"0.jpg": png(grey()), "0.cls": b"0"})
    write_tar(tmp_path / "shard-000001.tar", {"1.jpg": png(grey()), "1.json": b'{"label": 3}'})
    with pytest.raises(InputError, match=r"shard-000001\.tar/1\.jpg has no label"):
        open_images(tmp_path, labelled=True)


def test_a_folder_of_shards(tmp_path: Path) -> None:
    write_tar(tmp_path / "s-1.tar", {"0.png": png(grey(1)), "0.cls": b"bee"})
    write_tar(tmp_path / "s-0.tar", {"0.png": png(grey(0)), "0.cls": b"ant"})
    images = open_images(tmp_path, labelled=True)
    assert images.names == ["s-0.tar/0.png", "s-1.tar/0.png"]
    assert images.labels == [0, 1]
    assert images.read(1).getpixel((0, 0)) == (1, 1, 1)
