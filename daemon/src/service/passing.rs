//! What is seen of the requests on their way to a node's front end: that a file was closed, which somebody may wait for, and
//! that a request is one that a daemon before us has not answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::chronicle::Chronicle;
use crate::cuse::{Handler, Operation, Request, Turn};

/// Does somebody wait until a file of a node is closed?
#[derive(Debug)]
pub(super) struct Closing {
    waits: AtomicBool,
    closed: Arc<Notify>,
}

impl Closing {
    /// Nobody does. `closed` is told of each close while somebody does.
    pub(super) fn new(closed: Arc<Notify>) -> Self {
        Self {
            waits: AtomicBool::new(false),
            closed,
        }
    }

    /// From now on, or no more. What was closed before is not told of: whoever waits looks once more.
    pub(super) fn wait(&self, waits: bool) {
        self.waits.store(waits, Ordering::SeqCst);
    }

    fn closed(&self) {
        if self.waits.load(Ordering::SeqCst) {
            self.closed.notify_one();
        }
    }
}

/// A front end, and who looks on.
pub(super) struct Passing<H> {
    pub(super) front: H,
    pub(super) closing: Arc<Closing>,
    pub(super) chronicle: Arc<Chronicle>,
}

impl<H: Handler> Handler for Passing<H> {
    fn handle(&self, request: Request<'_>, turn: &Turn<'_>) {
        let is_close = matches!(request.operation, Operation::Release { .. });
        if is_resent(&request.operation) {
            self.chronicle.resent();
        }
        self.front.handle(request, turn);
        if is_close {
            self.closing.closed();
        }
    }
}

fn is_resent(operation: &Operation<'_>) -> bool {
    match operation {
        Operation::Open { reply, .. } => reply.is_resent(),
        Operation::Release { reply, .. } => reply.is_resent(),
        Operation::Read { reply, .. } => reply.is_resent(),
        Operation::Write { reply, .. } => reply.is_resent(),
        Operation::Ioctl(ioctl) => ioctl.reply.is_resent(),
        Operation::Poll { reply, .. } => reply.is_resent(),
        Operation::Interrupt { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::{Closing, Passing};
    use crate::cuse::{Channel, Handler, Operation, Request, Turn, serve};
    use crate::service::chronicle::Chronicle;
    use crate::survive::{Inheritance, Store};
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use polyfuse_kernel::{FUSE_RELEASE, fuse_in_header, fuse_release_in};
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::sync::Notify;
    use tokio::time::timeout;
    use zerocopy::IntoBytes;

    /// Answers what is closed.
    struct Front;

    impl Handler for Front {
        fn handle(&self, request: Request<'_>, _: &Turn<'_>) {
            if let Operation::Release { reply, .. } = request.operation {
                reply.released();
            }
        }
    }

    #[tokio::test]
    async fn requests_that_come_again_are_counted_on_their_way() {
        const AGAIN: u64 = 1 << 63;
        let flags = SockFlag::SOCK_CLOEXEC;
        let (kernel, ours) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).expect("two ends");
        let closed = Arc::new(Notify::new());
        let passing = Passing {
            front: Front,
            closing: Arc::new(Closing::new(Arc::clone(&closed))),
            chronicle: Chronicle::begin(&Store::none(), true, &mut Inheritance::default()),
        };
        passing.closing.wait(true);
        let chronicle = Arc::clone(&passing.chronicle);
        let server = std::thread::spawn(move || serve(Channel::over(ours), passing));
        for unique in [2, 4 | AGAIN, 6, 8 | AGAIN] {
            let body = fuse_release_in::default();
            let header = fuse_in_header {
                len: u32::try_from(size_of::<fuse_in_header>() + size_of_val(&body)).expect("few bytes"),
                opcode: FUSE_RELEASE,
                unique,
                ..fuse_in_header::default()
            };
            let message = [header.as_bytes(), body.as_bytes()].concat();
            nix::unistd::write(&kernel, &message).expect("the other end reads");
            nix::unistd::read(&kernel, &mut [0; 64]).expect("an answer");
        }
        drop(kernel);
        server.join().expect("no panic").ok();
        assert_eq!(chronicle.told().resent, 2);
        let told = timeout(Duration::from_millis(20), closed.notified());
        assert!(told.await.is_ok());
    }

    #[tokio::test]
    async fn a_close_is_told_of_only_where_somebody_waits_for_it() {
        let closed = Arc::new(Notify::new());
        let closing = Closing::new(Arc::clone(&closed));
        let told = || timeout(Duration::from_millis(20), closed.notified());
        closing.closed();
        assert!(told().await.is_err());
        closing.wait(true);
        closing.closed();
        closing.closed();
        assert!(told().await.is_ok(), "also where it was before anybody listened");
        assert!(told().await.is_err(), "many are one");
        closing.wait(false);
        closing.closed();
        assert!(told().await.is_err());
    }
}
