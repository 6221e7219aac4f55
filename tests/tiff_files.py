"""Writes TIFF files of types that Pillow does not write."""

import struct


def write_tiff(path, values, kind):
    """Write an uncompressed grey or RGB TIFF of any type; kind is its SampleFormat (2 is signed)."""
    bands = 1 if values.ndim == 2 else values.shape[2]
    bits, data = values.dtype.itemsize * 8, values.astype(values.dtype.newbyteorder("<")).tobytes()
    many = {258: bits, 339: kind}
    short = {259: 1, 262: 1 if bands < 3 else 2, 277: bands}
    long = {256: values.shape[1], 257: values.shape[0], 273: None, 278: values.shape[0], 279: len(data)}
    if extra := bands - (1 if bands < 3 else 3):
        many[338] = 0
    tags = sorted({**many, **short, **long})
    start = 8 + 2 + 12 * len(tags) + 4
    rows, tail = b"", b""
    for tag in tags:
        if tag in many:
            count = extra if tag == 338 else bands
            packed = struct.pack(f"<{count}H", *[many[tag]] * count)
            if len(packed) > 4:
                rows += struct.pack("<HHII", tag, 3, count, start + len(tail))
                tail += packed
            else:
                rows += struct.pack("<HHI", tag, 3, count) + packed.ljust(4, b"\0")
        elif tag in short:
            rows += struct.pack("<HHIHxx", tag, 3, 1, short[tag])
        else:
            rows += struct.pack("<HHII", tag, 4, 1, 0 if long[tag] is None else long[tag])
    place = 8 + 2 + 12 * tags.index(273) + 8
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + rows + bytes(4)
    head = head[:place] + struct.pack("<I", start + len(tail)) + head[place + 4 :]
    path.write_bytes(head + tail + data)
