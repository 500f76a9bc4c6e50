"""Small image files, written byte by byte from the specifications of their formats, with the right values beside them.

`FILES` maps a name to the bytes of a file of 2 x 1 pixels (a WebP of one pixel, a JPEG of 8 x 8 equal ones) and its
pixels over a white background: a list of numbers for grey, of tuples for colour; None if it must be refused.
"""

import struct
import zlib

# PNG (https://www.w3.org/TR/png-3): chunks of length, type, data and CRC.
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def png(depth: int, colour: int, row: bytes, *chunks: tuple[bytes, bytes], interlaced: int = 0) -> bytes:
    parts = [(b"IHDR", struct.pack(">IIBBBBB", 2, 1, depth, colour, 0, 0, interlaced)), *chunks]
    parts += [(b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    body = (struct.pack(">I", len(d)) + t + d + struct.pack(">I", zlib.crc32(t + d)) for t, d in parts)
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def transparent(*values: int) -> tuple[bytes, bytes]:
    return b"tRNS", struct.pack(f">{len(values)}H", *values)


PLTE = b"PLTE", bytes([255, 0, 0, 0, 0, 255])

# TIFF 6.0: a header, the strip, and a directory of tags (number, type, count, value), here all in one block.
BYTE, SHORT, LONG = 1, 3, 4


def tiff(bits: int | list[int], photometric: int, strip: bytes, order: str = "<", **tags: list[int]) -> bytes:
    bits = [bits] if isinstance(bits, int) else bits
    numbers = {"planar": 284, "colours": 320, "extra": 338, "format": 339}
    entries = {256: [2], 257: [1], 258: bits, 259: [1], 262: [photometric], 277: [len(bits)], 278: [1]}
    entries |= {numbers[name]: values for name, values in tags.items()} | {273: [8], 279: [len(strip)]}
    if tags.get("planar") == [2]:
        each = len(strip) // len(bits)
        entries |= {273: [8 + each * k for k in range(len(bits))], 279: [each] * len(bits)}
    strip += b"\0" * (len(strip) % 2)
    start, directory, beyond = 8 + len(strip), b"", b""
    for tag, values in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}H", *values)
        if len(data) > 4:
            offset = start + 2 + 12 * len(entries) + 4 + len(beyond)
            beyond, data = beyond + data, struct.pack(f"{order}I", offset)
        directory += struct.pack(f"{order}HHI", tag, SHORT, len(values)) + data.ljust(4, b"\0")
    head = {"<": b"II*\0", ">": b"MM\0*"}[order] + struct.pack(f"{order}I", start)
    return head + strip + struct.pack(f"{order}H", len(entries)) + directory + bytes(4) + beyond


# BMP: a file header, BITMAPINFOHEADER, perhaps masks and a palette, and rows padded to four bytes.


def bmp(bits: int, row: bytes, palette: bytes = b"", compression: int = 0, masks: bytes = b"") -> bytes:
    size = 40 + len(masks) if len(masks) > 12 else 40
    info = struct.pack("<IiiHHIIiiII", size, 2, 1, 1, bits, compression, len(row), 0, 0, len(palette) // 4, 0)
    offset = 14 + 40 + len(masks) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(row), 0, 0, offset) + info + masks + palette + row


# GIF 89a: LZW codes of three bits; a clear code before every pixel keeps their size.


def gif(pixels: list[int], transparent: int | None = None, left: int = 0, frames: int = 1) -> bytes:
    width = len(pixels)
    screen = struct.pack("<HHBBB", 2, 1, 0x80, 0, 0) + bytes([255, 0, 0, 0, 0, 255])
    control = b"" if transparent is None else b"!\xf9\x04" + struct.pack("<BHBB", 1, 0, transparent, 0)
    bits, data = "".join(f"{code:03b}" for p in reversed(pixels) for code in (p, 4)), b""
    bits = "101" + bits
    data = int(bits, 2).to_bytes(-(-len(bits) // 8), "little")
    image = b"," + struct.pack("<HHHHB", left, 0, width, 1, 0) + bytes([2, len(data)]) + data + b"\0"
    return b"GIF89a" + screen + (control + image) * frames + b";"


# WebP (RIFF, VP8L): five prefix codes of one symbol each, so that the pixel itself takes no bits.


def webp(red: int, green: int, blue: int, alpha: int) -> bytes:
    bits = [(0, 14), (0, 14), (int(alpha < 255), 1), (0, 3), (0, 1), (0, 1), (0, 1)]
    for symbol in (green, red, blue, alpha):
        bits += [(1, 1), (0, 1), (1, 1), (symbol, 8)]
    bits += [(1, 1), (0, 1), (0, 1), (0, 1)]
    number = shift = 0
    for value, count in bits:
        number, shift = number | value << shift, shift + count
    data = b"\x2f" + number.to_bytes(-(-shift // 8), "little")
    chunk = b"VP8L" + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)
    return b"RIFF" + struct.pack("<I", 4 + len(chunk)) + b"WEBP" + chunk


# JPEG (ITU T.81): one block for each component, of which only the DC coefficient is not 0. Its quantization step is 8,
# so it is the value minus 128. The Huffman table gives each category of 0 to 11 a code of four bits.


def jpeg(*components: int, adobe: int | None = None, ids: tuple[int, ...] = (1, 2, 3, 4), precision: int = 8) -> bytes:
    def segment(marker: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 0xFF, marker, len(data) + 2) + data

    count, bits = len(components), ""
    for value in components:
        level = value - 128
        category = abs(level).bit_length()
        bits += f"{category:04b}"
        bits += f"{level if level > 0 else level + 2**category - 1:0{category}b}" if category else ""
        bits += "0"  # end of block
    bits += "1" * (-len(bits) % 8)
    data = int(bits, 2).to_bytes(len(bits) // 8, "big").replace(b"\xff", b"\xff\0")
    frame = struct.pack(">BHHB", precision, 8, 8, count) + b"".join(bytes([i, 0x11, 0]) for i in ids[:count])
    scan = bytes([count]) + b"".join(bytes([i, 0]) for i in ids[:count]) + bytes([0, 63, 0])
    return (
        b"\xff\xd8"
        + (segment(0xEE, b"Adobe" + struct.pack(">HHHB", 100, 0, 0, adobe)) if adobe is not None else b"")
        + segment(0xDB, bytes([0] + [8] * 64))
        + segment(0xC0, frame)
        + segment(0xC4, bytes([0x00, 0, 0, 0, 12, *[0] * 12, *range(12)]))
        + segment(0xC4, bytes([0x10, 1, *[0] * 15, 0]))
        + segment(0xDA, scan)
        + data
        + b"\xff\xd9"
    )


def shorts(*values: int, order: str = "<") -> bytes:
    return struct.pack(f"{order}{len(values)}H", *values)


def _colours(count: int) -> list[int]:
    """The palette of a TIFF: all red, then all green, then all blue values, of which the first two are not 0."""
    return [65535, *[0] * (2 * count), 65535, *[0] * (count - 2)]


RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
PALETTE_BMP = bytes([0, 0, 255, 0, 255, 0, 0, 0])
V4 = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000) + b"BGRs" + bytes(48)
WIDE = shorts(257, 514, 771, 257 * 250, 65535, 0)
BIG = shorts(257, 514, 771, 257 * 250, 65535, 0, order=">")
FILES = {
    "PNG grey 1 bit": (png(1, GREY, b"\x40"), [0, 255]),
    "PNG grey 2 bits": (png(2, GREY, b"\x60"), [85, 170]),
    "PNG grey 4 bits": (png(4, GREY, b"\x5a"), [85, 170]),
    "PNG grey 8 bits": (png(8, GREY, b"\x05\xfa"), [5, 250]),
    "PNG grey 16 bits": (png(16, GREY, shorts(257, 65535, order=">")), [1, 255]),
    "PNG colour 8 bits": (png(8, RGB, bytes([1, 2, 3, 250, 251, 252])), [(1, 2, 3), (250, 251, 252)]),
    "PNG colour 16 bits": (png(16, RGB, BIG), [(1, 2, 3), (250, 255, 0)]),
    "PNG palette 1 bit": (png(1, PALETTE, b"\x40", PLTE), [RED, BLUE]),
    "PNG palette 2 bits": (png(2, PALETTE, b"\x10", PLTE), [RED, BLUE]),
    "PNG palette 8 bits": (png(8, PALETTE, b"\0\1", PLTE), [RED, BLUE]),
    "PNG palette, transparent": (png(8, PALETTE, b"\0\1", PLTE, (b"tRNS", b"\0\x80")), [WHITE, (127, 127, 255)]),
    "PNG grey and alpha": (png(8, GREY_ALPHA, bytes([100, 0, 100, 255])), [255, 100]),
    "PNG grey and alpha 16": (png(16, GREY_ALPHA, shorts(25700, 0, 25700, 65535, order=">")), [255, 100]),
    "PNG colour and alpha": (png(8, RGBA, bytes([100, 0, 0, 0, 100, 0, 0, 128])), [WHITE, (177, 127, 127)]),
    "PNG colour and alpha 16": (png(16, RGBA, shorts(9, 9, 9, 0, 25700, 0, 0, 65535, order=">")), [WHITE, (100, 0, 0)]),
    "PNG 1 bit, 0 transparent": (png(1, GREY, b"\x40", transparent(0)), [255, 255]),
    "PNG 1 bit, 1 transparent": (png(1, GREY, b"\x00", transparent(1)), [0, 0]),
    "PNG 2 bits, transparent": (png(2, GREY, b"\x60", transparent(1)), None),
    "PNG 4 bits, transparent": (png(4, GREY, b"\x5a", transparent(5)), None),
    "PNG 8 bits, transparent": (png(8, GREY, b"\x05\xfa", transparent(5)), [255, 250]),
    "PNG 16 bits, transparent": (png(16, GREY, shorts(257, 65535, order=">"), transparent(257)), None),
    "PNG colour, transparent": (png(8, RGB, bytes([1, 2, 3, 4, 5, 6]), transparent(1, 2, 3)), [WHITE, (4, 5, 6)]),
    "PNG colour 16, transparent": (png(16, RGB, BIG, transparent(257, 514, 771)), None),
    "TIFF 1 bit": (tiff(1, 1, b"\x40"), [0, 255]),
    "TIFF 1 bit, white is 0": (tiff(1, 0, b"\x40"), [255, 0]),
    "TIFF 2 bits": (tiff(2, 1, b"\x60"), [85, 170]),
    "TIFF 4 bits, white is 0": (tiff(4, 0, b"\x5a"), [170, 85]),
    "TIFF 8 bits": (tiff(8, 1, b"\x05\xfa"), [5, 250]),
    "TIFF 8 bits, white is 0": (tiff(8, 0, b"\x05\xfa"), [250, 5]),
    "TIFF 8 bits, signed": (tiff(8, 1, b"\x05\xfa", format=[2]), None),
    "TIFF 12 bits": (tiff(12, 1, b"\x01\x0f\xff"), None),
    "TIFF 16 bits": (tiff(16, 1, shorts(257, 65535)), [1, 255]),
    "TIFF 16 bits, big-endian": (tiff(16, 1, shorts(257, 65535, order=">"), ">"), [1, 255]),
    "TIFF 16 bits, white is 0": (tiff(16, 0, shorts(257, 65535)), None),
    "TIFF 16 bits, signed": (tiff(16, 1, shorts(257, 65535), format=[2]), None),
    "TIFF 32 bits": (tiff(32, 1, struct.pack("<2I", 257, 65535)), None),
    "TIFF float": (tiff(32, 1, struct.pack("<2f", 0.5, 1), format=[3]), None),
    "TIFF grey and alpha": (tiff([8, 8], 1, bytes([100, 0, 100, 255]), extra=[2]), [255, 100]),
    "TIFF grey, premultiplied": (tiff([8, 8], 1, bytes([0, 0, 100, 255]), extra=[1]), None),
    "TIFF colour": (tiff([8] * 3, 2, bytes([1, 2, 3, 250, 251, 252])), [(1, 2, 3), (250, 251, 252)]),
    "TIFF colour in planes": (tiff([8] * 3, 2, bytes([1, 9, 2, 8, 3, 7]), planar=[2]), [(1, 2, 3), (9, 8, 7)]),
    "TIFF colour 16 bits": (tiff([16] * 3, 2, WIDE), [(1, 2, 3), (250, 255, 0)]),
    "TIFF colour 16 bits in planes": (tiff([16] * 3, 2, WIDE, planar=[2]), None),
    "TIFF colour, signed": (tiff([8] * 3, 2, bytes(6), format=[2] * 3), None),
    "TIFF alpha": (tiff([8] * 4, 2, bytes([100, 0, 0, 0, 100, 0, 0, 128]), extra=[2]), [WHITE, (177, 127, 127)]),
    "TIFF premultiplied": (tiff([8] * 4, 2, bytes([0, 0, 0, 0, 50, 0, 0, 128]), extra=[1]), [WHITE, (177, 127, 127)]),
    "TIFF palette 8 bits": (tiff(8, 3, b"\0\1", colours=_colours(256)), [RED, BLUE]),
    "TIFF palette 4 bits": (tiff(4, 3, b"\x01", colours=_colours(16)), [RED, BLUE]),
    "TIFF CMYK": (tiff([8] * 4, 5, bytes([0, 255, 255, 0, 255, 255, 0, 0])), [RED, BLUE]),
    "TIFF YCbCr": (tiff([8] * 3, 6, bytes([76, 85, 255, 29, 255, 107])), [RED, BLUE]),
    "TIFF of a camera's sensor": (tiff(8, 32803, b"\x05\xfa"), None),
    "BMP 1 bit": (bmp(1, b"\x40\0\0\0", PALETTE_BMP), [RED, BLUE]),
    "BMP 4 bits": (bmp(4, b"\x01\0\0\0", PALETTE_BMP), [RED, BLUE]),
    "BMP 8 bits": (bmp(8, b"\0\1\0\0", PALETTE_BMP), [RED, BLUE]),
    "BMP 8 bits, run lengths": (bmp(8, bytes([1, 0, 1, 1, 0, 0, 0, 1]), PALETTE_BMP, compression=1), [RED, BLUE]),
    "BMP 15 bits": (bmp(16, shorts(31 << 10, 31)), [RED, BLUE]),
    "BMP 16 bits": (
        bmp(16, shorts(31 << 11, 31), compression=3, masks=struct.pack("<3I", 0xF800, 0x7E0, 0x1F)),
        [RED, BLUE],
    ),
    "BMP 12 bits": (
        bmp(16, shorts(15 << 8, 15), compression=3, masks=struct.pack("<3I", 0xF00, 0xF0, 0xF)),
        None,
    ),
    "BMP 24 bits": (bmp(24, bytes([0, 0, 255, 255, 0, 0, 0, 0])), [RED, BLUE]),
    "BMP 32 bits": (bmp(32, bytes([0, 0, 255, 0, 255, 0, 0, 0])), [RED, BLUE]),
    "BMP alpha": (bmp(32, struct.pack("<2I", 255 << 16, 255 | 255 << 24), compression=3, masks=V4), [WHITE, BLUE]),
    "GIF": (gif([0, 1]), [RED, BLUE]),
    "GIF transparent": (gif([0, 1], transparent=1), [RED, WHITE]),
    "GIF of two frames": (gif([0, 1], frames=2), [RED, BLUE]),
    "WebP": (webp(200, 100, 50, 255), [(200, 100, 50)]),
    "WebP transparent": (webp(200, 100, 50, 0), [WHITE]),
    "WebP half transparent": (webp(200, 100, 50, 128), [(227, 177, 152)]),
    "JPEG grey": (jpeg(200), [200]),
    "JPEG YCbCr": (jpeg(76, 85, 255), [RED]),
    "JPEG RGB by Adobe": (jpeg(255, 0, 10, adobe=0), [(255, 0, 10)]),
    "JPEG RGB by its names": (jpeg(255, 0, 10, ids=(82, 71, 66)), [(255, 0, 10)]),
    "JPEG CMYK by Adobe": (jpeg(255, 0, 0, 255, adobe=0), [RED]),
    "JPEG YCCK by Adobe": (jpeg(179, 171, 1, 255, adobe=2), [RED]),
    "JPEG CMYK by others": (jpeg(0, 255, 255, 0), None),
    "JPEG of two components": (jpeg(100, 200), None),
    "JPEG 12 bits": (jpeg(100, precision=12), None),
}
