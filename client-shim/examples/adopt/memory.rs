//! Memory as programs have it, dma-bufs as daemons lend them, and what the kernel shows of both.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use std::sync::atomic::{AtomicU32, Ordering};

use vidcompat_proto::shim::{Move, Outcome};

use crate::link;

pub(crate) const PAGE: usize = 4096;

/// Where dma-bufs come from.
pub(crate) enum Lender {
    /// `/dev/dma_heap/system`
    Heap(File),
    /// The buffers of a V4L2 capture node (the only ones on Linux 6.1), of so many bytes each.
    Node {
        node: File,
        bytes: usize,
        next: AtomicU32,
    },
}

const NODE_BUFFERS: u32 = 16;

fn ioctl<T>(file: &File, command: libc::Ioctl, value: &mut T) {
    let result = unsafe { libc::ioctl(file.as_raw_fd(), command, std::ptr::from_mut(value)) };
    assert!(
        result >= 0,
        "ioctl {command:#x}: {}",
        std::io::Error::last_os_error()
    );
}

impl Lender {
    pub(crate) fn open(path: &str) -> Self {
        let file = File::options().read(true).write(true).open(path);
        let file = file.unwrap_or_else(|error| panic!("{path}: {error}"));
        if path.contains("dma_heap") {
            return Self::Heap(file);
        }
        let mut format = [0u32; 52];
        format[0] = 1;
        ioctl(&file, 0xc0d0_5604, &mut format);
        // width, height: type and padding come first
        (format[2], format[3]) = (1280, 720);
        ioctl(&file, 0xc0d0_5605, &mut format);
        let mut request = [NODE_BUFFERS, 1, 1, 0, 0];
        ioctl(&file, 0xc014_5608, &mut request);
        let mut export = [0u32; 16];
        export[0] = 1;
        export[3] = libc::O_RDWR as u32;
        ioctl(&file, 0xc040_5610, &mut export);
        let buffer = unsafe { OwnedFd::from_raw_fd(export[4] as i32) };
        let bytes = unsafe { libc::lseek(buffer.as_raw_fd(), 0, libc::SEEK_END) } as usize;
        println!("    {path}: buffers of {bytes} bytes");
        Self::Node {
            node: file,
            bytes,
            next: AtomicU32::new(0),
        }
    }

    /// The most that a buffer has.
    pub(crate) fn most(&self) -> usize {
        match self {
            Self::Heap(_) => 1 << 30,
            Self::Node { bytes, .. } => *bytes,
        }
    }

    pub(crate) fn buffer(&self, len: usize) -> OwnedFd {
        assert!(len <= self.most(), "a buffer of {len} bytes from this lender");
        match self {
            Self::Heap(heap) => {
                let mut wanted = [
                    len as u64,
                    u64::from((libc::O_RDWR | libc::O_CLOEXEC) as u32) << 32,
                    0,
                ];
                ioctl(heap, 0xc018_4800, &mut wanted);
                unsafe { OwnedFd::from_raw_fd((wanted[1] & 0xffff_ffff) as i32) }
            }
            Self::Node { node, next, .. } => {
                let mut export = [0u32; 16];
                export[0] = 1;
                export[1] = next.fetch_add(1, Ordering::Relaxed) % NODE_BUFFERS;
                export[3] = (libc::O_RDWR | libc::O_CLOEXEC) as u32;
                ioctl(node, 0xc040_5610, &mut export);
                unsafe { OwnedFd::from_raw_fd(export[4] as i32) }
            }
        }
    }
}

/// Anonymous memory of the program's.
#[derive(Clone, Copy)]
pub(crate) struct Memory {
    pub(crate) at: *mut u8,
    pub(crate) len: usize,
}

unsafe impl Send for Memory {}
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn anonymous(len: usize) -> Self {
        Self::mapped(len, libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE)
    }

    pub(crate) fn mapped(len: usize, prot: i32, flags: i32) -> Self {
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                len,
                prot,
                flags | libc::MAP_ANONYMOUS,
                -1,
                0,
            )
        };
        assert_ne!(at, libc::MAP_FAILED);
        Self { at: at.cast(), len }
    }

    pub(crate) fn aligned(len: usize) -> Self {
        let mut at = std::ptr::null_mut();
        assert_eq!(unsafe { libc::posix_memalign(&raw mut at, PAGE, len) }, 0);
        Self { at: at.cast(), len }
    }

    pub(crate) fn part(self, from: usize, len: usize) -> Self {
        assert!(from + len <= self.len);
        Self {
            at: unsafe { self.at.add(from) },
            len,
        }
    }

    pub(crate) fn addr(self) -> u64 {
        self.at as u64
    }

    pub(crate) fn unmap(self) {
        assert_eq!(unsafe { libc::munmap(self.at.cast(), self.len) }, 0);
    }

    pub(crate) fn word(self, byte: usize) -> *mut u64 {
        assert!(byte + 8 <= self.len);
        unsafe { self.at.add(byte) }.cast()
    }

    /// Writes a pattern that names the place.
    pub(crate) fn fill(self, seed: u64) {
        for byte in (0..self.len).step_by(8) {
            unsafe { self.word(byte).write_volatile(pattern(seed, byte)) };
        }
    }

    /// Does it hold that pattern, everywhere?
    pub(crate) fn holds(self, seed: u64) -> bool {
        (0..self.len)
            .step_by(8)
            .all(|byte| unsafe { self.word(byte).read_volatile() } == pattern(seed, byte))
    }

    pub(crate) fn adopt(self, buffer: &OwnedFd) -> Outcome {
        link::lend(self.addr(), true);
        let outcome = link::moved(
            Move::Adopt {
                client_addr: self.addr(),
                length: self.len as u64,
            },
            Some(buffer.try_clone().unwrap()),
        );
        if outcome != Outcome::Done {
            link::lend(self.addr(), false);
        }
        outcome
    }

    pub(crate) fn give_back(self) -> Outcome {
        link::moved(
            Move::GiveBack {
                client_addr: self.addr(),
                length: self.len as u64,
            },
            None,
        )
    }

    /// By reconciling: the session no longer has it.
    pub(crate) fn freed(self) {
        link::lend(self.addr(), false);
        crate::adopt::reconcile();
    }

    /// The lines of maps that lie in it: mode and name.
    pub(crate) fn lines(self) -> Vec<String> {
        let (start, end) = (self.at as usize, self.at as usize + self.len);
        let inside = |line: &&str| {
            let (range, _) = line.split_once(' ').unwrap();
            let (from, to) = range.split_once('-').unwrap();
            let from = usize::from_str_radix(from, 16).unwrap();
            let to = usize::from_str_radix(to, 16).unwrap();
            from < end && start < to
        };
        maps().lines().filter(inside).map(str::to_owned).collect()
    }

    /// Is it a dma-buf, all of it?
    pub(crate) fn is_adopted(self) -> bool {
        let lines = self.lines();
        !lines.is_empty() && lines.iter().all(|line| line.contains(" rw-s "))
    }

    /// Is it ordinary memory, all of it?
    pub(crate) fn is_ordinary(self) -> bool {
        let lines = self.lines();
        !lines.is_empty() && lines.iter().all(|line| line.contains(" rw-p 00000000 00:00 0"))
    }
}

fn pattern(seed: u64, byte: usize) -> u64 {
    (seed + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ byte as u64
}

pub(crate) fn maps() -> String {
    std::fs::read_to_string("/proc/self/maps").unwrap()
}

/// What is open, by number and name.
pub(crate) fn files() -> Vec<String> {
    let names = std::fs::read_dir("/proc/self/fd").unwrap();
    let mut files: Vec<_> = names
        .map(|name| name.unwrap().path())
        .filter_map(|path| {
            Some(format!(
                "{} {}",
                path.display(),
                std::fs::read_link(&path).ok()?.display()
            ))
        })
        .filter(|file| !file.ends_with("/fd"))
        .collect();
    files.sort();
    files
}

/// A number of a file of /proc/self, in KiB where it is memory.
pub(crate) fn number(file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/self/{file}")).unwrap();
    let line = text.lines().find(|line| line.starts_with(field)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// Runs `test` in a child of fork: true if it has returned.
pub(crate) fn in_child(test: impl FnOnce()) -> bool {
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(test));
        unsafe { libc::_exit(i32::from(result.is_err())) };
    }
    exit_status(child) == 0
}

/// Waits for it.
pub(crate) fn exit_status(child: libc::pid_t) -> i32 {
    let mut status = 0;
    assert_eq!(unsafe { libc::waitpid(child, &raw mut status, 0) }, child);
    status
}
