"""File formats that hold arrays, read lazily."""

from .lazy_array import (
    DTYPES as DTYPES,
)
from .lazy_array import (
    FileRegion as FileRegion,
)
from .lazy_array import (
    Index as Index,
)
from .lazy_array import (
    InMemoryArray as InMemoryArray,
)
from .lazy_array import (
    LazyArray as LazyArray,
)
from .lazy_array import (
    MergedAxesArray as MergedAxesArray,
)
from .lazy_array import (
    arrays_equal as arrays_equal,
)
from .lazy_array import (
    full_index as full_index,
)
from .lazy_array import (
    read_array as read_array,
)
from .lazy_array import (
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
)
from .safetensors import (
    open_safetensors as open_safetensors,
)
from .snappy import (
    decompress_snappy as decompress_snappy,
)
from .snappy import (
    snappy_length as snappy_length,
)
from .tf_bundle import (
    newest_prefix as newest_prefix,
)
from .tf_bundle import (
    open_tf_bundle as open_tf_bundle,
)
from .zarr import (
    open_zarr_array as open_zarr_array,
)
from .zarr import (
    open_zarr_folder as open_zarr_folder,
)
from .zarr import (
    tensorstore_reason as tensorstore_reason,
)
