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
    use super::Closing;
    use std::sync::Arc;
    use std::time::Duration;
    use tokio::sync::Notify;
    use tokio::time::timeout;

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
