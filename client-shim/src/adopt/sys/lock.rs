//! A lock that a signal handler, too, may meet: whoever holds it has all signals blocked, and so is not interrupted by
//! somebody who waits for it. It can be held across fork.

use std::cell::UnsafeCell;
use std::mem::{ManuallyDrop, MaybeUninit};
use std::ops::{Deref, DerefMut};
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use libc::sigset_t;
use rustix::thread::futex;

use super::this_thread;

const FREE: u32 = 0;
const HELD: u32 = 1;
/// And somebody may be waiting.
const WAITED_FOR: u32 = 2;

/// A value behind the lock.
pub(in crate::adopt) struct Guarded<T> {
    word: AtomicU32,
    /// The thread that has left the lock held, see [`Guard::leave`].
    left_by: AtomicUsize,
    left_mask: UnsafeCell<MaybeUninit<sigset_t>>,
    value: UnsafeCell<T>,
}

// SAFETY: `value` and `left_mask` are touched by the holder of the lock only.
unsafe impl<T: Send> Sync for Guarded<T> {}

/// The lock is held.
pub(in crate::adopt) struct Guard<T: 'static> {
    of: &'static Guarded<T>,
    mask: MaybeUninit<sigset_t>,
}

impl<T> Guarded<T> {
    pub(in crate::adopt) const fn new(value: T) -> Self {
        Self {
            word: AtomicU32::new(FREE),
            left_by: AtomicUsize::new(0),
            left_mask: UnsafeCell::new(MaybeUninit::uninit()),
            value: UnsafeCell::new(value),
        }
    }

    pub(in crate::adopt) fn lock(&'static self) -> Guard<T> {
        let mask = block_signals();
        let free = self
            .word
            .compare_exchange(FREE, HELD, Ordering::Acquire, Ordering::Relaxed);
        if free.is_err() {
            while self.word.swap(WAITED_FOR, Ordering::Acquire) != FREE {
                let _ = futex::wait(&self.word, futex::Flags::PRIVATE, WAITED_FOR, None);
            }
        }
        Guard { of: self, mask }
    }

    /// Has this thread left the lock held? Then it would wait for itself.
    pub(in crate::adopt) fn is_left_by_us(&self) -> bool {
        self.left_by.load(Ordering::Relaxed) == this_thread()
    }

    /// The lock that this thread has left held; `None` for every other.
    pub(in crate::adopt) fn resume(&'static self) -> Option<Guard<T>> {
        if !self.is_left_by_us() {
            return None;
        }
        self.left_by.store(0, Ordering::Relaxed);
        // SAFETY: this thread holds the lock.
        let mask = unsafe { std::ptr::read(self.left_mask.get()) };
        Some(Guard { of: self, mask })
    }
}

impl<T> Guard<T> {
    /// The lock stays held, and signals blocked, until this thread, or what it is in a child of fork, resumes.
    pub(in crate::adopt) fn leave(self) {
        let guard = ManuallyDrop::new(self);
        // SAFETY: this thread holds the lock.
        unsafe { guard.of.left_mask.get().write(guard.mask) };
        guard.of.left_by.store(this_thread(), Ordering::Relaxed);
    }
}

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        if self.of.word.swap(FREE, Ordering::Release) == WAITED_FOR {
            let _ = futex::wake(&self.of.word, futex::Flags::PRIVATE, 1);
        }
        // SAFETY: the mask that the program had: pthread_sigmask has written it.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, self.mask.as_ptr(), std::ptr::null_mut()) };
    }
}

impl<T> Deref for Guard<T> {
    type Target = T;
    fn deref(&self) -> &T {
        // SAFETY: the lock is held.
        unsafe { &*self.of.value.get() }
    }
}

impl<T> DerefMut for Guard<T> {
    fn deref_mut(&mut self) -> &mut T {
        // SAFETY: the lock is held, and this is its only guard.
        unsafe { &mut *self.of.value.get() }
    }
}

/// All but those of libc's own, which do not run code of the program's. Returns what was blocked before.
fn block_signals() -> MaybeUninit<sigset_t> {
    let (mut all, mut before) = (MaybeUninit::uninit(), MaybeUninit::uninit());
    // SAFETY: it fills the set that it is given.
    unsafe { libc::sigfillset(all.as_mut_ptr()) };
    // SAFETY: a set that is filled, and room for one. It cannot fail, and errno is not its way of telling.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, all.as_ptr(), before.as_mut_ptr()) };
    before
}
