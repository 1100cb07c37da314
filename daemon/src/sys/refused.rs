//! What happens when the kernel refuses a system call that is not in our table (`SECCOMP_RET_TRAP`).

use std::io::{Cursor, Write};
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers that have been told of, one bit each; all that are higher share the last one.
static TOLD: [AtomicU64; 16] = [const { AtomicU64::new(0) }; 16];

/// `si_code` of such a signal (asm-generic/siginfo.h).
const SYS_SECCOMP: libc::c_int = 1;

/// From now on a call that the filter traps fails with ENOSYS, and stderr gets a sentence for the first one of each number.
///
/// # Errors
/// What sigaction says.
pub fn tell_of_refused_calls() -> std::io::Result<()> {
    // SAFETY: all zeroes is a valid sigaction: no flags, an empty mask, the default action.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(libc::c_int, *mut libc::siginfo_t, *mut libc::c_void) = on_refused;
    action.sa_sigaction = handler as libc::sighandler_t;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_RESTART | libc::SA_ONSTACK;
    // SAFETY: the handler has the type that SA_SIGINFO asks for, is there for good, and does nothing that a signal handler
    // must not (see there).
    match unsafe { libc::sigaction(libc::SIGSYS, &raw const action, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Runs in the thread that has made the call, instead of it. It allocates nothing, takes no lock, and makes one call, which
/// is in the table.
extern "C" fn on_refused(_: libc::c_int, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // The kernel's `struct siginfo` of a SIGSYS: signo, errno, code, padding, address of the call, its number, the
    // architecture.
    // SAFETY: with SA_SIGINFO the kernel gives a whole siginfo, which has 128 bytes, aligned for these.
    let [_, _, code, _, _, _, number, _] = unsafe { info.cast::<[libc::c_int; 8]>().read() };
    if code != SYS_SECCOMP {
        // Somebody has sent this signal: nothing was refused.
        return;
    }
    // SAFETY: the kernel gives the context of the thread that was interrupted, and takes it back from here.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    answer(context);
    if !told_before(number) {
        tell(number);
    }
}

#[cfg(target_arch = "x86_64")]
fn answer(context: &mut libc::ucontext_t) {
    context.uc_mcontext.gregs[libc::REG_RAX as usize] = -i64::from(libc::ENOSYS);
}

#[cfg(target_arch = "aarch64")]
fn answer(context: &mut libc::ucontext_t) {
    context.uc_mcontext.regs[0] = (-i64::from(libc::ENOSYS)).cast_unsigned();
}

fn told_before(number: libc::c_int) -> bool {
    let number = usize::try_from(number).unwrap_or(usize::MAX);
    let (word, bit) = ((number / 64).min(TOLD.len() - 1), number % 64);
    TOLD[word].fetch_or(1 << bit, Ordering::Relaxed) & 1 << bit != 0
}

fn tell(number: libc::c_int) {
    let mut line = [0_u8; 256];
    let mut text = Cursor::new(&mut line[..]);
    // It fits.
    let _ = writeln!(
        text,
        "vidcompatd: system call {number} is not in the table (vidcompatd --confine-list) and was refused; what needed it \
         does not work; please report this, and use --confine=log meanwhile"
    );
    let length = usize::try_from(text.position()).unwrap_or(0);
    // SAFETY: the address of this thread's errno is valid as long as the thread lives.
    let errno = unsafe { libc::__errno_location() };
    // SAFETY: as above; what was interrupted may look at it after we have returned.
    let before = unsafe { errno.read() };
    // SAFETY: `length` bytes of `line` have been written. Nobody may listen.
    unsafe { libc::write(libc::STDERR_FILENO, line.as_ptr().cast(), length) };
    // SAFETY: as above.
    unsafe { errno.write(before) };
}

#[cfg(test)]
mod tests {
    use super::told_before;

    #[test]
    fn each_number_is_told_once_also_those_that_no_table_has() {
        for number in [5, 1000, -1] {
            assert!(!told_before(number), "{number}");
            assert!(told_before(number), "{number}");
        }
    }
}
