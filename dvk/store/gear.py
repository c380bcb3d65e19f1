"""The gear hash that finds cut points, in numpy: the reference for every faster engine.

Problem: cut points are part of the format, and the native library that finds them may be missing on a
platform or change its mind in a release. A Python loop over bytes reaches a few MB/s.

    scanner = GearScanner(rule)
    scanner.lengths(data)          # array of chunk lengths; the last one may have met the end of `data`

Choice: the hash `h = 2 h + GEAR[byte]` over the bytes since the scan of this chunk began is a sum of shifted
table entries, so all positions of a slice come out of six shift-and-add passes (windows of 2, 4, ... 64).
Each chunk is scanned on its own, from its first candidate on. That skips the bytes no cut can lie in, as the
native loop does, and makes the partial windows at the start right without a special case: nothing lies
before the slice. Slices are small enough for the temporaries to stay in a core's cache.

The rule in words, with test vectors: docs/format/chunking.md.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import numpy.typing as npt

from dvk.store.profiles import GearRule

U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

# Entry i is the first eight bytes, read big-endian, of the MD5 of 64 bytes of value i. Written out, since
# MD5 is not there on every machine; docs/format/vectors/chunking/gear.bin holds the same numbers.
_TABLE: Final = (
    "3b5d3c7d207e37dc784d68ba91123086cd52880f882e7298eacf8e4e19fdcca7c31f385dfbd1632b1d5f27001e25abe6"
    "83130bde3c9ad991c4b225676e9b7649aa329b29e08eb499b67fcbd21e577d580027baaada2acf6be3ef2d5ac73c2226"
    "0890f24d6ed312b7a809e036851d7c7ef0a6fe5e0013d81b1d026304452cec1403864632648e248fcdaacf3dcd92b9b4"
    "f5e012e63c1878568862f9d3821c00b6a82f7338750f6f8a1e583dc6c1cb0b6f7a3145b69743a7f1abb20fee404807eb"
    "b14b3cfe07b83a5db9dc27898adb9a0f3703f5e91baa62becf0bb866815f7d983d9867c41ea9dcd31be1fa65442bf22c"
    "14300da4c55631d9e698e9cbc6545c994763107ec64e92a5c65821fc65696a2476196c064822f0b7485be841f3525e01"
    "f652bc9c85974ff5cad8352face9e3e92a6ed1dceb35e98ec6f483badc11680f3cfd8c17e9cf12f189b83c5e2ea56471"
    "ae665cfd24e392a9ec33c4e504cb89153fb9b15fc9fe7451d7fd1fd1945f219531ade0853443efd8255efc9863e1e2d2"
    "10eab6008d5642cf46f04863257ac804a52dc42a789a27d3daaadf9ce77af5656b479cd53d87febb6309e2d3f93db72f"
    "c5738ffbaa1ff9d66bd57f3f25af796867605486d90d0a4ae14d0b9663bfbdaeb7bbd8d816eb0414def8a4f16b35a116"
    "e7932d85aaaffed608161cbae90cfd48855507beb294f08b91234ea6ffd399b2ad70cf4b2435f302d289a97565bc2d27"
    "8e558437ffca99de96d2704b7115c0400889bbcdfc660e415e0d4e67dc92128d72a9f8917063ed97438b69d409e016e3"
    "df4fed8a5d8a439700f41dcf41d403f74814eb038e52603f9dafbacc58e2d651fe2f458e4be170af4457ec414df6a940"
    "06e62f1451123314bd1014d173ba92ccdef318e25ed577609fea0de9dfca8525459de1e76c20624baeec189617e2d666"
    "126a2c06ab5a83cbb1321532360f613265421503dbb401232d67c287ea089ab36c93bff5a56bd6b64ffb2036cab6d98d"
    "ce7b785b1be7ad4fedb42ef6189fd163dc905288703988f6365f9c1d2c691884c640583680d99bfe3cd4624c07593ec6"
    "7f1ea8d85d7c5805014842d480b571490b649bcb5a828688bcd5708ed79b18f0e987c862fbd2f2f0982731671f0cd82c"
    "baf13e8b16d8c0638ea3109cbd951bbad141045bfb385cad2acbc1a0af1f7d30e6444d89df03bfdfa18cc771b8188ff9"
    "9834429db01c39bb214add07fe086a1f8f07c19b1f6b3ff956a297b1bf4ffe5594d558e493c54fc740bfc24c764552cb"
    "931a706f8a8520cb32229d322935bd522560d0f5dc4fefaf9dbcc48355969bb60fd81c3985c0b56ae03817e1560f2bda"
    "c1bb4f81d892b2d5b0c4864f4e28d2d73ecc49f9d9d6c26351307e99b52ba65e8af2b688da84a752f5d72523b91b20b6"
    "6d95ff1ff4634806562f21555458339ac0ce47f889336346487823e5089b40d8e4727c7ebc6d95925a8f7277e94970ba"
    "fca2f406b1c8bb505b1f8a95f1791070d304af9fc90286055440ab7fc930e748312d25fbca2ab5a110f4a4b234a4d575"
    "90301d55047e74733b6372886c61591e293402b77c444e06451f34a4d3e97dd73158d814d81bc57b034942425b9bda69"
    "e2032ff9e532d9bb62ae066b8b2179e59545e10c2f8d71d87ff7483eb2d23fc000945fcebdc98d868764bbbe99b26ca2"
    "1b1ec62284c0bfc358e0fcc4f0aa362b5f4abefa878d458dfd74ac2f9607c519a4e3fb37df8cbfa9bf697e43cac574e5"
    "86f14a3f68f4cd5324a23d076f1ce522e725cd8048868cc8bf3c729eb2464362d8f6cd57b3cc1ed86329e52425541577"
    "62aa688ad5ae1ac00a242566269bf845168b1a4753aca74bf789afefff2e7e3c6c3362093b6fccdb4ce8f50bd28c09b2"
    "006a2db95ae8aa93975b0d623c3d1a8c18605d3935338c5b5bb6f6136cad3c710f53a20701f8d8a6ab8c5ad2e7e93c67"
    "40b5ac5127acaa298c7bf63c2075895f78bd9f7e014a805cb2c9e9f4f9c8c032efd6049827eb91f32be459f482c16fbd"
    "d92ce0c5745aaa8c0aaa8fb298d965b92b37f92c6c803b158c54a5e94e0f0e7895f9b6e90c0a3032e7939faa436c7874"
    "d16bfe8f6a8a40c944982b86263fd2fae285fb39f984e583779a8df72d7619d3f2d79a8de8d5dd1ed1037354d66684e2"
    "004c82a4e668a8e531d40a7668b044e6d70578538bd02c11db45431078c5f482977121bb7f6a51ad73d5ccbd34eff8dd"
    "e437a07d356e17cd47b2782043c956279fb251413e41d49accd70b60652513d31c95b31e8a1b49b2cae73dfd1bcb4c1b"
    "34d98331b1f5b70f784e39f22338d92f18613d4a064df420f1d8dae25f0bcebe33f77c15ae855efc3c88b3b912eb109c"
    "956a2ec96bafeea51aa005b5e0ad0e875500d70527c4bb8ee36c57196421cc4413c4d286cc36ee395654a23d818b2a81"
    "77b1dc13d161abdc734f44de5f8d5eb560717e174a6c89a2d47d9649266a211e5b13a4322bb69e90f7669609f8b5fc3c"
    "21e6ac55bedcdac99b56b62b61166deaf48f66b939797e9c35f332f9c0e6ae9acc733f6a9a878db03da161e41cc108c2"
    "b7d74ae535914d514d493b0b11d36469ce264d1dfba9741aa9d1f2dc7436dc0670738016604c2a27231d36e96e93f3d5"
    "7666881197838d194a2a83090aaad40cf1e761591668b35d7363236497f730a7301080e37379dd4d502dea2971827042"
    "c2c5eb858f32625f786afb9edfafbdffdaee0d868490b2a4617366b3268609f6ae0e35a0fe46173ed1a07de93e824f11"
    "079b8b115ea4cca893a99274558faebbfb1e6e22e08a03b3ea635fdba3698dd0cf53659328503a5ccde3b31e6fd5d780"
    "8e3e4221d3614413ef14d0d86bf1a22ce1d830d3f16c5ddbaabd2b2a451504e1"
)
GEAR: Final[U64] = np.frombuffer(bytes.fromhex(_TABLE), ">u8").astype(np.uint64)
GEAR.setflags(write=False)

_WINDOW = 64  # a byte is shifted out of the 64-bit hash after this many more
_SLICE = 24 * 1024  # positions hashed at a time: more leave the cache, fewer cost calls (measured)


class GearScanner:
    """Finds the chunks of a buffer under one rule. Owns scratch memory (400 KB): one thread at a time."""

    def __init__(self, rule: GearRule) -> None:
        self.rule = rule
        self._mask = np.uint64(rule.mask)
        self._hash = np.empty(_SLICE + _WINDOW, np.uint64)
        self._shifted = np.empty(_SLICE + _WINDOW, np.uint64)
        self._zero = np.empty(_SLICE + _WINDOW, np.bool_)

    def lengths(self, data: U8) -> I64:
        """The lengths of the chunks of `data`, taken as a whole file; their sum is `len(data)`."""
        found: list[int] = []
        start = 0
        while start < len(data):
            found.append(self._chunk_length(data, start))
            start += found[-1]
        return np.array(found, np.int64)

    def _chunk_length(self, data: U8, start: int) -> int:
        """The length of the chunk that begins at `start`."""
        rule = self.rule
        limit = min(len(data) - start, rule.max_bytes)
        if limit <= rule.min_bytes:
            return limit
        first = start + rule.min_bytes
        stop = start + limit // 2 * 2  # positions are tested in pairs: a last odd one is not
        at = first
        while at < stop:
            end = min(at + _SLICE, stop)
            begin = max(first, at - _WINDOW + 1)
            zero = self._zeros(data[begin:end])[at - begin :]
            hit = int(zero.argmax())
            if zero[hit]:
                return at + hit - start
            at = end
        return limit

    def _zeros(self, data: U8) -> npt.NDArray[np.bool_]:
        """For each position, whether the hash that begins at the start of `data` is zero under the mask."""
        n = len(data)
        hashes = self._hash[:n]
        np.take(GEAR, data, out=hashes, mode="clip")  # "clip" writes into `out` unbuffered; 255 is in range
        width = 1
        while width < min(_WINDOW, n):
            older = self._shifted[: n - width]
            np.left_shift(hashes[:-width], np.uint64(width), out=older)
            hashes[width:] += older
            width *= 2
        np.bitwise_and(hashes, self._mask, out=hashes)
        return np.equal(hashes, 0, out=self._zero[:n])
