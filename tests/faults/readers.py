"""Bad images, products, tables of bands and labels: damaged, senseless, too large, and of somebody hostile."""

import io
import json
import pickle
import random
import re
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import h5py
import numpy as np
import rasterio
import scipy.io
from small_layouts import write_layout
from small_products import FWHM, NAME, WAVELENGTHS, small_cube, write_small_product
from spectrometer_files import DESIS_NAME, EMIT_NAME, PRISMA_NAME

from datasets_loading.files import fingerprint
from datasets_loading.scenes import open_scene
from faults.harness import Fault, good_folder

Change = Callable[[Path], object]

DESIS_PARTS = ("METADATA.xml", "SPECTRAL_IMAGE.tif")
# What is opened of each format, and the files of it that can be damaged
FORMATS = {
    "GeoTIFF": ("scene.tif", ("scene.tif",)),
    "ENVI": ("scene.hdr", ("scene.hdr", "scene.img")),
    "JPEG 2000": ("scene.jp2", ("scene.jp2", "wavelengths.txt")),
    "EnMAP folder": (NAME, tuple(f"{NAME}/{NAME}-{part}" for part in ("METADATA.XML", "SPECTRAL_IMAGE.TIF"))),
    "EnMAP ZIP": (f"{NAME}.ZIP", (f"{NAME}.ZIP",)),
    "EnMAP item": ("item.json", ("item.json",)),
    "PRISMA": (PRISMA_NAME, (PRISMA_NAME,)),
    "EMIT": (EMIT_NAME, (EMIT_NAME,)),
    "DESIS": (
        DESIS_NAME,
        tuple(f"{DESIS_NAME}/{DESIS_NAME}-{part}" for part in DESIS_PARTS),
    ),
    "MATLAB 5": ("scene.mat", ("scene.mat", "wavelengths.txt")),
    "MATLAB 7.3": ("scene.mat", ("scene.mat",)),
    "npy": ("scene.npy", ("scene.npy", "wavelengths.txt")),
    "npz": ("scene.npz", ("scene.npz",)),
    "HDF5": ("scene.h5", ("scene.h5",)),
}


@cache
def good(kind: str) -> Path:
    """A folder with a good image of a format, made once."""
    folder = good_folder() / "image"
    cube = small_cube()[:, :40, 30:80]
    if kind == "product":
        quality = {"cloud": np.zeros(cube.shape[1:], dtype=np.uint8)}
        write_small_product(folder, cube=cube, quality=quality)
        return folder
    product = good("product") / NAME
    if kind in ("EnMAP folder", "EnMAP ZIP"):
        write_layout("portal folder" if kind == "EnMAP folder" else "portal ZIP", product, folder)
    elif kind in ("GeoTIFF", "ENVI", "PRISMA", "EMIT", "DESIS"):
        write_layout(kind, product, folder)
    else:
        folder.mkdir()
        _write_array(kind, folder, cube)
    return folder


def _write_array(kind: str, folder: Path, cube: np.ndarray) -> None:
    image = cube.transpose(1, 2, 0)
    bands = {"wavelength": WAVELENGTHS, "fwhm": FWHM}
    lines = [f"{center:.3f} {width:.3f}" for center, width in zip(WAVELENGTHS, FWHM, strict=True)]
    if kind in ("npy", "MATLAB 5", "JPEG 2000"):
        (folder / "wavelengths.txt").write_text("\n".join(lines) + "\n")
    if kind == "npy":
        np.save(folder / "scene.npy", image)
    elif kind == "npz":
        np.savez_compressed(folder / "scene.npz", image=image, **bands)
    elif kind == "MATLAB 5":
        scipy.io.savemat(folder / "scene.mat", {"image": image}, do_compression=True)
    elif kind == "JPEG 2000":
        profile = {"driver": "JP2OpenJPEG", "count": len(cube), "height": cube.shape[1], "width": cube.shape[2]}
        with rasterio.open(
            folder / "scene.jp2", "w", dtype="int16", nodata=-32768, QUALITY="100", REVERSIBLE="YES", **profile
        ) as dataset:
            dataset.write(cube)
    elif kind in ("MATLAB 7.3", "HDF5"):
        with h5py.File(folder / FORMATS[kind][0], "w") as file:
            file["image"] = image.T if kind == "MATLAB 7.3" else image
            for name, values in bands.items():
                file[name] = values
    else:
        shutil.copytree(good("product") / NAME, folder, dirs_exist_ok=True)
        (folder / f"{NAME}-METADATA.XML").unlink()
        write_item(folder)


def write_item(folder: Path, name: str = "item.json", **changes: object) -> None:
    """A STAC item of the product in a folder; `changes` are put into its image."""
    bands = [
        {"name": str(band), "center_wavelength": center, "full_width_half_max": width}
        for band, (center, width) in enumerate(zip(WAVELENGTHS.tolist(), FWHM.tolist(), strict=True))
    ]
    image = {"href": f"{NAME}-SPECTRAL_IMAGE.TIF", "eo:bands": bands, "proj:shape": [40, 50]}
    classes = {"href": f"{NAME}-QL_QUALITY_CLASSES.TIF"}
    item = {
        "id": NAME,
        "properties": {"datetime": "2022-12-03T17:20:49Z", "view:sun_elevation": 38.5},
        "assets": {"image": {**image, **changes}, "quality_classes": classes},
    }
    (folder / name).write_text(json.dumps(item))


def copied(kind: str, change: Change, name: str) -> Change:
    """The good image of a format, one file of which is changed."""

    def make(folder: Path) -> None:
        shutil.copytree(good(kind), folder, dirs_exist_ok=True)
        change(folder / name)

    return make


def understand(folder: Path, name: str) -> str:
    """All that is read of a scene, as a digest."""
    with open_scene(folder / name) as scene:
        bands = [np.zeros(0) if values is None else values for values in (scene.wavelengths, scene.fwhm)]
        place = str((scene.crs, scene.transform, scene.shape, scene.valid_bands.tolist()))
        excluded = scene.read_excluded(kinds=("outside", "cloud"))
        return fingerprint(scene.read(), excluded, *bands, place)


def make_sense(folder: Path, name: str) -> str:
    """Nothing more than that what is read of a scene makes sense: one wrong digit in a file shows to nobody."""
    with open_scene(folder / name) as scene:
        scene.read()
        scene.valid_bands  # noqa: B018
        if scene.wavelengths is not None and not (np.diff(scene.wavelengths) > 0).all():
            return "wavelengths that do not ascend"
        if scene.fwhm is not None and not (scene.fwhm > 0).all():
            return "widths that are not positive"
        return "sense"


@cache
def good_digest(kind: str) -> str:
    return understand(good(kind), FORMATS[kind][0])


def damages() -> Iterator[tuple[str, Change, bool]]:
    """What happens to a file: on a disk, in a copy, by hand; and whether what is left has to be the same."""
    yield "missing", Path.unlink, True
    yield "empty", lambda path: path.write_bytes(b""), True
    for share in (0.02, 0.3, 0.9, 0.99):
        yield f"cut at {share:.0%}", partial(_cut, share=share), True
    yield "a byte less", lambda path: path.write_bytes(path.read_bytes()[:-1]), True
    yield "zeros at its end", partial(_blank, share=0.8), False
    for seed in range(4):
        yield f"bits flipped at its start, {seed}", partial(flip, seed=seed, share=0.05), False
        yield f"bits flipped, {seed}", partial(flip, seed=seed, share=1.0), False
    yield "a folder", lambda path: (path.unlink(), path.mkdir()), True
    yield "a link in a circle", lambda path: (path.unlink(), path.symlink_to(path.name)), True
    yield "a link to nothing", lambda path: (path.unlink(), path.symlink_to("nothing")), True
    yield "no text", lambda path: path.write_bytes(b"\xff\xfe\x00\x80" * 100), True
    yield "a web page", lambda path: path.write_text("<!DOCTYPE html><html>log in</html>"), True
    yield "a pickle", write_pickle, True


def _cut(path: Path, share: float) -> None:
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])


def _blank(path: Path, share: float) -> None:
    content = path.read_bytes()
    start = int(share * len(content))
    path.write_bytes(content[:start] + bytes(len(content) - start))


def flip(path: Path, seed: int, share: float) -> None:
    """Flips eight bits in the first part of a file."""
    generator, content = random.Random(seed), bytearray(path.read_bytes())
    for _ in range(8):
        content[generator.randrange(max(1, int(share * len(content))))] ^= 1 << generator.randrange(8)
    path.write_bytes(content)


class _Runs:
    """What runs something when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> tuple:
        return Path.touch, (self.path,)


def write_pickle(path: Path) -> None:
    """A pickle that touches a file above the folder that is tried; as an array of objects where arrays are."""
    place = next(parent for parent in path.parents if parent.name == "tried").parent / "executed"
    if path.suffix == ".npy":
        np.save(path, np.array([_Runs(place)], dtype=object), allow_pickle=True)
    elif path.suffix == ".npz":
        np.savez(path, image=np.array([_Runs(place)], dtype=object))
    else:
        path.write_bytes(pickle.dumps(_Runs(place)))


def edited(kind: str, pattern: str, replacement: str) -> Change:
    """The good image of a format, in a text file of which something else stands."""

    def change(path: Path) -> None:
        text, count = re.subn(pattern, replacement, path.read_text(), count=1, flags=re.DOTALL)
        assert count == 1, (kind, pattern)
        path.write_text(text)

    names = FORMATS[kind][1]
    return copied(kind, change, next((name for name in names if name.endswith((".hdr", ".xml", ".XML"))), names[-1]))


def senseless() -> Iterator[tuple[str, str, Change]]:
    """Metadata that are well-formed and cannot be: format, what is wrong, how it is made."""
    numbers = ("nan", "inf", "-inf", "1e400", "abc", "", "0", "-5")
    for value in numbers:
        for tag in ("wavelengthCenterOfBand", "FWHMOfBand", "GainOfBand"):
            yield "EnMAP folder", f"{tag} {value!r}", edited("EnMAP folder", f"<{tag}>[^<]*<", f"<{tag}>{value}<")
        for tag in ("widthOfOrthoScene", "heightOfOrthoScene"):
            yield "EnMAP folder", f"{tag} {value!r}", edited("EnMAP folder", f"<{tag}>[^<]*<", f"<{tag}>{value}<")
        for tag in ("wavelengthCenterOfBand", "wavelengthWidthOfBand", "gainOfBand"):
            yield "DESIS", f"{tag} {value!r}", edited("DESIS", f"<{tag}>[^<]*<", f"<{tag}>{value}<")
        for key in ("wavelength", "fwhm"):
            yield "ENVI", f"{key} {value!r}", edited("ENVI", rf"(\n{key} = {{)[^,]*,", rf"\g<1>{value},")
        for key in ("center_wavelength", "full_width_half_max", "enmap:gain_of_band"):
            yield "EnMAP item", f"{key} {value!r}", item_band(key, value)
        yield "npy", f"wavelength {value!r}", edited("npy", r"^[0-9.]+ ", f"{value} ")
        if value:
            yield "npy", f"width {value!r}", edited("npy", r"(?<= )[0-9.]+\n", f"{value}\n")
    for value in ("400", "-91", "nan", "", "low"):
        place = r"(<sunElevationAngle>.*?<center[^>]*>)[^<]*<"
        yield "EnMAP folder", f"sun elevation {value!r}", edited("EnMAP folder", place, rf"\g<1>{value}<")
    times = ("", "today", "2022-13-01", "2022-12-03T10:00:00+99:99", "0001-01-01T00:00:00+23:59", "9" * 5000)
    for value in times:
        place = "<startTime>[^<]*<"
        yield "EnMAP folder", f"time {value[:30]!r}", edited("EnMAP folder", place, f"<startTime>{value}<")
    for value in ("0", "-64", "1000000", "99999999999", "a", "1.5"):
        for key in ("lines", "samples", "bands", "header offset"):
            if not (key == "header offset" and value == "0"):
                yield "ENVI", f"{key} {value!r}", edited("ENVI", rf"\n{key}( *)= *\d+", f"\n{key} = {value}")
    for value in ("0", "99", "-1"):
        yield "ENVI", f"data type {value!r}", edited("ENVI", r"\ndata type = \d+", f"\ndata type = {value}")
    for key, value in (
        ("proj:shape", [0, 50]),
        ("proj:shape", [40.5, 50]),
        ("proj:shape", ["a", 50]),
        ("eo:bands", []),
    ):
        yield "EnMAP item", f"{key} {value}", item({key: value})
    for name, values in (("wavelength", -WAVELENGTHS), ("wavelength", WAVELENGTHS * 0), ("fwhm", -FWHM)):
        yield (
            "HDF5",
            f"{name} {values[0]:g}",
            hdf5(lambda file, name=name, values=values: file[name].write_direct(values)),
        )
    for name in ("scale_factor", "add_offset", "_FillValue"):
        for value in ("a", np.zeros(0), np.nan, [1, 2, 3]):
            if not (name == "_FillValue" and value is np.nan):
                change = lambda file, name=name, value=value: file["image"].attrs.update({name: value})  # noqa: E731
                yield "HDF5", f"{name} {value}", hdf5(change)
    for name, value in (
        ("List_Cw_Vnir", 5000.0),
        ("List_Fwhm_Swir", 0.0),
        ("L2ScaleVnirMax", np.nan),
        ("Epsg_Code", -1),
    ):
        yield "PRISMA", f"{name} {value}", hdf5(partial(_fill_attribute, name=name, value=value), "PRISMA")
    for name in ("wavelengths", "fwhm"):
        for value in (0.0, -1.0, np.nan, 1e30):
            yield "EMIT", f"{name} {value}", hdf5(partial(_fill, name=name, value=value), "EMIT")


def _fill_attribute(file: h5py.File, name: str, value: float) -> None:
    file.attrs[name] = np.full_like(file.attrs[name], value)


def _fill(file: h5py.File, name: str, value: float) -> None:
    file[f"sensor_band_parameters/{name}"][-1] = value


def item(image: dict[str, object]) -> Change:
    """The product of the good item, with one whose image states something else."""
    return copied("EnMAP item", lambda path: write_item(path.parent, **image), "item.json")


def item_band(key: str, value: object) -> Change:
    def change(path: Path) -> None:
        content = json.loads(path.read_text())
        content["assets"]["image"]["eo:bands"][3][key] = value
        path.write_text(json.dumps(content))

    return copied("EnMAP item", change, "item.json")


def hdf5(change: Callable[[h5py.File], object], kind: str = "HDF5") -> Change:
    """The good HDF5 file of a format, changed."""

    def apply(path: Path) -> None:
        with h5py.File(path, "r+") as file:
            change(file)

    return copied(kind, apply, FORMATS[kind][0])


def too_large() -> Iterator[tuple[str, str, Change]]:
    """Files that say they hold more than they do, or that take far more memory than room on the disk."""
    for name, shape in (("2**40 numbers", (2**14, 2**14, 2**12)), ("2**70 numbers", (2**30, 2**30, 12))):
        yield "npy", name, copied("npy", partial(_declare_npy, shape=shape), "scene.npy")
        yield "npz", name, copied("npz", partial(_declare_npz, shape=shape), "scene.npz")
    yield (
        "npz",
        "3 GB of zeros",
        copied("npz", partial(_declare_npz, shape=(2**14, 2**13, 12), zeros=2**24), "scene.npz"),
    )
    yield "npy", "a header without end", copied("npy", _write_long_header, "scene.npy")
    yield "HDF5", "a chunk of 3 GB", hdf5(partial(_declare_hdf5, shape=(2**15, 2**13, 12), chunks=(2**14, 2**13, 12)))
    yield "HDF5", "2**50 numbers", hdf5(partial(_declare_hdf5, shape=(2**25, 2**25, 12), chunks=(2**6, 2**6, 12)))
    yield "MATLAB 5", "2**40 numbers", copied("MATLAB 5", _declare_matlab, "scene.mat")
    for tiled in (False, True):
        yield "GeoTIFF", f"sparse, tiled {tiled}", copied("GeoTIFF", partial(_write_sparse, tiled=tiled), "scene.tif")
    for name, text in (("elements", b"<a/>"), ("text", b"a"), ("depth", b"<a>")):
        content = partial(_write_bomb, text=text)
        yield "EnMAP ZIP", f"XML of much {name}", copied("EnMAP ZIP", content, f"{NAME}.ZIP")
        metadata = f"{NAME}/{NAME}-METADATA.XML"
        yield "EnMAP folder", f"XML of much {name}", copied("EnMAP folder", partial(_grow, text=text), metadata)
        yield "DESIS", f"XML of much {name}", copied("DESIS", partial(_grow, text=text), FORMATS["DESIS"][1][0])
    yield (
        "EnMAP ZIP",
        "XML packed by bzip2",
        copied("EnMAP ZIP", partial(_write_bomb, text=b"a", kind=12), f"{NAME}.ZIP"),
    )
    entities = '<!DOCTYPE a [<!ENTITY a "' + "b" * 10_000 + '">]><a>' + "&a;" * 100_000 + "</a>"
    for kind, name in (("EnMAP folder", FORMATS["EnMAP folder"][1][0]), ("DESIS", FORMATS["DESIS"][1][0])):
        yield kind, "XML of entities", copied(kind, lambda path: path.write_text(entities), name)
        outside = '<!DOCTYPE a [<!ENTITY a SYSTEM "../../precious.json">]><a>&a;</a>'
        yield kind, "XML of an entity outside", copied(kind, lambda path, text=outside: path.write_text(text), name)
    yield "ENVI", "a header of 2 GB", copied("ENVI", partial(_extend, size=2**31), "scene.hdr")
    yield "npy", "a sidecar of 2 GB", copied("npy", partial(_extend, size=2**31), "wavelengths.txt")
    yield "EnMAP item", "an item of 2 GB", copied("EnMAP item", partial(_extend, size=2**31), "item.json")
    yield "EnMAP item", "brackets", copied("EnMAP item", lambda path: path.write_text("[" * 100_000), "item.json")
    for ending in (".aux.xml", ".tfw", ".IMD"):
        name = "scene.tif.aux.xml" if ending == ".aux.xml" else f"scene{ending}"
        yield "GeoTIFF", f"{ending} of 2 GB", copied("GeoTIFF", partial(_extend, size=2**31), name)


def _npy_header(shape: tuple[int, ...]) -> bytes:
    header = f"{{'descr': '<i2', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header.encode()


def _declare_npy(path: Path, shape: tuple[int, ...]) -> None:
    path.write_bytes(_npy_header(shape) + bytes(1000))


def _declare_npz(path: Path, shape: tuple[int, ...], zeros: int = 1000) -> None:
    lines = {name: io.BytesIO() for name in ("wavelength", "fwhm")}
    for values, file in zip((WAVELENGTHS, FWHM), lines.values(), strict=True):
        np.save(file, values)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image.npy", _npy_header(shape) + bytes(zeros))
        for name, file in lines.items():
            archive.writestr(f"{name}.npy", file.getvalue())


def _write_long_header(path: Path) -> None:
    path.write_bytes(b"\x93NUMPY\x02\x00" + struct.pack("<I", 2**31) + b"{" * 1000)


def _declare_hdf5(file: h5py.File, shape: tuple[int, ...], chunks: tuple[int, ...]) -> None:
    del file["image"]
    file.create_dataset("image", shape, "i2", chunks=chunks, compression="gzip")


def _declare_matlab(path: Path) -> None:
    """The sizes of an array that is not compressed, in its header."""
    image = small_cube()[:, :40, 30:80].transpose(1, 2, 0)
    scipy.io.savemat(path, {"image": image})
    content, size = path.read_bytes(), struct.pack("<iii", *image.shape)
    assert content.count(size) == 1
    path.write_bytes(content.replace(size, struct.pack("<iii", 2**14, 2**14, 12)))


def _write_sparse(path: Path, tiled: bool) -> None:
    size = {"count": 12, "height": 40_000, "width": 40_000, "dtype": "int16", "interleave": "pixel"}
    layout = {"tiled": True} if tiled else {"blockysize": 40_000}
    with rasterio.open(path, "w", driver="GTiff", SPARSE_OK="TRUE", BIGTIFF="YES", **size, **layout):
        pass


def _write_bomb(path: Path, text: bytes, kind: int = zipfile.ZIP_DEFLATED) -> None:
    with zipfile.ZipFile(path, "w", kind) as archive:
        archive.writestr(f"{NAME}/{NAME}-METADATA.XML", b"<a>" + text * (60_000_000 // len(text)) + b"</a>")


def _grow(path: Path, text: bytes) -> None:
    path.write_bytes(b"<a>" + text * (60_000_000 // len(text)) + b"</a>")


def _extend(path: Path, size: int) -> None:
    """A file that begins as before, and takes no room on the disk for the rest."""
    with path.open("ab") as file:
        file.truncate(size)


def hostile() -> Iterator[tuple[str, str, Change]]:
    """Names and links that lead out of the folder, where a readable image is."""
    for name in ("../above/scene.tif", "/etc/passwd", "..\\above\\scene.tif", "/vsicurl/http://example.org/a.tif"):
        yield "EnMAP item", f"image at {name}", item({"href": name})
    for name in ("..", "../x", "a/b", "/etc/x", "x" * 5000, "a\tb", "c:x"):
        place = r"(<metadata>.*?<name>)[^<]*<"
        yield "EnMAP folder", f"the name {name[:20]!r}", edited("EnMAP folder", place, rf"\g<1>{name}<")
    yield (
        "EnMAP ZIP",
        "names that lead outside",
        copied("EnMAP ZIP", partial(_rename_entries, prefix="../"), f"{NAME}.ZIP"),
    )
    yield "EnMAP ZIP", "names from the root", copied("EnMAP ZIP", partial(_rename_entries, prefix="/"), f"{NAME}.ZIP")
    yield "HDF5", "a link to another file", hdf5(_link_outside)
    yield "HDF5", "numbers in another file", hdf5(_numbers_outside)
    yield "HDF5", "a virtual array", hdf5(_virtual)
    yield "EMIT", "a link to another file", hdf5(partial(_link_outside, name="reflectance"), "EMIT")
    xml = '<PAMDataset><Metadata domain="OVERVIEWS"><MDI key="OVERVIEW_FILE">../a.tif</MDI></Metadata></PAMDataset>'
    yield "GeoTIFF", "overviews outside", copied("GeoTIFF", lambda path: path.write_text(xml), "scene.tif.aux.xml")
    yield "GeoTIFF", "cut aux.xml", copied("GeoTIFF", lambda path: path.write_text(xml[:70]), "scene.tif.aux.xml")
    for kind, text in (("VRT", "<VRTDataset></VRTDataset>"), ("WMS", "<GDAL_WMS></GDAL_WMS>")):
        yield "GeoTIFF", f"a {kind}", copied("GeoTIFF", lambda path, text=text: path.write_text(text), "scene.tif")


def _rename_entries(path: Path, prefix: str) -> None:
    with zipfile.ZipFile(path) as archive:
        content = {f"{prefix}{entry}": archive.read(entry) for entry in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)


def _link_outside(file: h5py.File, name: str = "image") -> None:
    folder = Path(file.filename).parent
    shutil.copy(file.filename, folder / "other.h5")
    del file[name]
    file[name] = h5py.ExternalLink(str(folder / "other.h5"), f"/{name}")


def _numbers_outside(file: h5py.File) -> None:
    shape, secret = file["image"].shape, Path(file.filename).with_name("secret")
    secret.write_bytes(bytes(100_000))
    del file["image"]
    file.create_dataset("image", shape, "i2", external=[(str(secret), 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    shape, folder = file["image"].shape, Path(file.filename).parent
    shutil.copy(file.filename, folder / "other.h5")
    layout = h5py.VirtualLayout(shape, "i2")
    layout[:] = h5py.VirtualSource(str(folder / "other.h5"), "image", shape=shape)
    del file["image"]
    file.create_virtual_dataset("image", layout)


def faults() -> Iterator[Fault]:
    """All of them."""
    for kind, (opened, names) in FORMATS.items():
        for name in names:
            is_sidecar = name.endswith(".txt")
            for damage, change, is_same in damages():
                if is_sidecar and (damage in ("missing", "a link to nothing") or damage.startswith(("cut", "a byte"))):
                    continue  # without wavelengths an image is one all the same, and a digit less is a number, too
                read = partial(understand if is_same else make_sense, name=opened)
                right = good_digest(kind) if is_same else "sense"
                label, named = f"{kind}, {Path(name).suffix}: {damage}", name if is_sidecar else Path(opened).stem[:20]
                yield Fault(label, f"{kind}, damaged", copied(kind, change, name), read, right, named)
    for group, listed in (("senseless", senseless), ("too large", too_large), ("hostile", hostile)):
        for kind, what, make in listed():
            yield Fault(f"{kind}: {what}", group, make, partial(understand, name=FORMATS[kind][0]), None, "/tried/")
