"""Cut a JPEG file: of its segments those that a region touches, behind a header with other sides, are a file too.

Its pixels are those of the whole file, but for the outermost two beside a cut, where the decoder smooths colours with
neighbours that are not there: a region is taken with two pixels more all around. See `fastload.packed.jpeg_index`.

A region is (top, left, bottom, right): its first row and column, and those behind its last, int64.
"""

from typing import Any, NamedTuple

import numpy as np

from .compiling import njit
from .cpu_memory import address_of, get_byte, get_word, set_byte
from .crop_cpu import copy_row
from .file_ranges import read_range
from .inlining import exact

MARGIN = 2


def cut_margin(reduced: bool) -> int:
    """Return how many pixels around a crop are cut with it; `reduced`: where it may be decoded at 1/8."""
    return 8 * MARGIN if reduced else MARGIN


OTHER_INDEX, UNREADABLE = -1, -2
"""Why there is no cut: the index is not this file's, or one of the two is damaged; or the file cannot be read."""

_NARROW = 4
"""libjpeg does not smooth colours of pictures so narrow: so few last columns are cut with the segment before them."""

_GAP = 4096
"""So many bytes between the header and the first segment are read with them, in one call."""


class JpegFiles(NamedTuple):
    """A packed set's JPEG files, and how they can be cut.

    Attributes:
        descriptors: int32 [F], the open files.
        begins: int64 [F], where each one's image bytes begin.
        firsts: int64 [F + 1], the place of each file's first byte in the set, and the end.
        offsets: int64 [N + 1], of the samples in the set.
        shapes: int32 [N, 2], height and width, upright.
        cuts: int32 [N, 6], as `fastload.packed.jpeg_index.Cut` says.
        index_begins: int64 [F], where each packed file's index begins.
        index_firsts: int64 [F + 1], the place of each one's first byte in the set's index, and the end.
        index_offsets: int64 [N + 1], the samples' entries there.
    """

    descriptors: Any
    begins: Any
    firsts: Any
    offsets: Any
    shapes: Any
    cuts: Any
    index_begins: Any
    index_firsts: Any
    index_offsets: Any


class Grid(NamedTuple):
    """Which of a file's segments are taken, int64.

    Attributes:
        first_row: of segments.
        last_row: the last one.
        first: segment in each of these rows.
        last: likewise, the last one.
        columns: segments in a row of the file.
        top: the first row of pixels.
        left: the first column.
        height: rows of pixels.
        width: columns.
    """

    first_row: Any
    last_row: Any
    first: Any
    last: Any
    columns: Any
    top: Any
    left: Any
    height: Any
    width: Any


@exact
def stored_sides(height, width, orientation):
    """Return the sides of a file's own pixels."""
    return (width, height) if orientation >= 5 else (height, width)


@exact
def stored_region(region, height, width, orientation):
    """Return where a region of the upright image is in the file's own pixels, height × width of them."""
    top, left, bottom, right = region
    if orientation >= 5:
        top, left, bottom, right = left, top, right, bottom
    return _flipped(top, left, bottom, right, height, width, orientation)


@exact
def upright_region(region, height, width, orientation):
    """Return where a region of a file's own pixels, height × width of them, is in the upright image."""
    top, left, bottom, right = region
    top, left, bottom, right = _flipped(top, left, bottom, right, height, width, orientation)
    return (left, top, right, bottom) if orientation >= 5 else (top, left, bottom, right)


@exact
def _flipped(top, left, bottom, right, height, width, orientation):
    if orientation == 3 or orientation == 4 or orientation == 6 or orientation == 7:
        top, bottom = height - bottom, height - top
    if orientation == 2 or orientation == 3 or orientation == 7 or orientation == 8:
        left, right = width - right, width - left
    return top, left, bottom, right


@exact
def grid_of(cut, height, width, region, margin):
    """Return the `Grid` of a region of a file's own pixels, height × width of them, with a margin around it."""
    top, left, bottom, right = region
    down, across = np.int64(cut[2]), np.int64(cut[3]) * np.int64(cut[4])
    rows, columns = (height + down - 1) // down, (width + across - 1) // across
    first_row, last_row = max(top - margin, 0) // down, min((bottom + margin - 1) // down, rows - 1)
    first, last = max(left - margin, 0) // across, min((right + margin - 1) // across, columns - 1)
    if first > 0 and width - first * across <= _NARROW:
        first -= 1
    begin, start = first_row * down, first * across
    end, stop = min((last_row + 1) * down, height), min((last + 1) * across, width)
    return Grid(first_row, last_row, first, last, columns, begin, start, end - begin, stop - start)


@exact
def _ends_of(grid):
    """Return the first of the segments that a grid spans, and the one behind the last."""
    return grid.first_row * grid.columns + grid.first, grid.last_row * grid.columns + grid.last + 1


@exact
def cut_file(files, row, height, width, region, margin, entries, source, out):
    """Read what is needed of a file and write the file of a region to `out`.

    Returns its size in bytes, or why there is none, and the part of the file's own pixels that it shows: the first row
    and column, height and width.

    Arguments:
        files: `JpegFiles`.
        row: which; one that can be cut.
        height: of the file's own pixels.
        width: likewise.
        region: of these pixels.
        margin: pixels around it.
        entries: address of room for the file's entries in the index, int32.
        source: address of room for the file's bytes.
        out: address of room for as many.
    """
    cut, begin = files.cuts[row], files.offsets[row]
    size = files.offsets[row + 1] - begin
    grid = grid_of(cut, height, width, region, margin)
    header, frame = np.int64(cut[0]), np.int64(cut[1])
    part = grid.top, grid.left, grid.height, grid.width
    low, high = _ends_of(grid)
    place = 4 * (files.index_offsets[row] + low)
    if not read_range(
        files.descriptors, files.index_begins, files.index_firsts, place, 4 * (high - low + 1), np.uint64(entries)
    ):
        return np.int64(UNREADABLE), part
    start, stop = _entry(entries, 0), _entry(entries, high - low)
    last = files.index_offsets[row + 1] - files.index_offsets[row] - 1
    if (
        not header <= start < stop <= size
        or (low == 0) != (start == header)  # the first segment begins behind the header, and the last ends the file
        or (high == last) != (stop == size)
    ):
        return np.int64(OTHER_INDEX), part
    ahead = 0 if start - header < _GAP else start
    if not read_range(
        files.descriptors, files.begins, files.firsts, begin + ahead, stop - ahead, np.uint64(source + ahead)
    ) or (
        ahead > 0 and not read_range(files.descriptors, files.begins, files.firsts, begin, header, np.uint64(source))
    ):
        return np.int64(UNREADABLE), part
    if not _is_header(source, cut, height, width):
        return np.int64(OTHER_INDEX), part
    copy_row(out, np.int64(0), source, np.int64(0), header)
    _set_pair(out, frame, grid.height)
    _set_pair(out, frame + 2, grid.width)
    at, count, done = header, 0, start
    for y in range(grid.first_row, grid.last_row + 1):
        for segment in range(y * grid.columns + grid.first, y * grid.columns + grid.last + 1):
            a, b = _entry(entries, segment - low), _entry(entries, segment - low + 1)
            # Never backwards, or what overlaps could be more than the file has, and `out` room for.
            if not done <= a < b - 1 or b > stop or not _is_end(source, b, segment, b == size):
                return np.int64(OTHER_INDEX), part
            copy_row(out, at, source, a, b - a)
            at, done = at + b - a, b
            set_byte(out, at - 1, np.uint8(0xD0 + (count & 7)))
            count += 1
    set_byte(out, at - 1, np.uint8(0xD9))
    return at, part


@exact
def _is_header(data, cut, height, width):
    """Whether a file's header is one as `jpeg_transcode` writes it, and says the same as the index: or what is cut
    would be a sound file of other pixels.

    Arguments:
        data: address of the header; of so many bytes as the index says, at least.
        cut: int32 [6].
        height: of the file's own pixels.
        width: likewise.
    """
    header, frame = np.int64(cut[0]), np.int64(cut[1])
    count = np.int64(get_byte(data, frame + 4))
    scan = header - 8 - 2 * count
    if (
        _pair(data, 0) != 0xFFD8
        or _pair(data, frame - 5) & 0xFFFE != 0xFFC0
        or _pair(data, frame) != height
        or _pair(data, frame + 2) != width
        or (count != 1 and count != 3)
        or frame + 5 + 3 * count > scan - 6
        or _pair(data, scan - 6) != 0xFFDD
        or _pair(data, scan - 2) != cut[4]
        or _pair(data, scan) != 0xFFDA
    ):
        return False
    down, across = 1, 1
    if count > 1:
        for k in range(count):
            factors = np.int64(get_byte(data, frame + 6 + 3 * k))
            down, across = max(down, factors & 15), max(across, factors >> 4)
    return 8 * down == cut[2] and 8 * across == cut[3] and _orientation(data, frame) == cut[5]


@exact
def _orientation(data, stop):
    """Return what the EXIF segment at a header's beginning says, behind JFIF's if there is one; 1 without."""
    place = np.int64(2)
    if _pair(data, 2) == 0xFFE0:
        place += 2 + _pair(data, 4)
    return np.int64(get_byte(data, place + 29)) if place + 30 <= stop and _pair(data, place) == 0xFFE1 else np.int64(1)


@exact
def _entry(entries, k):
    return np.int64(np.uint32(get_word(entries, k)))


@exact
def _pair(data, place):
    return (np.int64(get_byte(data, place)) << 8) + np.int64(get_byte(data, place + 1))


@exact
def _set_pair(data, place, value):
    set_byte(data, place, np.uint8(value >> 8))
    set_byte(data, place + 1, np.uint8(value & 255))


@exact
def _is_end(source, end, segment, is_last):
    """Whether a segment's last two bytes are the marker that belongs there."""
    marker = 0xD9 if is_last else 0xD0 + (segment & 7)
    return get_byte(source, end - 2) == 0xFF and get_byte(source, end - 1) == marker


@njit(nogil=True)
def cut_files(files, rows, regions, margin, out, parts):
    """Cut files, one behind the other, into `out`; return the first that cannot be cut and why, or (-1, 0).

    Arguments:
        files: `JpegFiles`.
        rows: int64 [b]; those that cannot be cut are left out: their size is 0.
        regions: int64 [b, 4], of the upright images.
        margin: pixels around them.
        out: uint8 [bytes], as many as the whole files have; filled.
        parts: int64 [b, 5]: size in bytes, and of the upright image the first row and column, height and width; filled.
    """
    most, longest = np.int64(0), np.int64(0)
    for row in rows:
        most = max(most, files.offsets[row + 1] - files.offsets[row])
        longest = max(longest, files.index_offsets[row + 1] - files.index_offsets[row])
    source, entries = np.empty(most + 64, np.uint8), np.empty(longest + 1, np.int32)
    at, address = np.int64(0), address_of(out)
    failed, reason = np.int64(-1), np.int64(0)
    for k in range(rows.size):
        row = rows[k]
        orientation = np.int64(files.cuts[row, 5])
        parts[k, 0] = 0
        if files.cuts[row, 0] == 0:
            continue
        height, width = stored_sides(np.int64(files.shapes[row, 0]), np.int64(files.shapes[row, 1]), orientation)
        region = stored_region((regions[k, 0], regions[k, 1], regions[k, 2], regions[k, 3]), height, width, orientation)
        size, part = cut_file(
            files, row, height, width, region, margin, address_of(entries), address_of(source), address + at
        )
        if size < 0:
            failed, reason = np.int64(k), size
            break
        at += size
        there = part[0], part[1], part[0] + part[2], part[1] + part[3]
        top, left, bottom, right = upright_region(there, height, width, orientation)
        parts[k, 0] = size
        parts[k, 1] = top
        parts[k, 2] = left
        parts[k, 3] = bottom - top
        parts[k, 4] = right - left
    if source.size + entries.size + out.size == 0:
        return np.int64(-1), np.int64(0)  # never: what is passed by its address must be held until here
    return failed, reason


@njit(nogil=True)
def ranges_of_cuts(files, rows, regions, margin, ranges):
    """Find which bytes `cut_files` will read, of the set: of each file two ranges, the second often empty.

    Arguments:
        files: `JpegFiles`.
        rows: int64 [b]; of those that cannot be cut, all bytes count.
        regions: int64 [b, 4], of the upright images.
        margin: pixels around them.
        ranges: int64 [b, 2, 2]: start and size; filled.
    """
    entries = np.empty(2, np.int32)
    address = address_of(entries)
    for k in range(rows.size):
        row = rows[k]
        begin, orientation = files.offsets[row], np.int64(files.cuts[row, 5])
        ranges[k, 0, 0] = ranges[k, 1, 0] = begin
        ranges[k, 0, 1] = files.offsets[row + 1] - begin
        ranges[k, 1, 1] = 0
        if files.cuts[row, 0] == 0:
            continue
        height, width = stored_sides(np.int64(files.shapes[row, 0]), np.int64(files.shapes[row, 1]), orientation)
        region = stored_region((regions[k, 0], regions[k, 1], regions[k, 2], regions[k, 3]), height, width, orientation)
        low, high = _ends_of(grid_of(files.cuts[row], height, width, region, margin))
        there = True
        for which, entry in ((0, low), (1, high)):
            place = 4 * (files.index_offsets[row] + entry)
            there = there and read_range(
                files.descriptors, files.index_begins, files.index_firsts, place, 4, np.uint64(address + 4 * which)
            )
        start, stop, header = np.int64(np.uint32(entries[0])), np.int64(np.uint32(entries[1])), files.cuts[row, 0]
        if not there or not header <= start < stop <= ranges[k, 0, 1]:
            continue  # said when it is read
        if start - header < _GAP:
            ranges[k, 0, 1] = stop
        else:
            ranges[k, 0, 1] = header
            ranges[k, 1, 0] = begin + start
            ranges[k, 1, 1] = stop - start
