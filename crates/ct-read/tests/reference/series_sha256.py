"""Every real series of the test data as one volume, by pydicom.

    python series_sha256.py DATA > series_sha256.json

Needs pydicom, numpy, pylibjpeg, pylibjpeg-libjpeg, pylibjpeg-openjpeg.
`hu_sha256` is over the CT numbers of all slices, feet to head, each in the usual view (columns
to the patient's left, rows to posterior), as 16 bits little endian.
Values below -1500 HU, which are filling, count as -1024.
"""
import hashlib
import json
import pathlib
import sys

import numpy
import pydicom

SERIES = ["lungfcp-01-0001/dicom", "covid-ct-md-P002/dicom", "totalsegmentator-ct/dicom"] + [
    f"covid-ct-md-5/{case}" for case in ("P001", "cap001", "cap002", "normal001", "normal002")
]


def usual(data):
    hu = float(data.RescaleSlope) * data.pixel_array.astype(numpy.float64) + float(data.RescaleIntercept)
    across, down = numpy.array(data.ImageOrientationPatient, float).reshape(2, 3)
    if abs(across[1]) > abs(across[0]):
        hu, across, down = hu.T, down, across
    hu = hu[:: -1 if down[1] < 0 else 1, :: -1 if across[0] < 0 else 1]
    hu = numpy.where(hu < -1500, -1024, hu)
    return numpy.clip(numpy.round(hu), -32768, 32767).astype("<i2")


volumes = {}
for name in SERIES:
    slices = []
    for path in (pathlib.Path(sys.argv[1]) / name).rglob("*"):
        if not path.is_file() or path.suffix == ".txt":
            continue
        data = pydicom.dcmread(path, force=True)
        normal = numpy.cross(*numpy.array(data.ImageOrientationPatient, float).reshape(2, 3))
        normal *= numpy.sign(normal[2])
        slices.append((float(normal @ numpy.array(data.ImagePositionPatient, float)), usual(data)))
    slices.sort(key=lambda entry: entry[0])
    digest = hashlib.sha256()
    for _, hu in slices:
        digest.update(hu.tobytes())
    volumes[name] = {
        "n_slices": len(slices),
        "lowest_mm": slices[0][0],
        "highest_mm": slices[-1][0],
        "hu_sha256": digest.hexdigest(),
    }
json.dump(volumes, sys.stdout, indent=1)
print()
