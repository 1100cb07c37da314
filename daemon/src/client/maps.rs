//! The mappings of a client: by `PROCMAP_QUERY` where the kernel has it (6.11), by the text of `/proc/PID/maps`
//! otherwise.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read};
use std::ops::Range;
use std::os::unix::fs::FileExt;

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::sys::{self, MemoryFault, Vma};

/// Shows `each` the mappings that cover `range`, one after the other; `maps` is an open `/proc/PID/maps`.
///
/// # Errors
/// The first that `each` gives; [`MemoryFault::Fault`] for a hole; [`MemoryFault::Gone`] when the address space is gone.
pub fn each_covering(
    maps: &File,
    range: Range<u64>,
    each: impl FnMut(Vma) -> Result<(), MemoryFault>,
) -> Result<(), MemoryFault> {
    by_query(maps, range, |at| sys::query_vma(maps, at), each)
}

/// The same for who does not want the names: they may be there or not.
///
/// # Errors
/// As [`each_covering`].
pub fn each_unnamed(
    maps: &File,
    range: Range<u64>,
    each: impl FnMut(Vma) -> Result<(), MemoryFault>,
) -> Result<(), MemoryFault> {
    by_query(maps, range, |at| sys::query_vma_unnamed(maps, at), each)
}

fn by_query(
    maps: &File,
    range: Range<u64>,
    query: impl Fn(u64) -> Result<Option<Vma>, Errno>,
    mut each: impl FnMut(Vma) -> Result<(), MemoryFault>,
) -> Result<(), MemoryFault> {
    let mut at = range.start;
    while at < range.end {
        match query(at) {
            Err(Errno::ENOTTY) => {
                let text = BufReader::with_capacity(
                    1 << 16,
                    FromStart {
                        file: maps,
                        offset: 0,
                    },
                );
                return each_covering_in(text, at..range.end, each);
            }
            Err(errno) => return Err(errno.into()),
            Ok(None) => return Err(MemoryFault::Fault),
            Ok(Some(vma)) => {
                at = vma.end;
                each(vma)?;
            }
        }
    }
    Ok(())
}

/// The same by the text, in one pass.
fn each_covering_in(
    text: impl BufRead,
    range: Range<u64>,
    mut each: impl FnMut(Vma) -> Result<(), MemoryFault>,
) -> Result<(), MemoryFault> {
    let mut at = range.start;
    for line in text.lines() {
        let vma = parse(&line.map_err(|_| MemoryFault::Gone)?);
        let Some(vma) = vma.filter(|vma| at < vma.end) else {
            continue;
        };
        if at < vma.start {
            break;
        }
        at = vma.end;
        each(vma)?;
        if at >= range.end {
            return Ok(());
        }
    }
    Err(MemoryFault::Fault)
}

/// A line of `/proc/PID/maps`, e.g. `7f0a1000-7f0a3000 rw-s 00001000 00:05 17  /dmabuf:`.
fn parse(line: &str) -> Option<Vma> {
    let mut rest = line;
    let mut word = || {
        let trimmed = rest.trim_start_matches(' ');
        let (word, behind) = trimmed.split_once(' ').unwrap_or((trimmed, ""));
        rest = behind;
        word
    };
    let hex = |text| u64::from_str_radix(text, 16).ok();
    let (start, end) = word().split_once('-')?;
    let permissions = word().as_bytes();
    let offset = hex(word())?;
    let (major, minor) = word().split_once(':')?;
    let inode = word().parse().ok()?;
    let minor_of = |text| u32::from_str_radix(text, 16).ok();
    Some(Vma {
        start: hex(start)?,
        end: hex(end)?,
        readable: permissions.first() == Some(&b'r'),
        writable: permissions.get(1) == Some(&b'w'),
        shared: permissions.get(3) == Some(&b's'),
        offset,
        device: (minor_of(major)?, minor_of(minor)?),
        inode,
        // The rest of the line: a path may have blanks in it.
        name: rest.trim_start_matches(' ').as_bytes().to_vec(),
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

/// Is any of `range` locked, in the process of `tid`? `smaps` takes its time, so it is read only where the process has
/// locked anything at all.
///
/// # Errors
/// What reading `/proc` says.
pub(super) fn is_locked(tid: Pid, range: Range<u64>) -> io::Result<bool> {
    let status = fs::read_to_string(format!("/proc/{tid}/status"))?;
    let locked = status.lines().find_map(|line| line.strip_prefix("VmLck:"));
    if locked.is_some_and(|locked| locked.trim_start().starts_with("0 ")) {
        return Ok(false);
    }
    Ok(has_locked(&fs::read(format!("/proc/{tid}/smaps"))?, &range))
}

/// Has any mapping in `smaps` that overlaps with `range` the flag `lo`? Names in it may be any bytes.
fn has_locked(smaps: &[u8], range: &Range<u64>) -> bool {
    let mut overlaps = false;
    smaps.split(|byte| *byte == b'\n').any(|line| {
        let line = String::from_utf8_lossy(line);
        if let Some(flags) = line.strip_prefix("VmFlags:") {
            return overlaps && flags.split_whitespace().any(|flag| flag == "lo");
        }
        let bounds = line
            .split_whitespace()
            .next()
            .and_then(|word| word.split_once('-'));
        let address = |text| u64::from_str_radix(text, 16);
        if let Some((Ok(start), Ok(end))) = bounds.map(|(start, end)| (address(start), address(end))) {
            overlaps = start < range.end && range.start < end;
        }
        false
    })
}

#[cfg(test)]
mod tests {
    use super::{each_covering_in, has_locked, parse};
    use crate::sys::MemoryFault;

    const MAPS: &str = "1000-3000 rw-p 00000000 00:00 0 \n3000-4000 r--p 0 00:00 0\n\
        5000-6000 rw-s 00001000 00:05 17  /dmabuf:\n";

    /// Where the mappings shown begin, and how it ended.
    fn shown(range: std::ops::Range<u64>) -> (Vec<u64>, Result<(), MemoryFault>) {
        let mut starts = Vec::new();
        let outcome = each_covering_in(MAPS.as_bytes(), range, |vma| {
            starts.push(vma.start);
            Ok(())
        });
        (starts, outcome)
    }

    #[test]
    fn a_locked_mapping_is_found_where_it_lies_and_not_beside_it() {
        let smaps = b"1000-3000 rw-p 00000000 00:00 0 \nSize: 8 kB\nVmFlags: rd wr mr mw me ac lo \n\
            3000-4000 rw-p 0 00:00 0 /x-lo\nVmFlags: rd wr mr\n";
        assert!(has_locked(smaps, &(0x2000..0x3800)));
        assert!(!has_locked(smaps, &(0x3000..0x4000)));
        assert!(!has_locked(smaps, &(0x4000..0x5000)));
    }

    #[test]
    fn a_range_in_one_mapping_and_one_over_two_are_shown_whole() {
        assert_eq!(shown(0x1000..0x3000), (vec![0x1000], Ok(())));
        assert_eq!(shown(0x2fff..0x3001), (vec![0x1000, 0x3000], Ok(())));
        assert_eq!(shown(0x5fff..0x6000), (vec![0x5000], Ok(())));
    }

    #[test]
    fn a_hole_before_in_or_behind_the_range_is_a_fault() {
        assert_eq!(shown(0xfff..0x1001), (vec![], Err(MemoryFault::Fault)));
        assert_eq!(shown(0x3fff..0x5001), (vec![0x3000], Err(MemoryFault::Fault)));
        assert_eq!(shown(0x5fff..0x6001), (vec![0x5000], Err(MemoryFault::Fault)));
        assert_eq!(shown(0x7000..0x7001), (vec![], Err(MemoryFault::Fault)));
    }

    #[test]
    fn a_refusal_ends_the_walk() {
        let outcome = each_covering_in(MAPS.as_bytes(), 0x2000..0x4000, |vma| {
            if vma.writable {
                Ok(())
            } else {
                Err(MemoryFault::Fault)
            }
        });
        assert_eq!(outcome, Err(MemoryFault::Fault));
    }

    #[test]
    fn lines_that_are_none_are_passed_over() {
        assert_eq!(parse("nonsense"), None);
        assert_eq!(parse("1000-zz rw-p"), None);
        assert_eq!(parse(""), None);
    }

    #[test]
    fn every_field_of_a_line_is_read_and_a_path_keeps_its_blanks() {
        let vma =
            parse("5000-6000 r--s 00001000 fe:1a 17                   /a b  c (deleted)").expect("a mapping");
        assert_eq!(
            (vma.start, vma.end, vma.offset, vma.inode),
            (0x5000, 0x6000, 0x1000, 17)
        );
        assert_eq!((vma.readable, vma.writable, vma.shared), (true, false, true));
        assert_eq!(vma.device, (0xfe, 0x1a));
        assert_eq!(vma.name, b"/a b  c (deleted)");
        let bare = parse("1000-3000 rw-p 00000000 00:00 0 ").expect("a mapping");
        assert_eq!((bare.shared, bare.inode, bare.name.len()), (false, 0, 0));
    }

    #[test]
    fn the_text_and_the_query_say_the_same_of_every_mapping_of_ours() {
        let maps = std::fs::File::open("/proc/self/maps").expect("our own");
        let text = std::fs::read_to_string("/proc/self/maps").expect("our own");
        for vma in text.lines().filter_map(parse) {
            match crate::sys::query_vma(&maps, vma.start) {
                // Linux before 6.11.
                Err(nix::errno::Errno::ENOTTY) => return,
                // Another test may have unmapped it, and the stack grows.
                Ok(Some(found)) if found.start == vma.start && found.end == vma.end => {
                    assert_eq!(found, vma);
                    match crate::sys::query_vma_unnamed(&maps, vma.start) {
                        Ok(Some(unnamed)) if unnamed.end == vma.end => {
                            assert!(vma.is_still(&unnamed) && unnamed.name.is_empty());
                        }
                        _ => {}
                    }
                }
                _ => {}
            }
        }
    }
}
