"""Cohorts for the benchmark, from a synthetic one.

    inputs.py SOURCE OUT N_SLICES native|rle|jpeg-lossless|jpeg-ls|jpeg-2000

Series of SOURCE are written again and again, each copy as another patient, study and series
with its pixels moved sideways, until there are at least N_SLICES slices.
"""

import csv
import hashlib
import sys
from pathlib import Path

import numpy
import pydicom
from pydicom.uid import JPEG2000Lossless, RLELossless


def uid(*parts):
    return "2.25." + str(int(hashlib.sha256(" ".join(map(str, parts)).encode()).hexdigest()[:30], 16))


def with_gdcm(path, name):
    import gdcm

    reader = gdcm.ImageReader()
    reader.SetFileName(str(path))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(getattr(gdcm.TransferSyntax, name)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFileName(str(path))
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    assert writer.Write()


def write(source, target, copy, name, syntax):
    slice_ = pydicom.dcmread(source)
    pixels = numpy.roll(slice_.pixel_array, 3 * copy, axis=1)
    slice_.PixelData = pixels.tobytes()
    slice_.PatientID = name
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        slice_[keyword].value = uid(slice_[keyword].value, copy)
    slice_.file_meta.MediaStorageSOPInstanceUID = slice_.SOPInstanceUID
    if syntax == "rle":
        slice_.compress(RLELossless, generate_instance_uid=False)
    elif syntax == "jpeg-2000":
        slice_.compress(JPEG2000Lossless, generate_instance_uid=False)
    slice_.save_as(target, enforce_file_format=True)
    if syntax == "jpeg-lossless":
        with_gdcm(target, "JPEGLosslessProcess14_1")
    elif syntax == "jpeg-ls":
        with_gdcm(target, "JPEGLSLossless")


def main(source, out, n_slices, syntax):
    source, out = Path(source), Path(out)
    labels = {row["case_id"]: row["label"] for row in csv.DictReader(open(source / "labels.csv"))}
    made, copy, table = 0, 0, []
    while made < int(n_slices):
        for case, label in sorted(labels.items()):
            if made >= int(n_slices):
                break
            name = f"{case}-{copy}"
            (out / name).mkdir(parents=True, exist_ok=True)
            for path in sorted((source / case).glob("*.dcm")):
                write(path, out / name / path.name, copy, name, syntax)
                made += 1
            table.append((name, label))
        copy += 1
    with open(out / "labels.csv", "w", newline="") as file:
        csv.writer(file).writerows([("case_id", "label"), *table])
    print(f"{made} slices in {out}", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
