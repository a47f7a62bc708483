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
    read_msgpack_tree as read_msgpack_tree,
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
from .shard_index import (
    is_plain_name as is_plain_name,
)
from .shard_index import (
    read_shard_index as read_shard_index,
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
