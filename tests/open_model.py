"""Opens a safetensors file as any tool would, and prints its metadata keys and tensors.

With the package `safetensors` where it is installed; else by the format's documentation: eight
bytes with the length of the header, a JSON header, then the data without holes.
"""
import hashlib
import json
import struct
import sys

with open(sys.argv[1], "rb") as file:
    content = file.read()
(length,) = struct.unpack("<Q", content[:8])
header = json.loads(content[8 : 8 + length])
metadata = header.pop("__metadata__", {})
data = content[8 + length :]
tensors, end = {}, 0
for name, tensor in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
    start, stop = tensor["data_offsets"]
    assert start == end, f"a hole before {name}"
    end = stop
    digest = hashlib.sha256(data[start:stop]).hexdigest()
    tensors[name] = [tensor["dtype"], tensor["shape"], digest]
assert end == len(data), "bytes behind the last tensor"
assert all(isinstance(value, str) for value in metadata.values())
try:
    import safetensors
except ImportError:
    by = "the documentation"
else:
    by = "safetensors " + safetensors.__version__
    with safetensors.safe_open(sys.argv[1], framework="numpy") as file:
        assert file.metadata() == metadata
        for name in file.keys():
            value = file.get_tensor(name)
            assert list(value.shape) == tensors[name][1]
            assert hashlib.sha256(value.tobytes()).hexdigest() == tensors[name][2]
        assert set(file.keys()) == set(tensors)
print(json.dumps({"by": by, "metadata": sorted(metadata), "tensors": tensors}))
