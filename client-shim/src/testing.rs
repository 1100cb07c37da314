//! For unit tests: a daemon that says what the test wants, signals, and a count of allocations.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, accept, bind, listen, recv, sendmsg, socket_with,
};
use vidcompat_proto::shim::{Answer, Ask, Hello, MESSAGE_BYTES, Token, VERSION};
use zerocopy::FromZeros;

use crate::link::Link;

/// Of the fake daemon's session.
pub(crate) const TOKEN: Token = *b"a token of bytes";

/// A socket with somebody behind it, or nobody.
pub(crate) struct Fake {
    directory: PathBuf,
    serving: Option<JoinHandle<()>>,
}

impl Fake {
    /// A place for a socket, without one.
    pub(crate) fn nobody() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let directory = std::env::temp_dir().join(format!("vidcompat-shim-{}-{number}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        Self {
            directory,
            serving: None,
        }
    }

    /// A socket where `backlog` may wait.
    pub(crate) fn listening(&self, backlog: i32) -> OwnedFd {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::CLOEXEC,
            None,
        )
        .unwrap();
        bind(&socket, &SocketAddrUnix::new(self.path()).unwrap()).unwrap();
        listen(&socket, backlog).unwrap();
        socket
    }

    /// One that serves a single connection with `serve`.
    pub(crate) fn serving(serve: impl FnOnce(BorrowedFd<'_>) + Send + 'static) -> Self {
        Self::serving_each([serve])
    }

    /// One that serves as many connections, one after the other, and is as if killed after each.
    pub(crate) fn serving_each<S: FnOnce(BorrowedFd<'_>) + Send + 'static>(
        serves: impl IntoIterator<Item = S>,
    ) -> Self {
        let mut fake = Self::nobody();
        let socket = fake.listening(8);
        let serves: Vec<_> = serves.into_iter().collect();
        fake.serving = Some(thread::spawn(move || {
            for serve in serves {
                serve(accept(&socket).unwrap().as_fd());
            }
        }));
        fake
    }

    /// One that is asked `ask` and sends these bytes with these fds.
    pub(crate) fn sending(ask: Ask, bytes: Vec<u8>, files: Vec<OwnedFd>) -> Self {
        Self::serving(move |socket| {
            assert_eq!(asked(socket), ask);
            send(socket, &bytes, &files);
        })
    }

    /// One that is asked `ask` and answers.
    pub(crate) fn answering(ask: Ask, answer: Answer, file: Option<OwnedFd>) -> Self {
        Self::sending(ask, answer.encode().to_vec(), file.into_iter().collect())
    }

    fn path(&self) -> PathBuf {
        self.directory.join("socket")
    }

    /// As a file's HELLO would tell it.
    pub(crate) fn link(&self) -> Link {
        let path = self.path();
        let path = path.as_os_str().as_encoded_bytes();
        let mut hello = Hello {
            version: VERSION,
            socket_len: u16::try_from(path.len()).unwrap(),
            token: TOKEN,
            ..Hello::new_zeroed()
        };
        hello.socket[..path.len()].copy_from_slice(path);
        Link { hello }
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.directory).unwrap();
        let served = self.serving.take().map_or(Ok(()), JoinHandle::join);
        assert!(
            thread::panicking() || served.is_ok(),
            "the fake daemon was asked something else"
        );
    }
}

/// What comes through `socket`, which must have the token.
pub(crate) fn asked(socket: BorrowedFd<'_>) -> Ask {
    let mut message = [0u8; MESSAGE_BYTES + 1];
    let (length, _) = recv(socket, &mut message, RecvFlags::empty()).unwrap();
    let (ask, token) = Ask::decode(&message[..length]).unwrap();
    assert_eq!(token, TOKEN);
    ask
}

/// One message with `files`.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], files: &[OwnedFd]) {
    let files: Vec<_> = files.iter().map(AsFd::as_fd).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(8))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !files.is_empty() {
        assert!(ancillary.push(SendAncillaryMessage::ScmRights(&files)));
    }
    sendmsg(
        socket,
        &[IoSlice::new(bytes)],
        &mut ancillary,
        SendFlags::NOSIGNAL,
    )
    .unwrap();
}

/// A signal for the calling thread every few milliseconds while `work` goes on, which ends whatever it waits in.
pub(crate) fn with_signals<T>(work: impl FnOnce() -> T) -> T {
    extern "C" fn ignore(_: i32) {}
    // SAFETY: all zeroes: no flags, so without SA_RESTART, and an empty mask.
    let mut action: libc::sigaction = unsafe { MaybeUninit::zeroed().assume_init() };
    action.sa_sigaction = ignore as extern "C" fn(i32) as *const () as usize;
    // SAFETY: the handler does nothing.
    let set = unsafe { libc::sigaction(libc::SIGUSR1, &raw const action, std::ptr::null_mut()) };
    assert_eq!(set, 0);
    // SAFETY: has no preconditions.
    let me = unsafe { libc::pthread_self() };
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                // SAFETY: this thread waits for us at the end of the scope.
                unsafe { libc::pthread_kill(me, libc::SIGUSR1) };
                thread::sleep(Duration::from_millis(5));
            }
        });
        let result = work();
        done.store(true, Ordering::Relaxed);
        result
    })
}

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

// SAFETY: the system's, counted.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as we are asked.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: as we are asked.
        unsafe { System.dealloc(at, layout) }
    }
}

/// What `work` returns, if it has neither allocated nor freed on this thread.
pub(crate) fn without_allocating<T>(work: impl FnOnce() -> T) -> T {
    let before = ALLOCATIONS.get();
    let result = work();
    assert_eq!(ALLOCATIONS.get() - before, 0, "allocations");
    result
}
