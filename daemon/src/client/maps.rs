//! The mappings of a client: by `PROCMAP_QUERY` where the kernel has it (6.11), by the text of `/proc/PID/maps`
//! otherwise.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::os::unix::fs::FileExt;

use nix::errno::Errno;

use crate::sys::{self, MemoryFault, Vma};

/// The mapping that covers `client_addr`; `maps` is an open `/proc/PID/maps`.
///
/// # Errors
/// [`MemoryFault::Gone`] when the address space is gone.
pub fn covering(maps: &File, client_addr: u64) -> Result<Option<Vma>, MemoryFault> {
    match sys::query_vma(maps, client_addr) {
        Err(Errno::ENOTTY) => {
            let text = BufReader::new(FromStart {
                file: maps,
                offset: 0,
            });
            covering_in(text, client_addr).map_err(|_| MemoryFault::Gone)
        }
        Err(errno) => Err(errno.into()),
        Ok(vma) => Ok(vma),
    }
}

fn covering_in(text: impl BufRead, client_addr: u64) -> io::Result<Option<Vma>> {
    for line in text.lines() {
        if let Some(vma) = parse(&line?)
            && client_addr < vma.end
        {
            return Ok(Some(vma).filter(|vma| vma.start <= client_addr));
        }
    }
    Ok(None)
}

/// A line of `/proc/PID/maps`, e.g. `7f0a1000-7f0a3000 rw-s 00001000 00:05 17  /dmabuf:`.
fn parse(line: &str) -> Option<Vma> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let permissions = words.next()?.as_bytes();
    Some(Vma {
        start: u64::from_str_radix(start, 16).ok()?,
        end: u64::from_str_radix(end, 16).ok()?,
        readable: permissions.first() == Some(&b'r'),
        writable: permissions.get(1) == Some(&b'w'),
    })
}

/// Reads a file from its start without moving an offset that other threads use too.
struct FromStart<'a> {
    file: &'a File,
    offset: u64,
}

impl Read for FromStart<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use super::{covering_in, parse};

    const MAPS: &str = "1000-3000 rw-p 00000000 00:00 0\n4000-5000 r--s 00001000 00:05 17  /dmabuf:\n";

    fn at(addr: u64) -> Option<(u64, u64, bool)> {
        covering_in(MAPS.as_bytes(), addr)
            .expect("text")
            .map(|vma| (vma.start, vma.end, vma.writable))
    }

    #[test]
    fn the_covering_line_is_found_and_a_gap_is_not() {
        assert_eq!(at(0x1000), Some((0x1000, 0x3000, true)));
        assert_eq!(at(0x2fff), Some((0x1000, 0x3000, true)));
        assert_eq!(at(0x4fff), Some((0x4000, 0x5000, false)));
        assert_eq!((at(0xfff), at(0x3000), at(0x5000)), (None, None, None));
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        assert_eq!(parse("nonsense"), None);
        assert_eq!(parse("1000-zz rw-p"), None);
        assert_eq!(parse(""), None);
    }
}
