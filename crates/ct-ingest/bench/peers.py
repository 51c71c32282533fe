"""What people write today: DICOM series to a Parquet file of 224x224 lung-window slices.

    peers.py sitk-cv2|pydicom-pil|pydicom-pylibjpeg COHORT OUT.parquet [PROCESSES]

One thread a process; of several processes each takes the next case that is free. Series are ordered by position, HU come from the rescale, padding
becomes air. Neither hashes, masks, nor checks anything, which flatters them.
"""

import contextlib
import multiprocessing
import sys
from pathlib import Path

import numpy
import pyarrow
import pyarrow.parquet

SIDE = 224
SCHEMA = pyarrow.schema(
    [
        ("case_id", pyarrow.string()),
        ("slice_index", pyarrow.int32()),
        ("z_mm", pyarrow.float64()),
        ("pixels", pyarrow.binary(SIDE * SIDE)),
    ]
)


def windowed(hu):
    return numpy.clip(numpy.rint((hu + 1350) * (255 / 1500)), 0, 255).astype(numpy.uint8)


def with_simpleitk(case):
    import cv2
    import SimpleITK

    cv2.setNumThreads(1)
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    reader = SimpleITK.ImageSeriesReader()
    reader.SetFileNames(SimpleITK.ImageSeriesReader.GetGDCMSeriesFileNames(str(case)))
    image = reader.Execute()
    volume = SimpleITK.GetArrayViewFromImage(image)
    lowest, step = image.GetOrigin()[2], image.GetSpacing()[2]
    for i, hu in enumerate(volume):
        grey = windowed(hu.astype(numpy.float32))
        yield lowest + i * step, cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)


def with_pydicom(case):
    import pydicom
    from PIL import Image

    slices = [pydicom.dcmread(path) for path in case.glob("*.dcm")]
    row, column = numpy.array(slices[0].ImageOrientationPatient, float).reshape(2, 3)
    normal = numpy.cross(row, column)
    height = lambda s: float(normal @ numpy.array(s.ImagePositionPatient, float))  # noqa: E731
    for s in sorted(slices, key=height):
        stored = s.pixel_array.astype(numpy.float32)
        hu = stored * float(s.RescaleSlope) + float(s.RescaleIntercept)
        if "PixelPaddingValue" in s:
            hu[stored == s.PixelPaddingValue] = -1024
        picture = Image.fromarray(windowed(hu)).resize((SIDE, SIDE), Image.BILINEAR)
        yield height(s), numpy.asarray(picture)


# pydicom finds pylibjpeg's decoders by itself.
SLICES_OF = {"sitk-cv2": with_simpleitk, "pydicom-pil": with_pydicom, "pydicom-pylibjpeg": with_pydicom}


def rows_of(task):
    tool, case = task
    return [(case.name, i, z, grey.tobytes()) for i, (z, grey) in enumerate(SLICES_OF[tool](case))]


def main(tool, cohort, out, processes="1"):
    tasks = [(tool, path) for path in sorted(Path(cohort).iterdir()) if path.is_dir()]
    with contextlib.ExitStack() as stack:
        several = int(processes) > 1
        pool = stack.enter_context(multiprocessing.Pool(int(processes))) if several else None
        writer = pyarrow.parquet.ParquetWriter(out, SCHEMA, compression="zstd", compression_level=1)
        stack.enter_context(writer)
        for rows in pool.imap(rows_of, tasks) if several else map(rows_of, tasks):
            columns = [pyarrow.array(column, type=field.type) for column, field in zip(zip(*rows), SCHEMA)]
            writer.write_table(pyarrow.table(columns, schema=SCHEMA))


if __name__ == "__main__":
    main(*sys.argv[1:])
