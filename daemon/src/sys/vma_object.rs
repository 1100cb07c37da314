//! Which object of its driver stands behind a mapping: `vm_private_data` of its `vm_area_struct`, as a number to compare.
//!
//! Memory without pages (`VM_PFNMAP`: dma-contig buffers) has no frames that `/proc/PID/pagemap` would show, and vb2
//! clears the offset that said which buffer is mapped. The kernel tells through one interface only: a BPF iterator
//! over the mappings of a task (kernel/bpf/task_iter.c, `task_vma`; of one task since 6.1). The program writes down
//! three fields of each mapping and does nothing else. It needs CAP_BPF, CAP_PERFMON and a kernel with
//! `CONFIG_DEBUG_INFO_BTF`; without them nothing is known.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

use nix::unistd::Pid;

use super::btf::Btf;

/// `enum bpf_cmd` and the like (linux/bpf.h).
const PROG_LOAD: libc::c_long = 5;
const LINK_CREATE: libc::c_long = 28;
const ITER_CREATE: libc::c_long = 33;
const PROG_TYPE_TRACING: u32 = 26;
const TRACE_ITER: u32 = 28;
const SEQ_WRITE: i32 = 127;

/// `union bpf_attr` for PROG_LOAD, up to `attach_btf_id`.
#[repr(C)]
#[derive(Default)]
struct LoadProgram {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
    prog_ifindex: u32,
    expected_attach_type: u32,
    prog_btf_fd: u32,
    func_info_rec_size: u32,
    func_info: u64,
    func_info_cnt: u32,
    line_info_rec_size: u32,
    line_info: u64,
    line_info_cnt: u32,
    attach_btf_id: u32,
}

/// For LINK_CREATE.
#[repr(C)]
#[derive(Default)]
struct CreateLink {
    prog_fd: u32,
    target_fd: u32,
    attach_type: u32,
    flags: u32,
    iter_info: u64,
    iter_info_len: u32,
    padding: u32,
}

/// For ITER_CREATE.
#[repr(C)]
#[derive(Default)]
struct CreateIterator {
    link_fd: u32,
    flags: u32,
}

/// `union bpf_iter_link_info` for a task.
#[repr(C)]
#[derive(Default)]
struct OfTask {
    tid: u32,
    pid: u32,
    pid_fd: u32,
    padding: u32,
}

/// `bpf(2)` that makes an fd.
fn bpf<T>(command: libc::c_long, attr: &T) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads `size_of::<T>()` bytes of `attr`, which it does not write for these commands; what the
    // pointers in it lead to is alive in the callers below, and is only read.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, &raw const *attr, size_of::<T>()) };
    match i32::try_from(fd) {
        // SAFETY: the call has succeeded, so this is a new fd that nobody else knows of.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn number(fd: &OwnedFd) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// `struct bpf_insn`
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    /// Target in the low four bits, source in the high ones.
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// Of each mapping that it is shown, writes down `fields`, 8 bytes each; `meta`, `vma` and `seq` are where these
/// pointers lie in what it is given.
fn program(meta: i16, vma: i16, seq: i16, fields: [i16; 3]) -> Vec<Instruction> {
    const LOAD: u8 = 0x79;
    const STORE: u8 = 0x7b;
    const MOVE: u8 = 0xbf;
    let [first, second, third] = fields;
    let mut code = vec![
        instruction(LOAD, 7, 1, vma, 0),
        instruction(LOAD, 1, 1, meta, 0),
        instruction(LOAD, 1, 1, seq, 0),
        // No mapping: the end. Over the ten that follow.
        instruction(0x15, 7, 0, 10, 0),
    ];
    for (field, slot) in [(first, -24), (second, -16), (third, -8)] {
        code.push(instruction(LOAD, 2, 7, field, 0));
        code.push(instruction(STORE, 10, 2, slot, 0));
    }
    code.extend([
        instruction(MOVE, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -24),
        instruction(0xb7, 3, 0, 0, 24),
        instruction(0x85, 0, 0, 0, SEQ_WRITE),
        instruction(0xb7, 0, 0, 0, 0),
        instruction(0x95, 0, 0, 0, 0),
    ]);
    code
}

fn load() -> io::Result<OwnedFd> {
    let blob = std::fs::read("/sys/kernel/btf/vmlinux")?;
    let unknown = || io::Error::from(io::ErrorKind::Unsupported);
    let btf = Btf::parse(&blob).ok_or_else(unknown)?;
    let field = |of: &str, field: &str| {
        let at = btf.field(of, field).and_then(|at| i16::try_from(at).ok());
        at.ok_or_else(unknown)
    };
    let of_vma = |name| field("vm_area_struct", name);
    let code = program(
        field("bpf_iter__task_vma", "meta")?,
        field("bpf_iter__task_vma", "vma")?,
        field("bpf_iter_meta", "seq")?,
        [of_vma("vm_start")?, of_vma("vm_end")?, of_vma("vm_private_data")?],
    );
    let load = LoadProgram {
        prog_type: PROG_TYPE_TRACING,
        insn_cnt: u32::try_from(code.len()).map_err(|_| unknown())?,
        insns: code.as_ptr().expose_provenance() as u64,
        // `bpf_seq_write` is for such programs only.
        license: c"Dual MIT/GPL".as_ptr().expose_provenance() as u64,
        prog_name: *b"vidcompat_vmas\0\0",
        expected_attach_type: TRACE_ITER,
        attach_btf_id: btf.function("bpf_iter_task_vma").ok_or_else(unknown)?,
        ..LoadProgram::default()
    };
    bpf(PROG_LOAD, &load)
}

/// The object that the driver has put behind the mapping at `client_addr` of the thread `tid`: a number that no other
/// object has as long as this one lives, and that is to be compared and never shown. `None`: no mapping, or no object.
///
/// # Errors
/// `EPERM` without CAP_BPF and CAP_PERFMON; `ENOENT`, `Unsupported` where the kernel has no type information.
pub fn object_at(tid: Pid, client_addr: u64) -> io::Result<Option<u64>> {
    static PROGRAM: OnceLock<Result<OwnedFd, (io::ErrorKind, String)>> = OnceLock::new();
    let program = PROGRAM
        .get_or_init(|| load().map_err(|error| (error.kind(), error.to_string())))
        .as_ref()
        .map_err(|(kind, text)| io::Error::new(*kind, text.as_str()))?;
    let task = OfTask {
        tid: tid.as_raw().cast_unsigned(),
        ..OfTask::default()
    };
    let link = bpf(
        LINK_CREATE,
        &CreateLink {
            prog_fd: number(program),
            attach_type: TRACE_ITER,
            iter_info: (&raw const task).expose_provenance() as u64,
            iter_info_len: 16,
            ..CreateLink::default()
        },
    )?;
    let iterator = bpf(
        ITER_CREATE,
        &CreateIterator {
            link_fd: number(&link),
            flags: 0,
        },
    )?;
    find(&mut File::from(iterator), client_addr)
}

/// What the kernel gives at once (bpf_iter.c, `bpf_seq_read`).
const BATCH: usize = 8 * 4096;

/// A process has at most 65530 mappings by default; who has allowed it more must not keep us for ever.
const MAX_BATCHES: usize = 1 << 10;

/// Mappings come in the order of their addresses. What comes after the last is not the end of the file: of one task
/// the kernel tells the last ones again and again (task_iter.c, `task_vma_seq_get_next`). So a batch that is not full
/// is the last.
fn find(iterator: &mut impl Read, client_addr: u64) -> io::Result<Option<u64>> {
    let mut batch = vec![0; BATCH];
    for _ in 0..MAX_BATCHES {
        let count = match iterator.read(&mut batch) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            count => count?,
        };
        for mapping in batch[..count].as_chunks::<24>().0 {
            let word = |at: usize| {
                let mut word = [0; 8];
                word.copy_from_slice(&mapping[at..at + 8]);
                u64::from_ne_bytes(word)
            };
            if client_addr < word(8) {
                return Ok((word(0) <= client_addr && word(16) != 0).then(|| word(16)));
            }
        }
        if count + 24 < BATCH {
            break;
        }
    }
    Ok(None)
}

const _: () = assert!(size_of::<LoadProgram>() == 112 && size_of::<CreateLink>() == 32);

#[cfg(test)]
mod tests {
    use super::find;

    fn mapping(start: u64, end: u64, object: u64) -> Vec<u8> {
        [start, end, object]
            .iter()
            .flat_map(|word| word.to_ne_bytes())
            .collect()
    }

    #[test]
    fn the_mapping_at_an_address_is_found_and_a_hole_and_no_object_are_none() {
        let told = [mapping(10, 20, 7), mapping(30, 40, 0), mapping(40, 50, 8)].concat();
        let found = |addr| find(&mut told.as_slice(), addr).expect("bytes");
        assert_eq!(
            (found(9), found(10), found(19), found(20)),
            (None, Some(7), Some(7), None)
        );
        assert_eq!((found(30), found(40), found(50)), (None, Some(8), None));
    }

    #[test]
    fn what_is_told_again_and_again_ends_nevertheless() {
        let mut endless = std::io::repeat(0);
        assert_eq!(find(&mut endless, 1).expect("bytes"), None);
    }
}
