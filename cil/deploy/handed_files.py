"""The files that a whole model is handed on as: how each is made, run, and asked what it holds."""

from __future__ import annotations

import importlib.util
import io
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol, cast

import numpy as np
import torch

from cil.deploy.whole import first_line
from cil.errors import UserError
from cil.units import show

KEY = "cil"  # under which a file says what it holds
INPUT, OUTPUT = "images", "scores"
LARGEST = 2**31 - 1  # bytes of an ONNX file that has all its tensors inside

Answer = Callable[[np.ndarray], np.ndarray]  # uint8 (N, H, W, C) -> float32 (N, K)


class Format(Protocol):
    """One kind of file."""

    def check(self) -> None:
        """Refuse where a package that it needs is not installed."""
        ...

    def made(self, program: Any, told: str) -> bytes:
        """The file of a ``torch.export.ExportedProgram`` that says this of itself."""
        ...

    def opened(self, data: bytes) -> Answer:
        """The file at work."""
        ...

    def told(self, path: Path) -> str:
        """What a file says of itself; KeyError where it says nothing."""
        ...


class Onnx:
    """One ONNX file, which onnxruntime and others run without torch and without this program."""

    def check(self) -> None:
        """Refuse where a package that it needs is not installed."""
        missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(
                f'an ONNX file needs the package {missing[0]}; install the extra: pip install "cil-framework[export]"'
            )

    def made(self, program: Any, told: str) -> bytes:
        """The file of a ``torch.export.ExportedProgram`` that says this of itself."""
        size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
        if size > LARGEST:
            raise UserError(
                f"an ONNX file holds {show(LARGEST)} at most, and this model needs {show(size)}; legal: .pt2"
            )
        options: dict[str, Any] = {"input_names": [INPUT], "output_names": [OUTPUT], "external_data": False}
        try:
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the exporter about itself
                proto = cast(Any, torch.onnx.export(program, (), dynamo=True, verbose=False, **options)).model_proto
        except Exception as error:  # whatever the exporter meets that ONNX has no operation for
            raise UserError(f"ONNX has no operation for a part of this model: {first_line(error)}") from error
        del proto.graph.value_info[:]  # shapes in between, which follow from the others
        for value in (*proto.graph.input, *proto.graph.output):
            value.type.tensor_type.shape.dim[0].dim_param = "N"
            del value.metadata_props[:]
        for node in proto.graph.node:
            del node.metadata_props[:]
        proto.metadata_props.add(key=KEY, value=told)
        return proto.SerializeToString()

    def opened(self, data: bytes) -> Answer:
        """The file at work."""
        import onnxruntime

        session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
        return lambda images: session.run([OUTPUT], {INPUT: images})[0]

    def told(self, path: Path) -> str:
        """What a file says of itself; KeyError where it says nothing."""
        self.check()
        import onnx

        return {one.key: one.value for one in onnx.load(path, load_external_data=False).metadata_props}[KEY]


class Torch:
    """One archive of ``torch.export``, which torch runs without this program; nothing in it is unpickled here."""

    def check(self) -> None:
        """Refuse where a package that it needs is not installed."""

    def made(self, program: Any, told: str) -> bytes:
        """The file of a ``torch.export.ExportedProgram`` that says this of itself."""
        file = io.BytesIO()
        torch.export.save(program, file, extra_files={KEY: told})
        return file.getvalue()

    def opened(self, data: bytes) -> Answer:
        """The file at work."""
        net = torch.export.load(io.BytesIO(data)).module()
        return lambda images: net(torch.from_numpy(images)).numpy(force=True)

    def told(self, path: Path) -> str:
        """What a file says of itself; KeyError where it says nothing."""
        with zipfile.ZipFile(path) as archive:
            found = [name for name in archive.namelist() if name.endswith(f"/{KEY}") and "/extra" in name]
            if not found:
                raise KeyError(KEY)
            return archive.read(found[0]).decode()


FORMATS: dict[str, Format] = {".onnx": Onnx(), ".pt2": Torch()}


def format_of(path: Path) -> Format:
    """What a file is, by its ending.

    Raises:
        UserError: another ending than ``.onnx`` and ``.pt2``.
    """
    if path.suffix not in FORMATS:
        raise UserError(
            f"{path} must end in {' or '.join(FORMATS)}; a file that this program reads again, .safetensors, is "
            "written by Model.save"
        )
    return FORMATS[path.suffix]
