//! CRC-32C (Castagnoli), the checksum of everything on disk: any burst of wrong bits up to 32 long is seen.
//!
//! By `crc-fast`, with AVX-512 where there is: 24 ns for a record of 1.2 KiB, 75 ns by the `crc32c` crate
//! (hot cache, an AMD EPYC with `vpclmulqdq`); both at 8 ns for a header.

use crc_fast::{CrcAlgorithm, Digest};

/// The checksum of these bytes.
#[inline]
pub fn crc32c(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}

/// The checksum of what has checksum `crc`, and these bytes behind it.
#[inline]
pub fn crc32c_append(crc: u32, bytes: &[u8]) -> u32 {
    let mut digest = Digest::new_with_init_state(CrcAlgorithm::Crc32Iscsi, u64::from(!crc));
    digest.update(bytes);
    digest.finalize() as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From RFC 3720, B.4.
    #[test]
    fn it_is_the_one_of_the_standard() {
        let table: [(&[u8], u32); 4] = [
            (&[0; 32], 0x8a91_36aa),
            (&[0xff; 32], 0x62a8_ab43),
            (&std::array::from_fn::<u8, 32, _>(|i| i as u8), 0x46dd_794e),
            (b"123456789", 0xe306_9283),
        ];
        for (bytes, wanted) in table {
            assert_eq!(crc32c(bytes), wanted, "{bytes:?}");
        }
        assert_eq!(crc32c(b""), 0);
    }

    /// Each length takes its own way through the wide instructions.
    #[test]
    fn pieces_add_up() {
        let bytes: Vec<u8> = (0..3000u32).map(|i| ((i * i) >> 3) as u8).collect();
        for length in (0..400).chain([511, 512, 1023, 1200, 2047, 3000]) {
            let (left, right) = bytes[..length].split_at(length / 3);
            assert_eq!(crc32c_append(crc32c(left), right), crc32c(&bytes[..length]), "{length}");
            assert_eq!(crc32c(&bytes[..length]), slow(&bytes[..length]), "{length}");
        }
    }

    fn slow(bytes: &[u8]) -> u32 {
        let bit = |crc: u32| (crc >> 1) ^ if crc & 1 == 1 { 0x82f6_3b78 } else { 0 };
        !bytes.iter().fold(!0, |crc, byte| (0..8).fold(crc ^ u32::from(*byte), |crc, _| bit(crc)))
    }
}
