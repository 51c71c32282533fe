"""Small JPEG lossless images of every selection value, with and without restarts and point
transform, and what libjpeg-turbo makes of them.

    python lossless_streams.py > lossless_streams.json

Needs imagecodecs (libjpeg-turbo) and numpy. No library at hand writes all of these, so the
encoder is this script's own, after ITU-T T.81 annex H; `sha256` is that of what libjpeg-turbo
decodes, 16 bits little endian row by row, and must be the image. The form is that of
`codec_streams.json`.
"""
import base64
import hashlib
import json
import sys

import imagecodecs
import numpy

rng = numpy.random.default_rng(81)


def image(rows, cols, bits):
    y, x = numpy.mgrid[0:rows, 0:cols]
    top = 2**bits - 1
    values = (0.5 + 0.3 * numpy.sin(x / 7) + 0.3 * numpy.cos(y / 5)) * top + rng.normal(0, top / 60, (rows, cols))
    # Some lines hold anything, so that differences of every size occur.
    values[rows // 2] = rng.integers(0, top + 1, cols)
    values[rows // 3, ::2] = 0
    values[rows // 3, 1::2] = top
    return numpy.clip(values, 0, top).astype(int)


def predicted(selection, ra, rb, rc):
    return [ra, rb, rc, ra + rb - rc, ra + ((rb - rc) >> 1), rb + ((ra - rc) >> 1), (ra + rb) >> 1][selection - 1]


def differences(pixels, bits, selection, n_interval_rows):
    """Differences modulo 2^16, -32767 to 32768, in intervals."""
    intervals = []
    for first in range(0, len(pixels), n_interval_rows):
        part, found = pixels[first : first + n_interval_rows], []
        for y, row in enumerate(part):
            for x, value in enumerate(row):
                if y == 0:
                    guess = row[x - 1] if x else 1 << (bits - 1)
                elif x == 0:
                    guess = part[y - 1][0]
                else:
                    guess = predicted(selection, int(row[x - 1]), int(part[y - 1][x]), int(part[y - 1][x - 1]))
                difference = (int(value) - int(guess)) & 0xFFFF
                found.append(difference - 0x10000 if difference > 0x8000 else difference)
        intervals.append(found)
    return intervals


def size(difference):
    return abs(difference).bit_length()


def codes(counts):
    """Code and length of each symbol, by falling frequency: up to 13 bits one code a length,
    the rest in 16, so that codes of all lengths that matter occur."""
    order = sorted(counts, key=lambda symbol: -counts[symbol])
    found = {symbol: ((1 << (i + 1)) - 2, i + 1) for i, symbol in enumerate(order[:13])}
    return found | {symbol: (((1 << 13) - 1 << 3) + i, 16) for i, symbol in enumerate(order[13:])}


def packed(bits):
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big") if bits else b""
    return data.replace(b"\xff", b"\xff\x00")


def segment(marker, content):
    return bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2, "big") + content


def encoded(pixels, bits, selection, point_transform, n_interval_rows):
    rows, cols = pixels.shape
    intervals = differences(pixels >> point_transform, bits - point_transform, selection, n_interval_rows or rows)
    counts = {}
    for difference in sum(intervals, []):
        counts[size(difference)] = counts.get(size(difference), 0) + 1
    table = codes(counts)
    by_length = sorted(table, key=lambda symbol: table[symbol][::-1])
    lengths = [sum(length == n for _, length in table.values()) for n in range(1, 17)]
    stream = b"\xff\xd8"
    frame = bytes([bits]) + rows.to_bytes(2, "big") + cols.to_bytes(2, "big") + bytes([1, 1, 0x11, 0])
    stream += segment(0xC3, frame) + segment(0xC4, bytes([0, *lengths, *by_length]))
    if n_interval_rows:
        stream += segment(0xDD, (n_interval_rows * cols).to_bytes(2, "big"))
    stream += segment(0xDA, bytes([1, 1, 0, selection, 0, point_transform]))
    for i, interval in enumerate(intervals):
        text = ""
        for difference in interval:
            code, length = table[size(difference)]
            text += f"{code:0{length}b}"
            n = size(difference)
            if 0 < n < 16:
                text += f"{difference if difference > 0 else difference + (1 << n) - 1:0{n}b}"
        stream += packed(text)
        if i + 1 < len(intervals):
            stream += bytes([0xFF, 0xD0 + i % 8])
    return stream + b"\xff\xd9"


cases = []
for bits in (2, 8, 12, 16):
    for selection in range(1, 8):
        for point_transform, n_interval_rows in ((0, 0), (0, 1), (1, 0), (1, 9)):
            rows, cols = (17, 20) if selection % 2 else (15, 21)
            pixels = image(rows, cols, bits)
            stream = encoded(pixels, bits, selection, point_transform, n_interval_rows)
            decoded = imagecodecs.jpeg8_decode(stream).astype("<u2")
            assert (decoded == (pixels >> point_transform) << point_transform).all()
            cases.append(
                {
                    "name": f"{bits} bits, selection {selection}, point transform {point_transform}, restart after {n_interval_rows} rows",
                    "syntax": "1.2.840.10008.1.2.4.57",
                    "bits": bits,
                    "rows": rows,
                    "cols": cols,
                    "tolerance": 0,
                    "stream": base64.b64encode(stream).decode(),
                    "sha256": hashlib.sha256(decoded.tobytes()).hexdigest(),
                }
            )
json.dump(cases, sys.stdout, indent=None, separators=(",", ":"))
print()
