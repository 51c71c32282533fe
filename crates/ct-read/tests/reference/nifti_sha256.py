"""SHA-256 of the CT numbers of every NIfTI file of the test data, by nibabel.

    python nifti_sha256.py DATA > nifti_sha256.json

Needs nibabel and numpy. HU = get_fdata() in float64, turned to the closest
canonical orientation (right, anterior, superior) and then to axial slices as
radiologists look at them: slices upwards, rows to the back, columns to the
patient's left; stored as float32 little endian. Keys are the SHA-256 of the
files, so that neither names nor voxels of the data get into the repository.
"""
import hashlib
import json
import pathlib
import sys

import nibabel
import numpy

hashes = {}
for path in sorted(pathlib.Path(sys.argv[1]).rglob("*.nii.gz")):
    image = nibabel.as_closest_canonical(nibabel.load(path))
    axial = image.get_fdata().transpose(2, 1, 0)[:, ::-1, ::-1]
    step = image.affine[:3, 2]
    hashes[hashlib.sha256(path.read_bytes()).hexdigest()] = {
        "shape": list(axial.shape),
        "spacing_mm": [float(numpy.linalg.norm(image.affine[:3, axis])) for axis in (1, 0)],
        "step_mm": float(numpy.linalg.norm(step)),
        "lowest_mm": float(image.affine[2, 3]),
        "hu_sha256": hashlib.sha256(numpy.ascontiguousarray(axial, "<f4").tobytes()).hexdigest(),
    }
json.dump(dict(sorted(hashes.items())), sys.stdout, indent=1)
print()
