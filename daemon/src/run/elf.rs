//! What kind of program a file is, by its first bytes: whether a dynamic linker will load it, and which.
//!
//! The bytes are anybody's: every offset and length in them is checked, and what cannot be read is no program.

/// Reads some bytes from an offset on, all of them or `None`.
pub type ReadAt<'a> = &'a dyn Fn(u64, &mut [u8]) -> Option<()>;

/// A path in a program is no longer (`PATH_MAX`).
const LONGEST_PATH: u64 = 4096;
/// More headers than a linker makes; the kernel takes 64 KiB of them (fs/binfmt_elf.c, `load_elf_phdrs`).
const MOST_HEADERS: u16 = 1170;
/// The kernel looks no further for the end of a `#!` line (`BINPRM_BUF_SIZE`).
const SCRIPT_LINE: usize = 256;

const PT_INTERP: u32 = 3;

/// What the kernel will make of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Format {
    /// A program.
    Elf(Elf),
    /// A script for this program.
    Script(Vec<u8>),
    /// None that we know: the kernel may have a handler (binfmt_misc), and a shell may take it for a script.
    Other,
}

/// A program for a processor.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Elf {
    /// What it runs on.
    pub abi: Abi,
    /// The dynamic linker that it asks for; a static program has none.
    pub interpreter: Option<Vec<u8>>,
}

/// What a program runs on, as far as it decides which libraries it can load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Abi {
    /// `EI_CLASS`: 1 is 32-bit, 2 is 64-bit.
    pub class: u8,
    /// `EI_DATA`: 1 is little-endian, 2 is big-endian.
    pub data: u8,
    /// `e_machine`
    pub machine: u16,
}

/// What can load a program's libraries on the machines that we know, and Debian's name for it (`$LIB` is `lib/` and the
/// name there; elsewhere it is `lib64` or `lib`).
const ABIS: [(Abi, &str); 5] = [
    (Abi::new(2, 62), "x86_64-linux-gnu"),
    (Abi::new(1, 3), "i386-linux-gnu"),
    (Abi::new(1, 62), "x86_64-linux-gnux32"),
    (Abi::new(2, 183), "aarch64-linux-gnu"),
    (Abi::new(1, 40), "arm-linux-gnueabihf"),
];

impl Abi {
    const fn new(class: u8, machine: u16) -> Self {
        Self {
            class,
            data: 1,
            machine,
        }
    }

    /// 32-bit?
    #[must_use]
    pub fn is_32_bit(self) -> bool {
        self.class == 1
    }

    /// What 32-bit programs of the same machine are.
    #[must_use]
    pub fn smaller(self) -> Option<Self> {
        match self.machine {
            62 if !self.is_32_bit() => Some(Self::new(1, 3)),
            183 => Some(Self::new(1, 40)),
            _ => None,
        }
    }

    /// What the dynamic linker may put for `$LIB`, the most probable first.
    #[must_use]
    pub fn lib_folders(self) -> Vec<String> {
        let known = ABIS.iter().find(|(abi, _)| *abi == self);
        let debian = known.map(|(_, name)| format!("lib/{name}"));
        let plain = if self.is_32_bit() { "lib" } else { "lib64" };
        debian.into_iter().chain([plain.to_owned()]).collect()
    }
}

/// Numbers as `EI_DATA` says.
struct Order {
    big: bool,
}

impl Order {
    fn number(&self, bytes: &[u8]) -> u64 {
        let join = |sum: u64, byte: &u8| sum << 8 | u64::from(*byte);
        if self.big {
            bytes.iter().fold(0, join)
        } else {
            bytes.iter().rev().fold(0, join)
        }
    }

    /// `length` bytes of `header` from `at` on: 0 if they are not there.
    fn at(&self, header: &[u8], at: usize, length: usize) -> u64 {
        header.get(at..at + length).map_or(0, |bytes| self.number(bytes))
    }

    fn short(&self, header: &[u8], at: usize) -> u16 {
        // Two bytes.
        u16::try_from(self.at(header, at, 2)).unwrap_or(0)
    }
}

/// Looks at a file.
#[must_use]
pub fn format(read: ReadAt) -> Format {
    let mut start = [0; 4];
    if read(0, &mut start[..2]).is_none() {
        return Format::Other;
    }
    if &start[..2] == b"#!" {
        return script(read).map_or(Format::Other, Format::Script);
    }
    if read(0, &mut start).is_none() || &start != b"\x7fELF" {
        return Format::Other;
    }
    elf(read).map_or(Format::Other, Format::Elf)
}

/// The program that a `#!` line names.
fn script(read: ReadAt) -> Option<Vec<u8>> {
    let mut line = Vec::new();
    for at in 2..SCRIPT_LINE {
        let mut byte = [0];
        // The file may end before the line does.
        if read(at as u64, &mut byte).is_none() || byte[0] == b'\n' {
            break;
        }
        line.push(byte[0]);
    }
    let is_blank = |byte: &u8| matches!(byte, b' ' | b'\t');
    let from = line.iter().position(|byte| !is_blank(byte))?;
    let name: Vec<u8> = line[from..]
        .iter()
        .copied()
        .take_while(|byte| !is_blank(byte) && *byte != 0)
        .collect();
    (!name.is_empty()).then_some(name)
}

fn elf(read: ReadAt) -> Option<Elf> {
    let mut ident = [0; 20];
    read(0, &mut ident)?;
    let (class, data) = (ident[4], ident[5]);
    let is_64 = match class {
        1 => false,
        2 => true,
        _ => return None,
    };
    let order = Order {
        big: match data {
            1 => false,
            2 => true,
            _ => return None,
        },
    };
    let abi = Abi {
        class,
        data,
        machine: order.short(&ident, 18),
    };
    // struct elf32_hdr, struct elf64_hdr (uapi/linux/elf.h).
    let mut header = [0; 64];
    read(0, &mut header[..if is_64 { 64 } else { 52 }])?;
    let (table, size, count) = if is_64 {
        (
            order.at(&header, 32, 8),
            order.short(&header, 54),
            order.short(&header, 56),
        )
    } else {
        (
            order.at(&header, 28, 4),
            order.short(&header, 42),
            order.short(&header, 44),
        )
    };
    if size != if is_64 { 56 } else { 32 } || count > MOST_HEADERS {
        return None;
    }
    for index in 0..count {
        let at = table.checked_add(u64::from(index) * u64::from(size))?;
        let mut entry = [0; 56];
        read(at, &mut entry[..usize::from(size)])?;
        if order.at(&entry, 0, 4) != u64::from(PT_INTERP) {
            continue;
        }
        // p_offset and p_filesz.
        let (offset, length) = if is_64 {
            (order.at(&entry, 8, 8), order.at(&entry, 32, 8))
        } else {
            (order.at(&entry, 4, 4), order.at(&entry, 16, 4))
        };
        if length > LONGEST_PATH {
            return None;
        }
        let mut path = vec![0; usize::try_from(length).ok()?];
        read(offset, &mut path)?;
        path.truncate(path.iter().position(|byte| *byte == 0)?);
        return Some(Elf {
            abi,
            interpreter: Some(path),
        });
    }
    Some(Elf {
        abi,
        interpreter: None,
    })
}

#[cfg(test)]
mod tests {
    use super::{Abi, Elf, Format, format};
    use proptest::prelude::*;

    fn of(bytes: &[u8]) -> Format {
        format(&|at, into: &mut [u8]| {
            let at = usize::try_from(at).ok()?;
            into.copy_from_slice(bytes.get(at..at.checked_add(into.len())?)?);
            Some(())
        })
    }

    /// An ELF file with a PT_LOAD and, perhaps, a PT_INTERP at its end.
    fn made(is_64: bool, big: bool, machine: u16, interpreter: Option<&[u8]>) -> Vec<u8> {
        let put = |bytes: &mut Vec<u8>, at: usize, length: usize, value: u64| {
            let mut number = value.to_le_bytes()[..length].to_vec();
            if big {
                number.reverse();
            }
            bytes[at..at + length].copy_from_slice(&number);
        };
        let (header, entry) = if is_64 { (64, 56) } else { (52, 32) };
        let mut bytes = vec![0; header + 2 * entry];
        bytes[..4].copy_from_slice(b"\x7fELF");
        bytes[4] = if is_64 { 2 } else { 1 };
        bytes[5] = if big { 2 } else { 1 };
        put(&mut bytes, 18, 2, machine.into());
        let (table, size, count) = if is_64 { (32, 54, 56) } else { (28, 42, 44) };
        put(&mut bytes, table, if is_64 { 8 } else { 4 }, header as u64);
        put(&mut bytes, size, 2, entry as u64);
        put(&mut bytes, count, 2, 2);
        put(&mut bytes, header, 4, 1);
        put(
            &mut bytes,
            header + entry,
            4,
            if interpreter.is_some() { 3 } else { 6 },
        );
        let path = interpreter.unwrap_or_default();
        let (offset, length, word) = if is_64 { (8, 32, 8) } else { (4, 16, 4) };
        let end = bytes.len() as u64;
        put(&mut bytes, header + entry + offset, word, end);
        put(&mut bytes, header + entry + length, word, path.len() as u64);
        bytes.extend(path);
        bytes
    }

    #[test]
    fn class_machine_and_interpreter_are_read_in_either_order_of_bytes() {
        for is_64 in [false, true] {
            for big in [false, true] {
                let bytes = made(is_64, big, 62, Some(b"/lib64/ld-linux-x86-64.so.2\0"));
                let abi = Abi {
                    class: 1 + u8::from(is_64),
                    data: 1 + u8::from(big),
                    machine: 62,
                };
                let interpreter = Some(b"/lib64/ld-linux-x86-64.so.2".to_vec());
                assert_eq!(of(&bytes), Format::Elf(Elf { abi, interpreter }));
                let none = Elf {
                    abi,
                    interpreter: None,
                };
                assert_eq!(of(&made(is_64, big, 62, None)), Format::Elf(none));
            }
        }
    }

    #[test]
    fn this_very_program_is_dynamic_and_of_this_machine() {
        let bytes = std::fs::read("/proc/self/exe").expect("ourselves");
        let Format::Elf(elf) = of(&bytes) else {
            panic!("no ELF")
        };
        let interpreter = String::from_utf8(elf.interpreter.expect("dynamic")).expect("a path");
        assert!(std::fs::exists(&interpreter).expect("a path"), "{interpreter}");
        assert_eq!(elf.abi.is_32_bit(), size_of::<usize>() == 4);
        assert_eq!(elf.abi.lib_folders().len(), 2, "{:?}", elf.abi);
    }

    #[test]
    fn the_program_behind_a_script_is_what_its_first_line_names() {
        let named = |text: &str| match of(text.as_bytes()) {
            Format::Script(path) => Some(String::from_utf8(path).expect("text")),
            _ => None,
        };
        assert_eq!(named("#!/bin/sh\necho").as_deref(), Some("/bin/sh"));
        assert_eq!(
            named("#! \t/usr/bin/env python3\n").as_deref(),
            Some("/usr/bin/env")
        );
        assert_eq!(named("#!/bin/sh").as_deref(), Some("/bin/sh"));
        assert_eq!(named("#!"), None);
        assert_eq!(named("#!  \n/bin/sh"), None);
    }

    #[test]
    fn lib_is_a_folder_of_the_programs_own_class() {
        assert_eq!(Abi::new(2, 62).lib_folders(), ["lib/x86_64-linux-gnu", "lib64"]);
        assert_eq!(Abi::new(1, 3).lib_folders(), ["lib/i386-linux-gnu", "lib"]);
        assert_eq!(Abi::new(2, 243).lib_folders(), ["lib64"]);
    }

    #[test]
    fn lengths_and_offsets_that_lie_are_refused() {
        let good = made(true, false, 62, Some(b"/ld\0"));
        // p_filesz of PT_INTERP, p_offset, e_phoff, e_phentsize, e_phnum, EI_CLASS.
        for (at, value) in [
            (64 + 56 + 32, 0xff),
            (64 + 56 + 8 + 7, 0xff),
            (32 + 7, 0xff),
            (54, 1),
            (57, 0xff),
            (4, 3),
        ] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(of(&bytes), Format::Other, "byte {at}");
        }
        assert_eq!(of(&good[..good.len() - 1]), Format::Other);
        for end in 0..good.len() {
            assert_eq!(of(&good[..end]), Format::Other, "{end}");
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_looked_at_without_harm(mut bytes in proptest::collection::vec(any::<u8>(), 0..300), class in 0u8..4) {
            drop(of(&bytes));
            if bytes.len() > 6 {
                bytes[..4].copy_from_slice(b"\x7fELF");
                bytes[4] = class;
                bytes[5] = 1;
                drop(of(&bytes));
            }
        }
    }
}
