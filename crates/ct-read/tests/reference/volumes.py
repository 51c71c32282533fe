"""What nibabel and SimpleITK make of small volumes in NIfTI-2, pairs of files, MetaImage and NRRD.

    python volumes.py > volumes.json

Needs nibabel, SimpleITK and numpy. Each case has its files (gzip, base64), of which the first is
the one to read; `axial` is the volume as the library reads it, in the usual view: slices feet to
head, rows to posterior, columns to the patient's left.
"""
import base64
import gzip
import itertools
import json
import pathlib
import sys
import tempfile
import zlib

import nibabel
import numpy
import SimpleITK

SIDES = (3, 4, 5)
TYPES = ["u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f4", "f8"]
SPACING = (2.0, 3.0, 4.0)
ORIGIN = (-10.5, 20.25, -300.0)
cases = []


def stored(dtype="i2"):
    return (numpy.arange(numpy.prod(SIDES)) % 100).reshape(SIDES).astype(dtype)


def directions():
    """All orders and signs of the axes, and a turn about the body's axis; columns are axes."""
    for order in itertools.permutations(range(3)):
        for signs in itertools.product((1, -1), repeat=3):
            matrix = numpy.zeros((3, 3))
            for axis in range(3):
                matrix[order[axis], axis] = signs[axis]
            yield matrix
    c, s = numpy.cos(0.2), numpy.sin(0.2)
    yield numpy.array([[c, -s, 0], [s, c, 0], [0, 0, 1]])


def add(folder, names, reader):
    shape, spacing, step, lowest, axial = reader(folder / names[0])
    pack = lambda name: base64.b64encode(gzip.compress((folder / name).read_bytes(), mtime=0)).decode()
    cases.append(
        {
            "files": {name: pack(name) for name in names},
            "first": names[0],
            "shape": [int(side) for side in shape],
            "spacing_mm": [float(mm) for mm in spacing],
            "step_mm": float(step),
            "lowest_mm": float(lowest),
            "axial": [float(value) for value in axial.ravel()],
        }
    )


def by_nibabel(path):
    read = nibabel.as_closest_canonical(nibabel.load(path))
    axial = read.get_fdata().transpose(2, 1, 0)[:, ::-1, ::-1].astype("<f4")
    length = lambda axis: numpy.linalg.norm(read.affine[:3, axis])
    return axial.shape, (length(1), length(0)), length(2), read.affine[2, 3], axial


def by_itk(path):
    read = SimpleITK.DICOMOrient(SimpleITK.ReadImage(str(path)), "LPS")
    axial = SimpleITK.GetArrayFromImage(read).astype("<f4")
    col, row, step = read.GetSpacing()
    return axial.shape, (row, col), step, read.GetOrigin()[2], axial


def image(matrix, dtype="i2"):
    # ITK's arrays have the fastest axis last.
    made = SimpleITK.GetImageFromArray(stored(dtype).transpose(2, 1, 0).copy())
    made.SetDirection(matrix.ravel())
    made.SetSpacing(SPACING)
    made.SetOrigin(ORIGIN)
    return made


with tempfile.TemporaryDirectory() as name:
    folder = pathlib.Path(name)
    # NIfTI-2, and pairs of either version.
    for i, matrix in enumerate(directions()):
        kind = (nibabel.Nifti2Image, nibabel.Nifti1Pair, nibabel.Nifti2Pair)[i % 3]
        affine = numpy.eye(4)
        affine[:3, :3] = matrix @ numpy.diag(SPACING)
        affine[:3, 3] = ORIGIN
        made = kind(stored(), None)
        header = made.header
        header.set_xyzt_units("mm")
        form = "sform" if i % 2 else "qform"
        getattr(made, "set_" + form)(affine, 1)
        header.set_slope_inter(*((1, -1024) if i % 4 else (2.5, -1000.3)))
        names = ["volume.nii"] if kind is nibabel.Nifti2Image else ["volume.hdr", "volume.img"]
        if i % 5 == 0 and len(names) == 2:
            nibabel.save(made, folder / "volume.img.gz")
            names = ["volume.hdr.gz", "volume.img.gz"]
        else:
            nibabel.save(made, folder / names[0])
        add(folder, names, by_nibabel)
        for path in folder.iterdir():
            path.unlink()
    for dtype in TYPES:
        big = stored(dtype).astype(numpy.dtype(dtype).newbyteorder(">"))
        made = nibabel.Nifti2Image(big, numpy.diag([-0.7, -0.8, 5.0, 1.0]), dtype=big.dtype)
        header = made.header.as_byteswapped(">")
        header.set_data_dtype(big.dtype)
        header["scl_slope"], header["scl_inter"] = (2.5, -1000.3) if len(cases) % 2 else (float("nan"), 0)
        header["magic"], header["vox_offset"] = b"n+2\x00\r\n\x1a\n", 544
        (folder / "volume.nii").write_bytes(header.binaryblock + bytes(4) + big.tobytes(order="F"))
        add(folder, ["volume.nii"], by_nibabel)
    # MetaImage and NRRD as ITK writes them.
    for i, matrix in enumerate(directions()):
        for extension, data in ((".mha", None), (".mhd", (".raw", ".zraw")), (".nrrd", None)):
            compressed = i % 2 == 1
            SimpleITK.WriteImage(image(matrix), str(folder / ("volume" + extension)), compressed)
            names = ["volume" + extension] + (["volume" + data[compressed]] if data else [])
            add(folder, names, by_itk)
    for dtype in TYPES:
        for extension in (".mha", ".nrrd"):
            SimpleITK.WriteImage(image(numpy.eye(3), dtype), str(folder / ("volume" + extension)), dtype == "i4")
            add(folder, ["volume" + extension], by_itk)
    # What others write, and ITK reads.
    values = stored().tobytes(order="F")
    swapped = stored().astype(">i2").tobytes(order="F")
    meta = """ObjectType = Image
NDims = 3
BinaryData = True
BinaryDataByteOrderMSB = {big}
TransformMatrix = 1 0 0 0 -1 0 0 0 1
Offset = -10.5 20.25 -300
ElementSpacing = 2 3 4
DimSize = 3 4 5
ElementType = MET_SHORT
{more}ElementDataFile = {data}
"""
    crafted = [
        (meta.format(big="True", more="", data="LOCAL"), swapped, None),
        (meta.format(big="False", more="HeaderSize = -1\n", data="x.raw"), None, bytes(77) + values),
        (meta.format(big="False", more="HeaderSize = 19\n", data="x.raw"), None, bytes(19) + values),
        (meta.format(big="False", more="CompressedData = True\n", data="x.zraw"), None, zlib.compress(values)),
        (meta.format(big="False", more="", data="LOCAL").replace("\n", "\r\n"), values, None),
    ]
    for text, behind, beside in crafted:
        (folder / "volume.mhd").write_bytes(text.encode() + (behind or b""))
        names = ["volume.mhd"]
        if beside:
            names.append("x.zraw" if "zraw" in text else "x.raw")
            (folder / names[1]).write_bytes(beside)
        add(folder, names, by_itk)
    nrrd = """NRRD0004
# a comment: with a colon
type: short
dimension: 3
space: {space}
sizes: 3 4 5
space directions: (2,0,0) (0,-3,0) (0,0,4)
kinds: domain domain domain
endian: {endian}
encoding: {encoding}
space origin: (-10.5,20.25,-300)
note:=of a program
{more}
"""
    crafted = [
        ("left-posterior-superior", "big", "raw", "", swapped, None),
        ("right-anterior-superior", "little", "gzip", "", gzip.compress(values, mtime=0), None),
        ("LAS", "little", "raw", "", values, None),
        ("RAS", "little", "raw", "data file: x.raw\n", None, values),
        ("LPS", "little", "gz", "data file: ./x.raw.gz\n", None, gzip.compress(values, mtime=0)),
        ("LPS", "little", "raw", "byte skip: -1\ndata file: x.raw\n", None, bytes(50) + values),
        ("LPS", "little", "raw", "byte skip: 7\ndatafile: x.raw\n", None, bytes(7) + values),
    ]
    for space, endian, encoding, more, behind, beside in crafted:
        text = nrrd.format(space=space, endian=endian, encoding=encoding, more=more)
        if behind is None:
            text = text.rstrip("\n") + "\n"
        (folder / "volume.nhdr").write_bytes(text.encode() + (behind or b""))
        names = ["volume.nhdr"]
        if beside:
            names.append("x.raw.gz" if ".gz" in more else "x.raw")
            (folder / names[1]).write_bytes(beside)
        try:
            add(folder, names, by_itk)
        except RuntimeError as error:
            print(space, more, str(error)[-300:], file=sys.stderr)
json.dump(cases, sys.stdout, indent=None, separators=(",", ":"))
print()
