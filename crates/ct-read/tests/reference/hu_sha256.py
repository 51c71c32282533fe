"""SHA-256 of the CT numbers of every DICOM file of the test data, by pydicom.

    python hu_sha256.py DATA > hu_sha256.json

Needs pydicom, numpy, pylibjpeg, pylibjpeg-libjpeg, pylibjpeg-openjpeg.
HU = RescaleSlope * stored + RescaleIntercept, computed in float64, stored as
float32 little endian, row by row. Keys are the SHA-256 of the files, so that
neither names nor pixels of the data get into the repository.
"""
import hashlib
import json
import pathlib
import sys

import numpy
import pydicom

FOLDERS = ["lungfcp-01-0001/dicom", "covid-ct-md-P002/dicom", "dicom-syntaxes", "totalsegmentator-ct/dicom"]
CT = {"1.2.840.10008.5.1.4.1.1.2", ""}

hashes = {}
for folder in FOLDERS:
    for path in sorted((pathlib.Path(sys.argv[1]) / folder).rglob("*")):
        if not path.is_file() or path.suffix == ".txt":
            continue
        content = path.read_bytes()
        data = pydicom.dcmread(path, force=True)
        if str(data.get("SOPClassUID", "")) not in CT or "RescaleSlope" not in data:
            continue
        hu = float(data.RescaleSlope) * data.pixel_array.astype(numpy.float64) + float(data.RescaleIntercept)
        hashes[hashlib.sha256(content).hexdigest()] = {
            "transfer_syntax": str(data.file_meta.TransferSyntaxUID),
            "hu_sha256": hashlib.sha256(hu.astype("<f4").tobytes()).hexdigest(),
        }
json.dump(dict(sorted(hashes.items())), sys.stdout, indent=1)
print()
