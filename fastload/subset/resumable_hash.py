"""XXH3-128, seed 0, of bytes that come in pieces, with a state that can be kept on disk between them.

The package xxhash gives the same digests, but its state cannot leave the process, and a pass over embeddings that
nobody stores must go on after an interruption. https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md
"""

from __future__ import annotations

from typing import Any

import numpy as np
import xxhash

from fastload.kernels.compiling import njit

_MASK = 2**64 - 1
_PRIME32_1, _PRIME32_2, _PRIME32_3 = 0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D
_PRIME64_1, _PRIME64_2, _PRIME64_3 = 0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9
_PRIME64_4, _PRIME64_5 = 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5
_SECRET = bytes.fromhex(
    "b8fe6c3923a44bbe7c01812cf721ad1cded46de9839097db7240a4a4b7b3671fcb79e64eccc0e578825ad07dccff7221"
    "b8084674f743248ee03590e6813a264c3c2852bb91c300cb88d0658b1b532ea371644897a20df94e3819ef46a9deacd8"
    "a8fa763fe39c343ff9dcbbc7c70b4f1d8a51e04bcdb45931c89f7ec9d9787364eac5ac8334d3ebc3c581a0fffa1363eb"
    "170ddd51b7f0da49d316552629d4689e2b16be587d47a1fc8ff8b8d17ad031ce45cb3a8f95160428afd7fbcabb4b407e"
)
_STRIPE, _STRIPES_A_BLOCK = 64, 16
_SHORT = 240
"""Up to so many bytes the definition is another, which is left to the package."""


def _words(offset: int, count: int) -> np.ndarray:
    return np.frombuffer(_SECRET, "<u8", count, offset).astype(np.uint64)


_KEYS = np.stack([_words(8 * stripe, 8) for stripe in range(_STRIPES_A_BLOCK)])
_SCRAMBLE, _LAST = _words(128, 8), _words(121, 8)


class ResumableHash:
    """XXH3-128 of what `update` was given.

    ResumableHash.restored(hasher.state()) goes on where `hasher` stood.
    """

    def __init__(self, start: bytes = b"") -> None:
        self._sums = np.array(
            [_PRIME32_3, _PRIME64_1, _PRIME64_2, _PRIME64_3, _PRIME64_4, _PRIME32_2, _PRIME64_5, _PRIME32_1], np.uint64
        )
        self._taken = 0
        # Not yet taken in; once anything is, the stripe before it, which the digest of a short rest begins in.
        self._rest = np.empty(0, np.uint8)
        self.update(start)

    def update(self, data: Any) -> None:
        """Add bytes, or what gives its bytes as a contiguous buffer."""
        piece = np.frombuffer(data, np.uint8)
        whole = np.concatenate([self._rest, piece])
        length = self._length + len(piece)
        kept = min(self._taken, _STRIPE)
        # The last byte is always left for the digest, which takes the last stripe by other keys.
        stripes = (len(whole) - kept - 1) // _STRIPE if length > _SHORT else 0
        if stripes > 0:
            words = whole[kept : kept + stripes * _STRIPE].view("<u8").reshape(stripes, 8)
            _accumulate(self._sums, words, self._taken // _STRIPE % _STRIPES_A_BLOCK, _KEYS, _SCRAMBLE)
            self._taken += stripes * _STRIPE
            whole = whole[kept + (stripes - 1) * _STRIPE :]
        self._rest = whole.copy()

    @property
    def _length(self) -> int:
        return self._taken + len(self._rest) - min(self._taken, _STRIPE)

    def hexdigest(self) -> str:
        """Return the digest of all so far, as `xxhash.xxh3_128(…).hexdigest()` does."""
        length = self._length
        if length <= _SHORT:
            return xxhash.xxh3_128_hexdigest(self._rest.tobytes())
        sums = self._sums.copy()
        _add(sums, self._rest[-_STRIPE:].view("<u8"), _LAST)
        low = _merge(sums, 11, length * _PRIME64_1)
        high = _merge(sums, 192 - 64 - 11, ~(length * _PRIME64_2))
        return f"{high:016x}{low:016x}"

    def state(self) -> dict[str, np.ndarray]:
        """Return what is to be kept: int64 `sums` (the bits) and `taken`, uint8 `rest`."""
        return {"sums": self._sums.view(np.int64).copy(), "taken": np.array([self._taken]), "rest": self._rest.copy()}

    @classmethod
    def restored(cls, state: dict[str, np.ndarray]) -> ResumableHash:
        """Return a hasher that goes on from a state."""
        found = cls()
        found._sums = state["sums"].view(np.uint64).copy()
        found._taken, found._rest = int(state["taken"][0]), state["rest"].copy()
        return found


@njit(nogil=True)
def _add(sums, words, keys):
    for i in range(8):
        word = words[i]
        mixed = word ^ keys[i]
        sums[i ^ 1] += word
        sums[i] += (mixed & np.uint64(0xFFFFFFFF)) * (mixed >> np.uint64(32))


@njit(nogil=True)
def _accumulate(sums, words, stripe, keys, scramble):
    """Take in stripes [n, 8] of which the first is a block's `stripe`-th."""
    for n in range(words.shape[0]):
        _add(sums, words[n], keys[stripe])
        stripe += 1
        if stripe == 16:
            stripe = 0
            for i in range(8):
                mixed = sums[i] ^ (sums[i] >> np.uint64(47)) ^ scramble[i]
                sums[i] = mixed * np.uint64(0x9E3779B1)


def _merge(sums: np.ndarray, offset: int, start: int) -> int:
    """Fold eight sums into 64 bits, by the secret from `offset` on."""
    mixed = [int(a) ^ int(b) for a, b in zip(sums, _words(offset, 8), strict=True)]
    total = start
    for i in range(0, 8, 2):
        product = mixed[i] * mixed[i + 1]
        total += (product & _MASK) ^ (product >> 64)
    total &= _MASK
    total ^= total >> 37
    total = total * 0x165667919E3779F9 & _MASK
    return total ^ total >> 32
