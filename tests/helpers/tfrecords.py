"""TFRecord files byte by byte, as TensorFlow describes them."""


def _byte(crc):
    for _ in range(8):
        crc = crc >> 1 ^ 0x82F63B78 if crc & 1 else crc >> 1
    return crc


_TABLE = [_byte(i) for i in range(256)]


def crc32c(data):
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def masked(data):
    crc = crc32c(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32


def file_of(records):
    """The bytes of a file that holds these records."""
    found = []
    for record in records:
        for part in (len(record).to_bytes(8, "little"), record):
            found += [part, masked(part).to_bytes(4, "little")]
    return b"".join(found)


def example(image, label):
    """The bytes of a tf.train.Example of an encoded image."""

    def part(number, data):
        size, head = len(data), [number << 3 | 2]
        while size > 127:
            head.append(size & 127 | 128)
            size >>= 7
        return bytes([*head, size]) + data

    def entry(key, feature):
        return part(1, part(1, key) + part(2, feature))

    held = entry(b"image/encoded", part(1, part(1, image)))
    held += entry(b"image/class/label", part(3, bytes([1 << 3, label])))
    return part(1, held)
