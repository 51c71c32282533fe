"""What nibabel makes of small volumes in many orientations and number types.

    python nifti_orientations.py > nifti_orientations.json

Needs nibabel and numpy. Each case states the affine it gives, as sform or
qform, the number type, slope and intercept, and the file itself (gzip, base64);
`axial` is the volume as nibabel reads it, cut as nifti_sha256.py says.
"""
import base64
import gzip
import itertools
import json
import sys

import nibabel
import numpy

SIDES = (3, 4, 5)
TYPES = ["u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f4", "<f8"]


def case(affine, dtype, form, slope, intercept, big):
    stored = (numpy.arange(numpy.prod(SIDES)) % 100).reshape(SIDES).astype(dtype)
    image = nibabel.Nifti1Image(stored, None, dtype=stored.dtype)
    header = image.header
    header.set_xyzt_units("mm")
    if form == "sform":
        header.set_sform(affine, 1)
        header.set_qform(numpy.eye(4), 0)
    else:
        header.set_qform(affine, 1)
        header.set_sform(None, 0)
    if big:
        header = header.as_byteswapped(">")
    header.set_data_dtype(stored.dtype)
    header["scl_slope"], header["scl_inter"] = slope, intercept
    header["magic"], header["vox_offset"] = b"n+1", 352
    voxels = stored.astype(stored.dtype.newbyteorder(">" if big else "<")).tobytes(order="F")
    content = header.binaryblock + bytes(4) + voxels
    read = nibabel.as_closest_canonical(nibabel.Nifti1Image.from_bytes(content))
    axial = read.get_fdata().transpose(2, 1, 0)[:, ::-1, ::-1].astype("<f4")
    return {
        "file_gz": base64.b64encode(gzip.compress(content, mtime=0)).decode(),
        "shape": list(axial.shape),
        "spacing_mm": [float(numpy.linalg.norm(read.affine[:3, axis])) for axis in (1, 0)],
        "step_mm": float(numpy.linalg.norm(read.affine[:3, 2])),
        "lowest_mm": float(read.affine[2, 3]),
        "axial": [float(value) for value in axial.ravel()],
    }


cases = []
for order in itertools.permutations(range(3)):
    for signs in itertools.product((1, -1), repeat=3):
        affine = numpy.eye(4)
        affine[:3, :3] = 0
        for axis in range(3):
            affine[order[axis], axis] = signs[axis] * (2.0, 3.0, 4.0)[axis]
        affine[:3, 3] = (-10.5, 20.25, -300.0)
        cases.append(case(affine, "<i2", "sform", 1, -1024, False))
        cases.append(case(affine, "<i2", "qform", 1, -1024, False))
axial = numpy.diag([-0.7, -0.8, 5.0, 1.0])
for dtype in TYPES:
    for slope, intercept in [(1, 0), (0, 7), (float("nan"), 7), (2.5, -1000.3)]:
        cases.append(case(axial, dtype, "sform", slope, intercept, len(cases) % 2 == 1))
json.dump(cases, sys.stdout, indent=None, separators=(",", ":"))
print()
