"""File formats that hold arrays, read lazily."""

from .lazy_array import (
    DTYPES as DTYPES,
    FileRegion as FileRegion,
    Index as Index,
    InMemoryArray as InMemoryArray,
    LazyArray as LazyArray,
    MergedAxesArray as MergedAxesArray,
    arrays_equal as arrays_equal,
    full_index as full_index,
    read_array as read_array,
    relative_index as relative_index,
)
from .msgpack import (
    open_msgpack_tree as open_msgpack_tree,
)
from .pytorch import (
    open_pytorch as open_pytorch,
)
from .safetensors import (
    SafetensorsWriter as SafetensorsWriter,
    open_safetensors as open_safetensors,
)
from .snappy import (
    decompress_snappy as decompress_snappy,
    snappy_length as snappy_length,
)
from .tf_bundle import (
    newest_prefix as newest_prefix,
    open_tf_bundle as open_tf_bundle,
)
from .zarr import (
    open_zarr_array as open_zarr_array,
    open_zarr_folder as open_zarr_folder,
    tensorstore_reason as tensorstore_reason,
)

__all__: list[str] = []
