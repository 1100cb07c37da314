//! The system calls that the daemon makes, each with the reason; and those that end it.
//!
//! Only data: `filter.rs` makes a program for the kernel of it. A call that the code or a library begins to make needs a
//! row here; `--confine=log` tells which one is missing (`type=1326` in dmesg). The guest suite runs with
//! `--confine=enforce`, and fails if any call was refused.

use libc::c_long;

/// For what, as headings of the printed table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The program's own memory, threads, time and end.
    Process,
    /// Files, nodes, devices.
    Files,
    /// Waiting for devices and clients.
    Waiting,
    /// Sockets: the shim's, the control socket, systemd, the journal, udev.
    Sockets,
    /// Memory and descriptors of the programs that are served.
    Clients,
}

impl Purpose {
    /// A heading.
    #[must_use]
    pub fn heading(self) -> &'static str {
        match self {
            Self::Process => "the process itself",
            Self::Files => "files, nodes and devices",
            Self::Waiting => "waiting",
            Self::Sockets => "sockets",
            Self::Clients => "the programs that are served",
        }
    }
}

/// What an argument must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// Just this number.
    Is(u64),
    /// This in the bits of the mask (the first number).
    Masked(u64, u64),
    /// Our own process's number.
    OurPid,
}

/// Tests of one argument, of which one must hold, with the words for people.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Only {
    /// Its place, from 0.
    pub argument: u8,
    /// What it may be.
    pub tests: &'static [Test],
    /// The same in words.
    pub words: &'static str,
}

/// A call that may be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// Its name as libc has it, with `SYS_`.
    constant: &'static str,
    /// Its number on this architecture.
    pub number: c_long,
    /// For what.
    pub purpose: Purpose,
    /// Who makes it and why.
    pub reason: &'static str,
    /// A condition, if there is one.
    pub only: Option<Only>,
}

impl Call {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.constant.trim_start_matches("SYS_")
    }
}

macro_rules! table {
    ($($purpose:ident { $($(#[$attr:meta])* $call:ident $reason:literal $(, $argument:literal $tests:tt $words:literal)?;)* })*) => {
        &[$($($(#[$attr])* Call {
            constant: stringify!($call),
            number: libc::$call,
            purpose: Purpose::$purpose,
            reason: $reason,
            only: table!(@only $($argument $tests $words)?),
        },)*)*]
    };
    (@only) => { None };
    (@only $argument:literal $tests:tt $words:literal) => {
        Some(Only { argument: $argument, tests: &$tests, words: $words })
    };
}

/// Flags of clone(2): all that make a new namespace, and the one that makes a thread of ours.
const NAMESPACES: u64 = 0x7e02_0000;
const A_THREAD: u64 = 0x0001_0000;
/// `PROT_WRITE` and `PROT_EXEC`.
const WRITE_AND_EXEC: u64 = 2 | 4;

/// The type letter of an ioctl's number, and one of it.
const fn letter(letter: u8) -> Test {
    Test::Masked(0xff00, (letter as u64) << 8)
}

/// Everything that may be called.
pub const TABLE: &[Call] = table! {
    Process {
        SYS_brk "malloc";
        SYS_mmap "malloc, threads' stacks, buffers of devices and heaps; libraries of the name service", 2 [
            Test::Masked(WRITE_AND_EXEC, 0), Test::Masked(WRITE_AND_EXEC, 2), Test::Masked(WRITE_AND_EXEC, 4)]
            "nothing that is writable and executable";
        SYS_mprotect "threads' stacks, malloc's arenas", 2 [Test::Masked(4, 0)] "nothing becomes executable";
        SYS_munmap "malloc, buffers";
        SYS_mremap "malloc of large blocks";
        SYS_madvise "malloc gives memory back, stacks of ended threads";
        SYS_futex "locks";
        SYS_clone "threads", 0 [Test::Masked(NAMESPACES | A_THREAD, A_THREAD)] "a thread of this process, no namespace";
        SYS_clone3 "answered ENOSYS, for its flags cannot be seen; the C library then uses clone";
        SYS_set_robust_list "a new thread";
        SYS_rseq "a new thread";
        SYS_sigaltstack "a new thread's stack for a stack overflow's message";
        SYS_sched_getaffinity "number of processors";
        SYS_sched_yield "spinning locks";
        SYS_gettid "names of threads in the log, own threads";
        SYS_getpid "own process";
        SYS_getuid "who we are, for the name service";
        SYS_geteuid "who we are, for sockets that only root may use";
        SYS_getgid "as getuid";
        SYS_getegid "as getuid";
        SYS_prctl "names of threads; names of memory", 0 [
            Test::Is(15), Test::Is(16), Test::Is(0x5356_4d41), Test::Is(23), Test::Is(39)]
            "PR_SET_NAME, PR_GET_NAME, PR_SET_VMA, PR_CAPBSET_READ, PR_GET_NO_NEW_PRIVS";
        SYS_capget "what it says of itself";
        SYS_prlimit64 "limit of open files, size of stacks", 0 [Test::Is(0), Test::OurPid] "this process's own";
        SYS_getrandom "hash tables";
        SYS_uname "version of the kernel";
        SYS_sysinfo "memory of the machine";
        SYS_clock_gettime "time, where the vDSO cannot tell";
        SYS_clock_getres "as clock_gettime";
        SYS_gettimeofday "as clock_gettime";
        SYS_clock_nanosleep "pauses";
        SYS_nanosleep "pauses";
        SYS_rt_sigaction "SIGTERM, SIGINT, SIGHUP, SIGURG, SIGSYS";
        SYS_rt_sigprocmask "threads begin and end";
        SYS_rt_sigreturn "end of a signal's handler";
        SYS_restart_syscall "the kernel itself, after SIGSTOP and SIGCONT";
        SYS_tgkill "is this thread one of ours; abort()", 0 [Test::OurPid] "this process's own threads";
        SYS_kill "is the process of this number still there", 1 [Test::Is(0)] "signal 0, which is none";
        SYS_exit "a thread's end";
        SYS_exit_group "the end";
    }
    Files {
        SYS_openat "devices, /proc, /sys, configuration";
        SYS_close "everything that was opened";
        SYS_close_range "a library's start";
        SYS_read "requests on /dev/cuse, /proc, /sys";
        SYS_write "answers on /dev/cuse, the log, sysfs";
        SYS_readv "sockets";
        SYS_writev "answers on /dev/cuse";
        SYS_pread64 "/proc/PID/pagemap, mem, maps";
        SYS_pwrite64 "/proc/PID/mem, records";
        SYS_preadv "pieces of a program's memory";
        SYS_pwritev "pieces of a program's memory";
        SYS_lseek "size of a dma-buf, /proc read again";
        SYS_fstat "which file a descriptor is";
        SYS_newfstatat "which node a name is";
        SYS_statx "which file a mapping shows";
        SYS_statfs "is it sysfs";
        SYS_fstatfs "is it hugetlbfs";
        SYS_readlinkat "names of nodes, a program's files";
        SYS_getdents64 "/proc/PID/fd, /sys, folders of configuration";
        SYS_faccessat "does it exist";
        SYS_faccessat2 "does it exist";
        SYS_getcwd "where relative names begin";
        SYS_fcntl "flags, seals, leases, copies of descriptors";
        SYS_dup "copies of descriptors";
        SYS_dup3 "copies of descriptors";
        SYS_flock "one daemon makes a socket at a time";
        SYS_ftruncate "size of memory that is shared";
        SYS_fallocate "gives pieces of a screen's memory back";
        SYS_memfd_create "screens' memory, sessions' records";
        SYS_pipe2 "waking threads";
        SYS_ioctl "devices; which numbers a client may reach is a table of its own (proto/src/ioctl)", 1 [
            letter(b'V'), letter(b'F'), letter(b'd'), letter(b'H'), letter(b'b'), letter(b'u'),
            Test::Is(0xc068_6611), Test::Is(0x4b3b), Test::Is(0x5401), Test::Is(0x802c_542a), Test::Is(0x5421)]
            "V4L2 'V', framebuffers 'F', DRM 'd', heaps 'H', dma-bufs 'b', udmabuf 'u', PROCMAP_QUERY, KDGETMODE, TCGETS, TCGETS2, FIONBIO";
        SYS_fchown "owner of what it makes";
        SYS_fchownat "owner of a node";
        SYS_fchmod "mode of what it makes";
        SYS_fchmodat "mode of a node";
        SYS_mkdirat "folder of sockets, of real nodes taken over, the journal";
        SYS_mknodat "a node while its name is taken over";
        SYS_renameat "taking a node's name, and giving it back";
        SYS_renameat2 "the same, never over something that is there";
        SYS_unlinkat "a socket of a dead daemon, the journal";
        SYS_linkat "as renameat2, where a file system has no such flag";
        SYS_symlinkat "names of nodes";
        SYS_fsync "the journal of what was taken over";
        SYS_umask "mode of what it makes";
        SYS_inotify_init1 "who may open a node may change";
        SYS_inotify_add_watch "who may open a node may change";
        SYS_inotify_rm_watch "a node that is served no more";
        SYS_getxattr "access list of a node";
        SYS_lgetxattr "access list of a node";
        SYS_fgetxattr "access list of a node";
        SYS_setxattr "access list of a node";
        SYS_lsetxattr "access list of a node";
        SYS_fsetxattr "access list of a node";
        SYS_removexattr "access list of a node";
        SYS_lremovexattr "access list of a node";
        SYS_fremovexattr "access list of a node";
        #[cfg(target_arch = "x86_64")]
        SYS_open "openat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_stat "newfstatat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_lstat "newfstatat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_access "the C library";
        #[cfg(target_arch = "x86_64")]
        SYS_readlink "readlinkat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_mkdir "mkdirat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_rename "renameat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_rmdir "unlinkat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_unlink "unlinkat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_symlink "symlinkat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_link "linkat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_chown "fchownat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_lchown "fchownat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_chmod "fchmodat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_mknod "mknodat, as the C library makes it";
        #[cfg(target_arch = "x86_64")]
        SYS_dup2 "dup, as the C library makes it";
    }
    Waiting {
        SYS_epoll_create1 "the runtime of each device";
        SYS_epoll_ctl "devices and sockets that are waited for";
        SYS_epoll_pwait "as epoll_wait";
        SYS_epoll_pwait2 "as epoll_wait";
        #[cfg(target_arch = "x86_64")]
        SYS_epoll_wait "devices and sockets that are waited for";
        SYS_ppoll "is a device ready";
        #[cfg(target_arch = "x86_64")]
        SYS_poll "is a device ready";
        SYS_eventfd2 "waking threads";
        SYS_timerfd_create "pauses between looks";
        SYS_timerfd_settime "pauses between looks";
    }
    Sockets {
        SYS_socket "sockets of this machine, events of devices", 0 [Test::Is(1), Test::Is(16)] "AF_UNIX, AF_NETLINK";
        SYS_socketpair "waking the runtime at a signal", 0 [Test::Is(1)] "AF_UNIX";
        SYS_bind "own sockets, events of devices";
        SYS_listen "own sockets";
        SYS_accept4 "who asks";
        SYS_connect "systemd, the journal; does another daemon listen";
        SYS_getsockopt "who asks";
        SYS_setsockopt "no files for those who must not send any; who sent an event";
        SYS_getsockname "own sockets";
        SYS_getpeername "who asks";
        SYS_sendto "answers, systemd, the journal";
        SYS_sendmsg "answers with descriptors, the fd store";
        SYS_recvfrom "questions";
        SYS_recvmsg "questions with descriptors, events of devices";
        SYS_shutdown "end of a conversation";
    }
    Clients {
        SYS_process_vm_readv "copies from a program's buffer";
        SYS_process_vm_writev "copies to a program's buffer";
        SYS_pidfd_open "a program that cannot be mistaken for the next one of its number";
        SYS_pidfd_getfd "a program's own dma-buf, request or queue";
        SYS_bpf "which buffer of a driver a mapping shows", 0 [Test::Is(5), Test::Is(28), Test::Is(33)]
            "BPF_PROG_LOAD, BPF_LINK_CREATE, BPF_ITER_CREATE";
    }
};

/// A call that no part of the daemon can have made: the process is not ours any more, and ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadly {
    constant: &'static str,
    /// Its number on this architecture.
    pub number: c_long,
}

impl Deadly {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &'static str {
        self.constant.trim_start_matches("SYS_")
    }
}

macro_rules! deadly {
    ($($(#[$attr:meta])* $call:ident)*) => {
        &[$($(#[$attr])* Deadly { constant: stringify!($call), number: libc::$call },)*]
    };
}

/// See [`Deadly`]. Programs, other processes' control, rights, the system's own settings, kernel code.
pub const DEADLY: &[Deadly] = deadly! {
    SYS_execve SYS_execveat
    #[cfg(target_arch = "x86_64")] SYS_fork
    #[cfg(target_arch = "x86_64")] SYS_vfork
    SYS_ptrace SYS_process_madvise SYS_pidfd_send_signal
    SYS_setuid SYS_setgid SYS_setreuid SYS_setregid SYS_setresuid SYS_setresgid SYS_setgroups SYS_setfsuid SYS_setfsgid
    SYS_capset SYS_personality SYS_unshare SYS_setns
    SYS_mount SYS_umount2 SYS_pivot_root SYS_chroot SYS_move_mount SYS_open_tree SYS_fsopen SYS_fsmount SYS_mount_setattr
    SYS_init_module SYS_finit_module SYS_delete_module SYS_kexec_load
    SYS_reboot SYS_swapon SYS_swapoff SYS_sethostname SYS_setdomainname SYS_settimeofday SYS_clock_settime SYS_adjtimex
    SYS_clock_adjtime SYS_acct SYS_quotactl SYS_syslog
    #[cfg(target_arch = "x86_64")] SYS_iopl
    #[cfg(target_arch = "x86_64")] SYS_ioperm
    #[cfg(target_arch = "x86_64")] SYS_modify_ldt
    SYS_open_by_handle_at SYS_perf_event_open SYS_userfaultfd SYS_add_key SYS_request_key SYS_keyctl
    SYS_io_uring_setup SYS_io_uring_enter SYS_io_uring_register
};

#[cfg(test)]
mod tests {
    use super::{DEADLY, TABLE};
    use std::collections::BTreeSet;

    #[test]
    fn no_call_has_two_rows_and_none_is_both_allowed_and_deadly() {
        let allowed: BTreeSet<_> = TABLE.iter().map(|call| call.number).collect();
        let deadly: BTreeSet<_> = DEADLY.iter().map(|call| call.number).collect();
        assert_eq!((allowed.len(), deadly.len()), (TABLE.len(), DEADLY.len()));
        assert!(allowed.is_disjoint(&deadly));
    }

    #[test]
    fn every_row_says_why() {
        for call in TABLE {
            assert!(
                !call.reason.is_empty() && !call.name().starts_with("SYS_"),
                "{call:?}"
            );
            assert!(call.only.is_none_or(|only| !only.words.is_empty()), "{call:?}");
        }
    }
}
