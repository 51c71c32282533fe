"""Small compressed images of every codec, and what the codec's own library makes of them.

    python codec_streams.py > codec_streams.json

Needs imagecodecs (CharLS, OpenJPEG, OpenJPH, libjpeg-turbo, liblj92) and numpy.
`words` are the values after decoding, row by row, as 16 bits little endian in
base64, or their SHA-256 where nothing else is right; `tolerance` is how far
another decoder may be from them (the inverse cosine transform of JPEG is not
fixed to the last bit). The images are drawn
from a seeded generator: smooth, noisy, flat, with sharp edges.
"""
import base64
import hashlib
import json
import sys

import imagecodecs
import numpy

rng = numpy.random.default_rng(7)


def image(kind, rows, cols, bits):
    top = 2**bits - 1
    y, x = numpy.mgrid[0:rows, 0:cols]
    smooth = (0.5 + 0.25 * numpy.sin(x / 7) + 0.25 * numpy.cos(y / 5)) * top
    if kind == "noisy":
        values = rng.integers(0, top + 1, (rows, cols))
    elif kind == "flat":
        values = numpy.full((rows, cols), top // 3)
    elif kind == "edges":
        values = numpy.where((x // 9 + y // 6) % 2 == 0, 0, top) * (x % 13 != 0)
    else:
        values = smooth + rng.normal(0, top / 200, (rows, cols))
    return numpy.clip(values, 0, top).astype("u1" if bits == 8 else "<u2")


def case(name, syntax, bits, stream, decoded, tolerance=0):
    words = numpy.ascontiguousarray(decoded, "<u2")
    known = {"sha256": hashlib.sha256(words.tobytes()).hexdigest()}
    if tolerance:
        known = {"words": base64.b64encode(words.tobytes()).decode()}
    return known | {
        "name": name,
        "syntax": "1.2.840.10008.1.2." + syntax,
        "bits": bits,
        "rows": words.shape[0],
        "cols": words.shape[1],
        "tolerance": tolerance,
        "stream": base64.b64encode(bytes(stream)).decode(),
    }


cases = []
for bits in (8, 12, 16):
    for kind in ("smooth", "noisy", "flat", "edges"):
        for rows, cols in ((1, 1), (1, 17), (27, 7), (26, 30)):
            if rows != 26 and bits == 12:
                continue
            pixels = image(kind, rows, cols, bits)
            stream = imagecodecs.jpegls_encode(pixels)
            name = f"{kind} {rows}x{cols} {bits} bits"
            cases.append(case("JPEG-LS " + name, "4.80", bits, stream, imagecodecs.jpegls_decode(stream)))
        pixels = image(kind, 26, 30, bits)
        for near in (1, 2, 5):
            stream = imagecodecs.jpegls_encode(pixels, level=near)
            name = f"JPEG-LS {kind} {bits} bits, near {near}"
            cases.append(case(name, "4.81", bits, stream, imagecodecs.jpegls_decode(stream)))
for bits in (8, 12, 16):
    for kind in ("smooth", "edges"):
        pixels = image(kind, 26, 30, bits)
        stream = imagecodecs.ljpeg_encode(pixels, bitspersample=bits)
        cases.append(case(f"JPEG lossless {kind} {bits}", "4.70", bits, stream, pixels))
        stream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", reversible=True, level=0, bitspersample=bits)
        cases.append(case(f"JPEG 2000 {kind} {bits}", "4.90", bits, stream, pixels))
        stream = imagecodecs.htj2k_encode(pixels, reversible=True)
        cases.append(case(f"HTJ2K {kind} {bits}", "4.201", bits, stream, pixels))
pixels = image("smooth", 26, 30, 8)
stream = imagecodecs.jpeg8_encode(pixels, level=90)
cases.append(case("JPEG baseline", "4.50", 8, stream, imagecodecs.jpeg8_decode(stream), 1))
cases.append(case("JPEG extended of 8 bits", "4.51", 8, stream, imagecodecs.jpeg8_decode(stream), 1))
pixels = image("smooth", 26, 30, 12)
stream = imagecodecs.jpeg8_encode(pixels, level=90, bitspersample=12)
cases.append(case("JPEG extended of 12 bits", "4.51", 12, stream, imagecodecs.jpeg8_decode(stream), 1))
pixels = image("smooth", 26, 30, 12)
stream = imagecodecs.jpeg2k_encode(pixels, codecformat="j2k", level=60, bitspersample=12)
cases.append(case("JPEG 2000 lossy", "4.91", 12, stream, imagecodecs.jpeg2k_decode(stream), 1))
json.dump(cases, sys.stdout, indent=None, separators=(",", ":"))
print()
