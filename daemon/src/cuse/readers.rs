//! One blocking reader per channel, and nothing that can block on it.
//!
//! The reader's role moves instead of the request: the thread that has read a request keeps reading if the answer
//! is at hand, and otherwise *passes its turn* to another thread and goes on with the request itself. So a request
//! never waits for a hand-over, and a slow driver call never keeps other clients' requests from being read. When there
//! are too many slow calls nobody is left to take the turn: then the one reader only refuses, interrupts and closes.

use std::cell::Cell;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;

use super::channel::{Channel, READ_BUFFER};
use super::request::{ParseError, Request, parse};

/// Threads of one channel, so driver calls that may be under way at once, and the reader.
const MAX_THREADS: usize = 128;
/// Threads that wait for a turn; further ones end.
const MAX_IDLE: usize = 1;

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
    reading: bool,
    idle: usize,
    threads: usize,
    ended: Option<io::Result<()>>,
}

struct Readers<H> {
    channel: Arc<Channel>,
    handler: H,
    state: Mutex<State>,
    /// Signalled for a thread that waits to read.
    turn: Condvar,
    /// Signalled when a thread has left.
    left: Condvar,
}

/// Serves `channel` until it ends: `Ok` when the device was removed or the other end closed.
///
/// # Errors
/// A read that failed for another reason.
pub fn serve<H: Handler>(channel: Arc<Channel>, handler: H) -> io::Result<()> {
    let state = State {
        reading: false,
        idle: 0,
        threads: 1,
        ended: None,
    };
    let readers = Arc::new(Readers {
        channel,
        handler,
        state: Mutex::new(state),
        turn: Condvar::new(),
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

    fn run(this: &Arc<Self>) {
        let mut buffer = vec![0; READ_BUFFER];
        let pass = || Self::pass(this);
        let mut reading = false;
        while reading || this.take_turn() {
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
                    reading = true;
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
                Ok(request) => this.handle(request, &turn),
                Err(error @ ParseError::NoHeader(_)) => tracing::error!(%error, "the channel sent garbage"),
                Err(error @ ParseError::Refused { .. }) => tracing::warn!(%error, "request refused"),
            }
            reading = !turn.passed.get();
        }
    }

    fn handle(&self, request: Request<'_>, turn: &Turn<'_>) {
        // A bug met by one client must not take the node from all: its request is answered EIO as the reply is
        // dropped, and the thread goes on.
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| self.handler.handle(request, turn)));
        if outcome.is_err() {
            tracing::error!(
                "a request met a bug in vidcompatd and was answered EIO; please report the panic above"
            );
        }
    }

    /// Waits for the role. `false`: this thread is not needed any more, and is no longer counted.
    fn take_turn(&self) -> bool {
        let mut state = self.lock();
        loop {
            if state.ended.is_some() || (state.reading && state.idle >= MAX_IDLE) {
                state.threads -= 1;
                self.left.notify_one();
                return false;
            }
            if !state.reading {
                state.reading = true;
                return true;
            }
            state.idle += 1;
            state = self.turn.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle -= 1;
        }
    }

    fn pass(this: &Arc<Self>) -> bool {
        let mut state = this.lock();
        if state.idle > 0 {
            state.reading = false;
            drop(state);
            this.turn.notify_one();
            return true;
        }
        if state.threads >= MAX_THREADS {
            return false;
        }
        state.threads += 1;
        state.reading = false;
        drop(state);
        let new = Arc::clone(this);
        let spawned = thread::Builder::new()
            .name("cuse-reader".into())
            .spawn(move || Self::run(&new));
        if let Err(error) = &spawned {
            tracing::warn!(%error, "no further thread for the requests of a node");
            let mut state = this.lock();
            state.threads -= 1;
            // Somebody who was waiting may have taken the role meanwhile.
            if state.reading {
                return true;
            }
            state.reading = true;
        }
        spawned.is_ok()
    }

    fn end(&self, result: io::Result<()>) {
        let mut state = self.lock();
        state.reading = false;
        state.threads -= 1;
        state.ended.get_or_insert(result);
        drop(state);
        self.turn.notify_all();
        self.left.notify_one();
    }
}
