//! Always a blocking reader on the channel, and nothing that can block on it.
//!
//! The reader's role moves instead of the request: a thread that has read a request keeps reading if the answer is at
//! hand, and otherwise *passes its turn* and goes on with the request itself. Up to two threads stand in read() at
//! once, so with one client passing wakes nobody: when the second request comes the other thread is there already.
//! A third is made only when nobody is left, so a slow driver call never keeps other clients' requests from being
//! read. When there are too many slow calls the one reader that is left only refuses, interrupts and closes.

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use fuser::Errno;

use super::channel::{Channel, READ_BUFFER};
use super::request::{ParseError, Request, parse};
use crate::survive::What;

/// Threads of one channel, so driver calls that may be under way at once, and the reader.
const MAX_THREADS: usize = 128;
/// Threads that stand in read(); one that would be the third ends. (More only take turns in being cold: FACTS.md 4.)
const STANDING: usize = 2;

/// Serves requests.
pub trait Handler: Send + Sync + 'static {
    /// Serves `request`. Before anything that may block, `turn` must be passed; where that fails, nothing may block.
    fn handle(&self, request: Request<'_>, turn: &Turn<'_>);
}

/// The role of the channel's reader, held while [`Handler::handle`] runs.
pub struct Turn<'a> {
    pass: &'a dyn Fn() -> bool,
    passed: Cell<bool>,
}

impl Turn<'_> {
    /// Lets another thread read the next request. `false`: there is none, and this one stays the reader. Calling it
    /// again does nothing more.
    #[must_use]
    pub fn pass(&self) -> bool {
        if !self.passed.get() {
            self.passed.set((self.pass)());
        }
        self.passed.get()
    }
}

struct State {
    /// Threads that read, or answer a request without having passed.
    reading: usize,
    threads: usize,
    ended: Option<io::Result<()>>,
}

struct Readers<H> {
    channel: Arc<Channel>,
    handler: H,
    state: Mutex<State>,
    /// Signalled when a thread has left.
    left: Condvar,
}

/// Serves `channel` until it ends: `Ok` when the device was removed or the other end closed.
///
/// # Errors
/// A read that failed for another reason.
pub fn serve<H: Handler>(channel: Arc<Channel>, handler: H) -> io::Result<()> {
    let state = State {
        reading: 1,
        threads: 1,
        ended: None,
    };
    let readers = Arc::new(Readers {
        channel,
        handler,
        state: Mutex::new(state),
        left: Condvar::new(),
    });
    Readers::run(&readers);
    // This thread may be the first to leave: the others still finish what they have in hand.
    let mut state = readers.lock();
    while state.threads > 0 {
        state = readers.left.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
    state.ended.take().unwrap_or(Ok(()))
}

impl<H: Handler> Readers<H> {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is changed in single assignments: a panic of a handler cannot have left it half done.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The life of a reading thread; it is counted as one already.
    fn run(this: &Arc<Self>) {
        // Not zeros, which would be pages that are not there yet: see READ_BUFFER.
        let mut buffer = vec![0xff; READ_BUFFER];
        let pass = || Self::pass(this);
        let place = this.channel.under_way().place();
        loop {
            let size = match this.channel.read(&mut buffer) {
                Ok(0) => return this.end(Ok(())),
                Ok(size) => size,
                // ENOENT: the request was taken back by a fatal signal while it was handed over.
                Err(error)
                    if matches!(
                        error.raw_os_error(),
                        Some(libc::EINTR | libc::EAGAIN | libc::ENOENT)
                    ) =>
                {
                    continue;
                }
                Err(error) if error.raw_os_error() == Some(libc::ENODEV) => return this.end(Ok(())),
                Err(error) => return this.end(Err(error)),
            };
            let turn = Turn {
                pass: &pass,
                passed: Cell::new(false),
            };
            match parse(&this.channel, &buffer[..size]) {
                Ok(request) => {
                    place.begin(&request);
                    this.handle(request, &turn);
                    place.end();
                }
                Err(error @ ParseError::NoHeader(_)) => tracing::error!(%error, "the channel sent garbage"),
                Err(error @ ParseError::Refused { .. }) => tracing::warn!(%error, "request refused"),
            }
            if turn.passed.get() && !this.read_on() {
                return;
            }
        }
    }

    fn handle(&self, request: Request<'_>, turn: &Turn<'_>) {
        let resent = request.operation.resent().map(What::Request);
        let taken_up = match (self.channel.tries(), resent) {
            (Some(tries), Some(what)) => tries.take_up(what).map(Some),
            _ => Some(None),
        };
        let Some(_taken_up) = taken_up else {
            tracing::error!(
                client_tid = request.caller.tid,
                "vidcompatd has ended again and again over one request ({:?}): it is answered EIO; please report this, with \
                 what the log says of the ends",
                request.operation
            );
            return request.operation.fail(Errno::EIO);
        };
        // A bug met by one client must not take the node from all: its request is answered EIO as the reply is
        // dropped, and the thread goes on.
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| self.handler.handle(request, turn)));
        if outcome.is_err() {
            tracing::error!(
                "a request met a bug in vidcompatd and was answered EIO; please report the panic above"
            );
        }
    }

    /// A thread that had passed its turn is free again. `false`: it is not needed, and no longer counted.
    fn read_on(&self) -> bool {
        let mut state = self.lock();
        if state.reading < STANDING && state.ended.is_none() {
            state.reading += 1;
            return true;
        }
        state.threads -= 1;
        self.left.notify_one();
        false
    }

    fn pass(this: &Arc<Self>) -> bool {
        let mut state = this.lock();
        if state.reading > 1 {
            state.reading -= 1;
            return true;
        }
        if state.threads >= MAX_THREADS {
            return false;
        }
        state.threads += 1;
        drop(state);
        // The new thread reads in this one's place: the number of readers stays.
        let new = Arc::clone(this);
        let spawned = thread::Builder::new()
            .name("cuse-reader".into())
            .spawn(move || Self::run(&new));
        if let Err(error) = &spawned {
            tracing::warn!(%error, "no further thread for the requests of a node");
            this.lock().threads -= 1;
        }
        spawned.is_ok()
    }

    fn end(&self, result: io::Result<()>) {
        let mut state = self.lock();
        state.reading -= 1;
        state.threads -= 1;
        state.ended.get_or_insert(result);
        drop(state);
        self.left.notify_one();
    }
}
