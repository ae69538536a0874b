"""Bad model folders, loaded as mapping and fine-tuning do, and bad checkpoints given to the converter."""

import io
import json
import os
import pickle
import random
import shutil
import struct
import sys
import tempfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from small_benchmarks import write_raster
from small_land_cover import CLASS_NAMES, WAVELENGTHS, small_cube, small_data, write_small_checkpoint

from faults.harness import Fault, digest, good_folder, losses
from hsst import convert_maskedsst_checkpoint, predict_scene
from hsst.convert_maskedsst_checkpoint import read_published_checkpoint
from hsst.experiments.baselines import build_network, starting_point
from hsst.support.training_settings import FineTuningSettings, ModelOptions

PARITY = Path(__file__).parents[1] / "fixtures" / "parity"
CHECKSUM_OF_ZEROS = 0x4DBDF21C  # CRC-32 of 2 GiB of them
CODE = "from pathlib import Path\nPath(__file__).parents[2].joinpath('executed').touch()\n"


@cache
def good() -> Path:
    """Model folders and a scene, made once."""
    folder = good_folder()
    write_small_checkpoint(folder / "classifier", class_names=CLASS_NAMES)
    write_small_checkpoint(folder / "pretrained")
    write_raster(
        folder / "scene.tif",
        small_cube()[0][:, :10, :12],
        band_tags=lambda band: {"wavelength": str(WAVELENGTHS[band]), "wavelength_units": "nanometers"},
        nodata=-32768,
    )
    return folder


def maps(folder: Path) -> str:
    """Maps a scene with the model in `folder / "given"`."""
    torch.set_num_threads(1)
    words = ["predict_scene.py", good() / "scene.tif", "--model", "given", "--output", "out/map.tif"]
    sys.argv = list(map(str, words))
    predict_scene.main()
    return (folder / "out" / "map_areas.json").read_text()


def fine_tunes(folder: Path) -> str:
    """Builds the network that fine-tuning starts with from the model in `folder / "given"`."""
    torch.set_num_threads(1)
    data, options = small_data(), ModelOptions("given", window_size=5)
    start = starting_point(data, options)
    settings = FineTuningSettings(use_cpu=True)
    network = build_network("hsst", data, settings, options, start, 5)
    state = {name: value.double().sum().item() for name, value in network.hsst.state_dict().items()}
    return f"{start.bands} {start.processor} {state}"


def converts(folder: Path) -> str:
    """Converts `folder / "given.pth"`."""
    sys.argv = ["convert_maskedsst_checkpoint.py", "--checkpoint", "given.pth", "--output", "out/model"]
    convert_maskedsst_checkpoint.main()
    return digest(folder / "out")


WAYS = {"mapping": ("classifier", maps), "fine-tuning": ("pretrained", fine_tunes)}


@cache
def right(way: str) -> str:
    """What is understood of a good folder; in a folder of its own, and in a process of its own."""
    kind, read = WAYS[way]
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(good() / kind, Path(place) / "given")
        answer, place_of_answer = Path(place) / "answer", Path(place)
        (place_of_answer / "out").mkdir()
        child = os.fork()
        if child == 0:
            os.chdir(place)
            answer.write_text(read(place_of_answer))
            os._exit(0)
        os.waitpid(child, 0)
        return answer.read_text()


def damages() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What happens to any file."""
    yield from losses()
    yield "a folder", lambda path: (path.unlink(), path.mkdir())
    yield "a pipe", lambda path: (path.unlink(), os.mkfifo(path))
    yield "a link in a circle", lambda path: (path.unlink(), path.symlink_to(path.name))
    yield "a link to nothing", lambda path: (path.unlink(), path.symlink_to("nothing"))
    yield "a link to an endless device", lambda path: (path.unlink(), path.symlink_to("/dev/zero"))
    yield "no text", lambda path: path.write_bytes(random.Random(0).randbytes(500))
    yield "a pickle", lambda path: path.write_bytes(attack(path.parents[2]))


def attack(place: Path, protocol: int = 2) -> bytes:
    """A pickle that leaves a trace."""
    return pickle.dumps(Touch(str(place / "executed")), protocol=protocol)


class Touch:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return os.system, (f"touch {self.path}",)


def json_texts() -> Iterator[tuple[str, bytes]]:
    yield "a list", b"[]"
    yield "a number", b"1"
    yield "null", b"null"
    yield "an empty object", b"{}"
    yield "brackets", b"[" * 100_000
    yield "a number of 10,000 digits", b'{"model_type": "hsst", "hidden_size": ' + b"9" * 10_000 + b"}"


def changed(name: str, **changes: object) -> Callable[[Path], None]:
    """Settings of a file of JSON become others."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        content.update(changes)
        (folder / name).write_text(json.dumps(content))

    return apply


def config_changes() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Changes of config.json that cannot be right."""
    sizes = ("hidden_size", "num_channels", "num_spatial_layers", "image_size", "band_patch_size", "head_dim")
    for name in (*sizes, "num_attention_heads", "intermediate_size", "patch_size"):
        for value in (10**12, 2**15, 10**9 + 1, "a", [], -1, 1.5, None):
            yield f"{name} is {value!r}", changed("config.json", **{name: value})
    for value in ("bert", "", None, 1, ["hsst"], "../hsst"):
        yield f"model_type is {value!r}", changed("config.json", model_type=value)
    for value in ("a", {"a": 1}, [1e400], ["a"], [1.0], [[1.0]], {}, [-5.0] * 12, [float("nan")] * 12):
        yield f"wavelengths are {value!r}"[:60], changed("config.json", wavelengths=value)
    for name in ("hidden_act", "position_embedding_type", "mask_type", "head_type", "dtype"):
        for value in ("os.system", 1, [], {"a": 1}):
            yield f"{name} is {value!r}", changed("config.json", **{name: value})
    for value in ([[0] * 4], [[99] * 4] * 3, "a", [["a"] * 4] * 3, [[0] * 4] * 100_000):
        yield f"block_bands are {value!r}"[:60], changed("config.json", block_bands=value)
    for name in ("quantization_config", "transformers_weights", "configuration_files", "attn_implementation"):
        for value in ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "../given/evil.safetensors", ["a"]):
            yield f"{name} is {value!r}"[:60], changed("config.json", **{name: value})
    yield "layer_norm_eps is no number", changed("config.json", layer_norm_eps="small")


def class_changes() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Changes of config.json that a map cannot be made with."""
    for value in (None, [], "HSSTModel", ["HSSTModel"], ["os.system"], [1], ["HSSTForMaskedImageModeling"]):
        yield f"architectures are {value!r}", changed("config.json", architectures=value)
    for value in ({"0": "a"}, {"a": "b"}, {"0": 1, "1": 2, "2": 3}, ["a"], {"1": "a", "2": "b", "3": "c"}):
        yield f"id2label is {value!r}", changed("config.json", id2label=value)
    yield "10**9 labels", changed("config.json", num_labels=10**9)
    yield "70,000 labels", changed("config.json", id2label={str(n): str(n) for n in range(70_000)})
    yield "a classifier of centers", changed("config.json", head_type="center")


def processor_changes() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Changes of preprocessor_config.json that cannot be right."""
    lists: tuple[object, ...] = ("a", [], {"a": 1}, ["a"] * 12, [1.0], [float("nan")] * 12, [1e400] * 12, [[1.0]] * 12)
    for name in ("image_mean", "image_std", "wavelengths"):
        for value in (*lists, 7, [True] * 12):
            yield f"{name} is {value!r}"[:60], changed("preprocessor_config.json", **{name: value})
    for name in ("image_std", "wavelengths"):
        for number in (0, -1.0):
            yield f"{name} is {number}", changed("preprocessor_config.json", **{name: [number] * 12})
    yield "other wavelengths", changed("preprocessor_config.json", wavelengths=[400.0 + band for band in range(12)])
    yield (
        "bands of another model",
        changed("preprocessor_config.json", wavelengths=[400.0] * 13, image_mean=[0.1] * 13, image_std=[0.1] * 13),
    )
    for name in ("scale", "wavelength_tolerance"):
        for value in (0, -1, "a", [], float("nan"), float("inf"), True):
            yield f"{name} is {value!r}", changed("preprocessor_config.json", **{name: value})
    for value in ("a", [], [1], [1, 0], [0, 1, 2], ["a", "b"], [0, float("nan")], {}):
        yield f"clip_range is {value!r}", changed("preprocessor_config.json", clip_range=value)
    for value in ("a", [], {}):
        yield f"nodata is {value!r}", changed("preprocessor_config.json", nodata=value)
    for value in ([99] * 12, ["a"] * 12, [0.5] * 12, [-1] * 12, "a", 7):
        yield (
            f"band_indices are {value!r}"[:60],
            changed("preprocessor_config.json", band_indices=value, num_source_bands=20),
        )
    for value in ("ViTImageProcessor", "os.system", 1, [], "HSSTForMaskedImageModeling"):
        yield f"image_processor_type is {value!r}", changed("preprocessor_config.json", image_processor_type=value)


def changed_weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / "model.safetensors"
        tensors = {name: value.clone() for name, value in load_file(path).items()}
        change(tensors)
        path.unlink()
        save_file(tensors, path, metadata={"format": "pt"})

    return apply


def declared(header: dict[str, object], content: bytes = b"") -> Callable[[Path], object]:
    text = json.dumps(header).encode()
    return lambda folder: (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + content)


def weight_changes() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """Weights that are not those of the model."""
    every = ("hsst.embeddings.patch_embeddings.weight", "hsst.spatial_layers.0.mlp.fc1.weight")
    for name in every:
        yield f"without {name}", changed_weights(lambda tensors, name=name: tensors.pop(name))
        for value in (float("nan"), float("inf")):
            yield (
                f"{name} holds {value}",
                changed_weights(lambda tensors, name=name, value=value: tensors[name].view(-1)[:1].fill_(value)),
            )
        yield (
            f"{name} of another shape",
            changed_weights(lambda tensors, name=name: tensors.update({name: tensors[name].flatten()[1:].clone()})),
        )
        yield (
            f"{name} turned",
            changed_weights(lambda tensors, name=name: tensors.update({name: tensors[name].mT.contiguous()[None]})),
        )
        for kind in (torch.int64, torch.bool, torch.uint8):
            yield (
                f"{name} of {kind}",
                changed_weights(lambda tensors, name=name, kind=kind: tensors.update({name: tensors[name].to(kind)})),
            )
    yield "no tensor", changed_weights(lambda tensors: tensors.clear())
    yield "a layer too many", changed_weights(add_layer)
    yield "every second tensor", changed_weights(halve)
    yield "10,000 tensors more", changed_weights(lambda tensors: tensors.update(many()))
    yield "a header of 2**60 bytes", lambda f: (f / "model.safetensors").write_bytes((2**60).to_bytes(8, "little"))
    yield "a tensor of 2**40 numbers", declared({"a": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}})
    yield (
        "offsets that overlap",
        declared({name: {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]} for name in "ab"}, b"\0" * 4),
    )
    for text, content in (
        ("beyond the folder", {"weight_map": {"a": "../../precious.json"}}),
        ("to nothing", {"weight_map": {"a": "model-00001-of-00001.safetensors"}}),
        ("to a pickle", {"weight_map": {"a": "part.bin"}}),
        ("without a map", {}),
        ("a list", []),
        ("to numbers", {"weight_map": {"a": 1}}),
    ):
        yield f"an index {text}", only_index(content)
    for name in ("pytorch_model.bin", "model.pth", "tf_model.h5", "flax_model.msgpack", "model.gguf"):
        yield f"a pickle {name} in place of weights", pickle_in_place(name)
    yield (
        "an adapter",
        lambda folder: (folder / "adapter_config.json").write_text(
            json.dumps({"base_model_name_or_path": "owner/model", "peft_type": "LORA"})
        ),
    )


def add_layer(tensors: dict[str, torch.Tensor]) -> None:
    layer = [name for name in tensors if name.startswith("hsst.spatial_layers.0.")]
    tensors.update({name.replace("layers.0", "layers.1"): tensors[name].clone() for name in layer})


def halve(tensors: dict[str, torch.Tensor]) -> None:
    for name in sorted(tensors)[::2]:
        tensors.pop(name)


def many() -> dict[str, torch.Tensor]:
    return {f"hsst.more.{number}": torch.zeros(1) for number in range(10_000)}


def only_index(content: object) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / "part.bin").write_bytes(attack(folder.parents[1]))
        (folder / "model.safetensors.index.json").write_text(json.dumps(content))

    return apply


def pickle_in_place(name: str) -> Callable[[Path], object]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").unlink()
        (folder / name).write_bytes(attack(folder.parents[1]))

    return apply


def additions() -> Iterator[tuple[str, Callable[[Path], object]]]:
    """What lies beside a good model and is none of its business."""
    modules = ("configuration_hsst", "modeling_hsst", "image_processing_hsst", "__init__", "pipeline_hsst", "torch")
    for name in modules:
        yield f"code {name}.py", lambda folder, name=name: (folder / f"{name}.py").write_text(CODE)

    def code_with_maps(folder: Path) -> None:
        (folder / "evil.py").write_text(CODE)
        names = ("AutoConfig", "AutoModel", "AutoModelForSemanticSegmentation", "AutoModelForMaskedImageModeling")
        changed("config.json", auto_map={name: "evil.Evil" for name in names})(folder)
        changed("preprocessor_config.json", auto_map={"AutoImageProcessor": "evil.Evil"})(folder)

    yield "code that auto maps name", code_with_maps
    yield (
        "code of a pipeline",
        lambda folder: (
            (folder / "evil.py").write_text(CODE),
            changed("config.json", custom_pipelines={"hyperspectral-scene-classification": {"impl": "evil.Evil"}})(
                folder
            ),
        ),
    )
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        yield f"a pickle {name}", lambda folder, name=name: (folder / name).write_bytes(attack(folder.parents[1]))
    yield "generation_config.json", lambda folder: (folder / "generation_config.json").write_text("[")
    yield "processor_config.json", lambda folder: (folder / "processor_config.json").write_text("[")
    yield "tokenizer_config.json", lambda folder: (folder / "tokenizer_config.json").write_text("[")
    yield "a setting nobody knows", changed("config.json", color="red")


def saved(content: object) -> bytes:
    stream = io.BytesIO()
    torch.save(content, stream)
    return stream.getvalue()


def zipped(parts: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return stream.getvalue()


def published_files() -> Iterator[tuple[str, Callable[[Path], bytes]]]:
    """Contents of a .pth."""
    settings = {"image_size": 8, "patch_size": 1, "band_patch_size": 10, "transformer_n_heads": 8}
    whole = saved({"model_state_dict": {"pos_embedding": torch.zeros(1, 65, 4)}, "config": settings})
    yield "empty", lambda place: b""
    yield "no file of torch", lambda place: b"weights"
    for share in (0.2, 0.6, 0.95):
        yield f"cut at {share:.0%}", lambda place, share=share: whole[: int(share * len(whole))]
    for protocol in (0, 2, 4):
        yield f"a pickle of protocol {protocol}", lambda place, protocol=protocol: attack(place, protocol)
    yield "a pickle in a zip", lambda place: saved({"model_state_dict": Touch(str(place / "executed")), "config": {}})
    yield "no weights", lambda place: saved({"model_state_dict": {}, "config": settings})
    yield "a list", lambda place: saved([1])
    yield "weights that are numbers", lambda place: saved({"model_state_dict": {"a": 1}, "config": settings})
    yield "settings that are a list", lambda place: saved({"model_state_dict": {}, "config": [1]})
    yield (
        "weights of another model",
        lambda place: saved({"model_state_dict": {"conv.weight": torch.zeros(3)}, "config": settings}),
    )
    for name in settings:
        for value in (10**12, "a", -1, 1.5, None):
            yield (
                f"{name} is {value!r}",
                lambda place, name=name, value=value: saved(
                    {"model_state_dict": {"pos_embedding": torch.zeros(1, 65, 4)}, "config": {**settings, name: value}}
                ),
            )
    yield (
        "a tensor of 2**34 bytes that are one",
        lambda place: saved({"model_state_dict": {"a": torch.zeros(1).expand(2**32)}, "config": settings}),
    )
    weights, own = read_published_checkpoint(PARITY / "pretrain_checkpoint_as_published.pth")
    name = max(weights, key=lambda name: weights[name].numel())
    for text, tensor in (
        ("one number in 4 GiB of places", torch.zeros(1).expand(2**30)),
        ("sparse", torch.zeros(2, 2).to_sparse()),
        ("of no numbers", torch.empty(2**40, device="meta")),
        ("NaN", torch.full_like(weights[name], float("nan"))),
        ("of another shape", torch.zeros(3)),
    ):
        yield (
            f"a weight that is {text}",
            lambda place, tensor=tensor: saved({"model_state_dict": {**weights, name: tensor}, "config": own}),
        )
    yield "2 GiB of zeros, packed", lambda place: bomb()
    yield "a zip of something else", lambda place: zipped({"a.txt": b"a"})
    yield "an ordered dictionary", lambda place: saved(OrderedDict(a=np.float64(1.0)))


@cache
def bomb() -> bytes:
    """A small file that unpacks to much: storages of a zip may be compressed."""
    plain = zipfile.ZipFile(io.BytesIO(saved({"model_state_dict": {"a": torch.zeros(2**20)}, "config": {}})))
    parts = {name: plain.read(name) for name in plain.namelist()}
    data = next(name for name in parts if "/data/" in name)
    # Packing 2 GiB takes seconds. A part that ends with a full flush can be packed once and repeated
    packer = zlib.compressobj(1, zlib.DEFLATED, -zlib.MAX_WBITS)
    part = packer.compress(bytes(2**24)) + packer.flush(zlib.Z_FULL_FLUSH)
    packed = part * 2**7 + packer.flush()
    stored = bytearray(zipped({**parts, data: packed}))
    # Both its entries, which end with its name, say that it is stored, and how large it is as it lies there
    for method in (stored.index(data.encode()) - 30 + 8, stored.rindex(data.encode()) - 46 + 10):
        struct.pack_into("<H", stored, method, zipfile.ZIP_DEFLATED)
        struct.pack_into("<L", stored, method + 6, CHECKSUM_OF_ZEROS)
        struct.pack_into("<L", stored, method + 14, 2**31)
    return bytes(stored)


def faults() -> Iterator[Fault]:
    """All of them."""
    for way, (kind, read) in WAYS.items():
        changes: dict[str, list[tuple[str, Callable[[Path], object]]]] = {"config.json": list(config_changes())}
        if way == "mapping":
            changes["config.json"] += class_changes()
        changes["preprocessor_config.json"] = list(processor_changes())
        changes["model.safetensors"] = list(weight_changes())
        for name, of_file in changes.items():
            of_file += [
                (damage, lambda folder, name=name, apply=apply: apply(folder / name)) for damage, apply in damages()
            ]
            if name.endswith(".json"):
                of_file += [
                    (text, lambda folder, name=name, content=content: (folder / name).write_bytes(content))
                    for text, content in json_texts()
                ]
            for text, apply in of_file:
                yield Fault(f"{name}: {text}", f"model, {way}", copied(kind, apply), read, None, "given")
        for text, apply in additions():
            yield Fault(text, f"model with more beside it, {way}", copied(kind, apply), read, right(way), "given")
    for text, content in published_files():

        def write(folder: Path, content=content) -> None:
            (folder / "given.pth").write_bytes(content(folder.parent))

        yield Fault(text, "published checkpoint, converted", write, converts, None, "given.pth")


def copied(kind: str, apply: Callable[[Path], object]) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        shutil.copytree(good() / kind, folder / "given")
        apply(folder / "given")

    return make
